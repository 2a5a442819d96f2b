PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The folder of results of config/config.yaml; quote it in shell commands.
RESULTS := $$($(BIN)/python -c 'import os; from pathlib import Path; from udpm.config import load_study; \
  from udpm.config.validation import read_yaml; file = Path("config/config.yaml"); \
  print(os.path.abspath(load_study(read_yaml(file), str(file)).results))')

# Hundreds of processes start below; each would compile its imports again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo lint test test-fast gpu test-slurm soak fuzz
install: $(VENV)/.installed

# Not compiled beforehand: Python compiles what it imports, a small part of it.
$(VENV)/.installed: pyproject.toml envs/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c envs/constraints.txt -e '.[all,dev]'
	touch $@

# The whole pipeline on the embedded data set; results that are up to date are not made again. The report is moved:
# Snakemake would replace a $NAME in its path.
demo: install
	$(BIN)/python -m snakemake --quiet rules
	@results=$(RESULTS) && report="$$results/report.html" && \
	if [ ! -e "$$report" ] || [ -n "$$(find "$$results/tables" "$$results/figures" -newer "$$report" -print -quit)" ]; then \
	  $(BIN)/python -m snakemake --quiet all --report .snakemake/report.html && mv .snakemake/report.html "$$report"; fi && \
	cat "$$results/tables/scores.md" && printf 'Report: %s\n' "$$report"

# Style, spelling and types; the tests run the same commands.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/codespell
	$(BIN)/mypy

# On both cores of a small machine.
test-fast: install
	$(BIN)/python -m pytest -m "not slow and not soak and not slurm" -n 2 --dist loadfile

test: test-fast
	$(BIN)/python -m pytest -m "slow and not soak and not slurm" -n 2 --dist loadfile

# Checks, speed and profile of a GPU in 8 minutes, as a table and as JSON. With
# `make gpu GPU_PYTHON=python3` nothing is installed: any Python with the packages that `udpm train` needs will do.
GPU_PYTHON ?= $(BIN)/python
GPU_OUTPUT ?= results/gpu.json
gpu: $(if $(filter undefined file,$(origin GPU_PYTHON)),install)
	$(GPU_PYTHON) -m benchmarks.gpu --output $(GPU_OUTPUT)

# The workflow on live SLURMs, started for the tests, one for each of two workers; installs Debian's packages of SLURM
# if it may. Most of the time is waiting, so two workers pay off on two cores.
test-slurm: install
	tests/slurm/install.sh
	$(BIN)/python -m pytest tests/slurm -m slurm -n 2

# Tests that take too long to run after every change.
soak: install
	$(BIN)/python -m pytest -m "soak and not slurm"

# Many mutated inputs for every reader of a file, and a table of the outcomes; FUZZ=1000 for fewer.
FUZZ ?= 20000
fuzz: install
	cd tests && PYTHONPATH=helpers ../$(BIN)/python -m fuzz --inputs $(FUZZ)

# The same versions for `snakemake --sdm conda`.
envs/udpm.yaml: envs/constraints.txt
	{ printf '# Made from constraints.txt by `make $@`.\nchannels: [conda-forge]\ndependencies:\n'; \
	  printf '  - python=3.11\n  - pip\n  - pip:\n'; sed -n 's/^[A-Za-z0-9].*==.*/      - &/p' $<; } > $@
