"""The repository's own files: style, spelling, types, version, citation."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tiny import ROOT

import udpm

RECIPE = re.search(r"^lint: install\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.M).group(1)
LINT = [line.removeprefix("\t$(BIN)/").split() for line in RECIPE.splitlines()]


@pytest.mark.parametrize("command", LINT, ids=" ".join)
def test_make_lint(command):
    tool = Path(sys.executable).parent / command[0]
    done = subprocess.run([tool, *command[1:]], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_version_is_stated_once():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "udpm.__version__"}
    assert re.fullmatch(r"\d+\.\d+\.\d+", udpm.__version__)
    assert udpm.__version__ not in (ROOT / "CITATION.cff").read_text() + (ROOT / "README.md").read_text()


def test_the_paper_is_cited_alike():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    readme = (ROOT / "README.md").read_text()
    assert [author["family-names"] for author in paper["authors"]] == ["Abu-Hussein", "Giryes"]
    assert "author    = {Abu-Hussein, Shady and Giryes, Raja}" in readme
    assert citation["license"] == "MIT"
    assert paper["url"] == tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Paper"]


def test_every_yaml_file_of_the_repository_is_read():
    for name in (".pre-commit-config.yaml", ".snakemake-workflow-catalog.yml", ".github/workflows/ci.yml"):
        assert isinstance(yaml.safe_load((ROOT / name).read_text()), dict), name


def test_ci_runs_what_the_makefile_has():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    jobs = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())["jobs"]
    commands = [step.get("run", "").split() for job in jobs.values() for step in job["steps"]]
    called = {word for command in commands if command[:1] == ["make"] for word in command[1:]}
    assert called == {"lint", "test-fast", "demo"}
    assert called <= targets
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    versions = jobs["test"]["strategy"]["matrix"]["python-version"]
    assert f">={versions[0]}" == requires


def test_contributing_names_what_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    named = set(re.findall(r"(?:tests|docs|envs)/[\w./-]*\w", text))
    assert len(named) > 4
    assert [name for name in named if not (ROOT / name).exists()] == []
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets
