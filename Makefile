PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install test
install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml envs/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c envs/constraints.txt -e '.[all,dev]'
	touch $@

test: install
	$(BIN)/python -m pytest
