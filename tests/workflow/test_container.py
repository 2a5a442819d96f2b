"""Jobs in a container: the image's definitions, what is refused, and jobs through a stand-in for Apptainer."""

import re
import shutil
import sys
from pathlib import Path

import pytest
from dag import snakemake
from tiny import ROOT

DOCKERFILE = (ROOT / "envs/Dockerfile").read_text()
APPTAINER = (ROOT / "envs/apptainer.def").read_text()

# Runs the command of `apptainer exec [options] IMAGE sh -c COMMAND` here, with the interpreter `python` first in PATH.
STAND_IN = """#!/bin/sh
if [ "$1" = --version ]; then echo apptainer version 1.3.0; exit; fi
echo "$@" >> "{log}"
while [ "$1" != sh ] && [ "$1" != bash ]; do shift; done
PATH="{bin}:$PATH" exec "$@"
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Put a program `apptainer` into PATH; return the file that it logs its arguments to."""
    program, log = tmp_path / "bin/apptainer", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(STAND_IN.format(log=log, bin=Path(sys.executable).parent))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def test_both_images_are_the_same():
    """Base, files and the line of pip; what Docker copies passes .dockerignore."""
    (base,) = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.M)
    assert re.findall(r"^From: (\S+)$", APPTAINER, re.M) == [base]
    assert f"Python {base[len('python:') : len('python:3.11')]}" in (ROOT / "envs/constraints.txt").read_text()
    copied = [name for line in re.findall(r"^COPY (.+) \S+$", DOCKERFILE, re.M) for name in line.split()]
    assert re.findall(r"^    (\S+) /opt/udpm/\S+$", APPTAINER, re.M) == copied
    assert all((ROOT / name).exists() for name in copied)
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line[1:] for line in ignored if line.startswith("!")] == copied
    (install,) = re.findall(r"(pip install .*)$", DOCKERFILE, re.M)
    assert install in APPTAINER


@pytest.mark.parametrize(
    ("container", "message"),
    [
        ("envs/none.sif", "config/cluster.yaml: container: envs/none.sif not found; build it from envs/apptainer.def"),
        (
            "my.sif;ls",
            "environment variable UDPM_CONTAINER: container: string should match pattern '^[A-Za-z0-9_./:@+-]+$', got "
            "'my.sif;ls'",
        ),
    ],
)
def test_a_missing_image_is_one_line(stand_in, tmp_path, monkeypatch, container, message):
    monkeypatch.setenv("UDPM_CONTAINER", container)
    done = snakemake("-n", "--sdm", "apptainer", "--config", f"results={tmp_path}/results")
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if "workflow/profiles/default" not in line]
    assert said == [f"error: {message}"]


def test_several_nodes_are_refused(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/experiments/two.yaml").write_text("extends: digits\ntraining: {nodes: 2}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from experiments import Experiments

    with pytest.raises(SystemExit):
        Experiments({"experiments": ["two"]}, has_scheduler=True, contained=True)
    refused = "two.yaml: training.nodes: a container has no srun to reach several nodes; leave out --sdm apptainer"
    assert refused in capsys.readouterr().err


@pytest.mark.slow
def test_jobs_run_in_the_image(stand_in, tmp_path, monkeypatch):
    """Made in the container or not, a file is the same, and neither makes the other out of date."""
    image = tmp_path / "udpm.sif"
    image.touch()
    monkeypatch.setenv("UDPM_CONTAINER", str(image))
    results = tmp_path / "results"
    wanted = f"{results}/configs/datasets/digits.json"
    given = ("--config", f"results={results}", "--cores", "1")
    done = snakemake(wanted, *given, "--sdm", "apptainer")
    assert done.returncode == 0, done.stdout + done.stderr
    calls = stand_in.read_text()
    assert str(image) in calls
    assert "python -m udpm" in calls
    assert sys.executable not in calls
    again = snakemake(wanted, *given)
    assert "Nothing to be done" in again.stdout + again.stderr
