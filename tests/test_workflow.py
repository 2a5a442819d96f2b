"""The DAG: clean by every checker, dry runs of all that ships, and once for real."""

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import ROOT

from udpm.config import names_in

BIN = Path(sys.executable).parent
SOURCES = ("config", "workflow", "slurm", "envs")


def run(*command, cwd=ROOT, **options):
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, timeout=500, **options)


def snakemake(*arguments, cwd=ROOT):
    return run(BIN / "snakemake", *arguments, cwd=cwd)


def test_style():
    for command in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("snakefmt", "--check", "workflow")):
        done = run(BIN / command[0], *command[1:])
        assert done.returncode == 0, done.stdout + done.stderr


def test_lint():
    done = snakemake("--lint")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")], ids=["default", "slurm"])
def test_dry_run_of_everything_shipped(tmp_path, profile):
    names = ",".join(names_in(ROOT / "config/experiments"))
    given = ("--config", f"experiments=[{names}]", f"results={tmp_path}/results")
    done = snakemake("-n", *profile, *given)
    assert done.returncode == 0, done.stderr
    # One training per experiment; their data sets shared between them are prepared once.
    jobs = {
        line.split()[0]: int(line.split()[1])
        for line in done.stdout.splitlines()
        if len(line.split()) == 2 and line.split()[1].isdigit()
    }
    assert jobs["train_model"] == len(names.split(","))
    assert jobs["prepare_dataset"] == len(names_in(ROOT / "config/datasets"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("experiments=digit", "digit.yaml: no such file; did you mean digits?"),
        ("experiment=digits", "experiment: unknown key; did you mean experiments?"),
    ],
)
def test_a_mistake_is_found_before_any_job(given, expected):
    done = snakemake("-n", "--config", given)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
    assert "Traceback" not in done.stderr


def test_imports_are_light():
    """`udpm --help` and rule files must not pay for torch."""
    code = "import sys, udpm.cli, udpm.config; sys.exit(sorted({'torch', 'numpy', 'pandas'} & set(sys.modules)) or 0)"
    done = run(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy of the project's sources in which the whole DAG ran on the smallest experiment."""
    folder = tmp_path_factory.mktemp("study")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name)
    values = (folder / "config/config.yaml").read_text().replace("[digits]", "[digits-smoke]")
    (folder / "config/config.yaml").write_text(values)
    done = snakemake(cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_whole_dag(study):
    with open(study / "results/tables/scores.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["subject"] for row in rows] == ["UDPM, seed 0", "held-out images (floor)", "noise (ceiling)"]
    assert all(float(row["frechet_distance"]) > 0 for row in rows)
    figures = {path.relative_to(study / "results/figures") for path in (study / "results").rglob("*.png")}
    latents = {f"latents_{kind}" for kind in ("perturb", "swap", "interpolate", "pca")}
    assert {path.stem for path in figures} == {
        "samples",
        "chain",
        "forward",
        "neighbours",
        "curves",
        "schedule",
    } | latents
    record = json.loads((study / "results/runs/digits-smoke/seed0/complete.json").read_text())
    assert record["iterations"] == 40
    assert (study / "results/logs/train_model/digits-smoke_seed0.log").exists()


@pytest.mark.slow
def test_several_processes_train_together(study):
    path = study / "config/experiments/two.yaml"
    path.write_text("extends: digits-smoke\ntraining: {processes_per_node: 2}\n")
    done = snakemake("results/runs/two/seed0/complete.json", "--config", "experiments=two", cwd=study)
    path.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((study / "results/runs/two/seed0/complete.json").read_text())
    assert record["processes"] == [{"from_iteration": 0, "processes": 2}]


@pytest.mark.slow
def test_nothing_is_done_twice(study):
    done = snakemake(cwd=study)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_only_what_changed_is_redone(study):
    path = study / "config/experiments/digits-smoke.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("count: 100", "count: 110"))
        done = snakemake("-n", cwd=study)
        assert "sample_images" in done.stdout
        assert "resolve_section" in done.stdout
        assert "train_model" not in done.stdout
        path.write_text(before.replace("description: ", "description: still "))
        done = snakemake("-n", cwd=study)
        assert "Nothing to be done" in done.stdout + done.stderr
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_report(study):
    done = snakemake("--report", "results/report.html", cwd=study)
    assert done.returncode == 0, done.stderr
    report = (study / "results/report.html").read_text()
    assert "Upsampling Diffusion Probabilistic Models" in report
    for name in ("samples", "chain", "curves", "schedule", "forward", "latents_swap"):
        assert f"{name}.png" in report
    assert "scores.html" in report
    for category in ("Overview", "Scores", "Figures"):
        assert f'"{category}"' in report
    # It opens where there is no network.
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", report)
    assert "@import url(http" not in report


@pytest.mark.slow
def test_a_changed_run_is_refused_before_anything_is_lost(study):
    folder = study / "results/runs/digits-smoke/seed0"
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    path = study / "config/experiments/digits-smoke.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("iterations: 40", "iterations: 41"))
        done = snakemake(cwd=study)
    finally:
        path.write_text(text)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "holds a run of another configuration (training.iterations was 40, is 41)" in errors[0]
    assert {path: path.read_bytes() for path in before} == before
    assert "Nothing to be done" in snakemake("-n", cwd=study).stdout


@pytest.mark.slow
def test_words_about_a_data_set_rerun_nothing(study):
    path = study / "config/datasets/digits.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("description: ", "description: still "))
        assert "Nothing to be done" in snakemake("-n", cwd=study).stdout
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ("training: imported\nweights: nowhere.pt\n", "two.yaml: weights: nowhere.pt is not there"),
        ("sampling: {noise: nowhere.npz}\n", "two.yaml: sampling.noise: nowhere.npz is not there"),
        (
            "training: {nodes: 2}\n",
            "two.yaml: training.nodes: several nodes need a scheduler: snakemake --profile slurm",
        ),
    ],
)
def test_what_would_stop_a_job_is_found_before_it(tmp_path, lines, expected):
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "config/experiments/two.yaml").write_text(f"extends: digits\n{lines}")
    done = snakemake("-n", "--config", "experiments=two", cwd=tmp_path)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert expected in errors[0]
