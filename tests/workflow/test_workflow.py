"""The DAG: linters, dry runs of everything shipped, and one real run."""

import ast
import csv
import json
import os
import random
import re
import shutil
import signal
import string
import subprocess
import sys
import time
import tokenize
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from dag import BIN, SOURCES, run, snakemake
from photos import replace_keeping_times
from tiny import ROOT

from udpm.config import list_configs

# A name that the file system allows. A shell that evaluated it would leave files called PWNED.
RESULTS = "-r \"my\" $(touch PWNED) `touch PWNED`; touch PWNED & 'R' *?[a-z] #~\u00fc\\n|\t!\r$HOME<name>"


def run_udpm(*arguments, cwd=ROOT):
    return run(sys.executable, "-m", "udpm", *arguments, cwd=cwd)


def test_lint(tmp_path):
    done = snakemake("--lint", "--config", f"results={tmp_path}/results")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("profile", [(), ("--profile", "slurm")], ids=["default", "slurm"])
def test_dry_run_of_everything_shipped(tmp_path, profile):
    names = ",".join(list_configs(ROOT / "config/experiments"))
    given = ("--config", f"experiments=[{names}]", f"results={tmp_path}/results")
    done = snakemake("-n", *profile, *given)
    assert done.returncode == 0, done.stderr
    # One training per experiment; data sets that they share are prepared once.
    jobs = {
        line.split()[0]: int(line.split()[1])
        for line in done.stdout.splitlines()
        if len(line.split()) == 2 and line.split()[1].isdigit()
    }
    assert jobs["train_model"] == len(names.split(","))
    assert jobs["prepare_dataset"] == len(list_configs(ROOT / "config/datasets"))


def test_diagnoses_are_a_target_of_their_own(tmp_path):
    """Of all scored experiments, also of those that do not have them in `all`."""
    done = snakemake("-n", "diagnoses", "--config", "experiments=[digits,cifar10]", f"results={tmp_path}")
    assert done.returncode == 0, done.stdout + done.stderr
    counts = dict(re.findall(r"^(diagnose_run|render_diagnosis|train_model) +(\d+)$", done.stdout, re.M))
    assert counts == {"diagnose_run": "2", "render_diagnosis": "2", "train_model": "2"}


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


PLANNING = sorted(path.stem for path in (ROOT / "workflow").glob("*.py"))


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (("udpm.cli", "udpm.config"), {"torch", "numpy", "pandas"}),
        (tuple(PLANNING), {"torch", "sklearn", "matplotlib", "scipy", "torchvision"}),
    ],
    ids=["commands", "workflow"],
)
def test_imports_are_light(modules, heavy):
    """Neither `udpm --help` nor planning imports torch."""
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'workflow')!r}); import {', '.join(modules)}\n"
    done = run(sys.executable, "-c", f"{code}sys.exit(sorted({heavy!r} & set(sys.modules)) or 0)")
    assert done.returncode == 0, done.stderr


def shell_lines(path):
    """Return the texts of the `shell:` directives of a rule file."""
    with open(path, "rb") as handle:
        tokens = [token for token in tokenize.tokenize(handle.readline) if token.type not in SILENT]
    for index, token in enumerate(tokens[:-1]):
        if token.string != "shell" or tokens[index + 1].string == ".":
            continue
        assert tokens[index + 1].string == ":", f"{path}:{token.start[0]}: only directives can be checked"
        texts = [after.string for after in tokens[index + 2 :]]
        count = next(number for number, text in enumerate(texts) if text[:1] not in ("'", '"'))
        assert count, f"{path}:{token.start[0]}: not plain text"
        yield "".join(ast.literal_eval(text) for text in texts[:count])


SILENT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.COMMENT}
RULES = [ROOT / "workflow/Snakefile", *sorted((ROOT / "workflow/rules").glob("*.smk"))]


@pytest.mark.parametrize("path", RULES, ids=lambda path: path.name)
def test_every_value_in_a_shell_command_is_quoted(path):
    for line in shell_lines(path):
        for _, name, form, _ in string.Formatter().parse(line):
            assert name is None or form == "q", f"{path.name}: {{{name}}} is not quoted in: {line}"


def test_every_rule_with_a_shell_is_checked():
    text = "".join(path.read_text() for path in RULES)
    found = sum(len(list(shell_lines(path))) for path in RULES)
    assert found == len(re.findall(r"^ +shell:", text, re.M)) > 30
    assert not re.search(r"^ +(run|script|notebook|wrapper|cwl):", text, re.M)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy of the project's sources in which the whole DAG ran on the smallest experiment."""
    folder = tmp_path_factory.mktemp("study")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name)
    values = {"experiments": ["digits-smoke"], "results": RESULTS}
    (folder / "config/config.yaml").write_text(json.dumps(values))
    done = snakemake(cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_whole_dag(study):
    with open(study / RESULTS / "tables/scores.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["subject"] for row in rows] == ["UDPM, seed 0", "held-out images (floor)", "noise (ceiling)"]
    samples, floor, ceiling = (float(row["frechet_distance"]) for row in rows)
    assert floor < min(samples, ceiling)
    for value, name in ((samples, "seed0"), (floor, "heldout"), (ceiling, "noise")):
        score = json.loads((study / RESULTS / f"scores/digits-smoke/{name}.json").read_text())
        assert value == score["metrics"]["frechet_distance"]["value"]
    figures = {path.relative_to(study / RESULTS / "figures") for path in (study / RESULTS).rglob("*.png")}
    latents = {f"latents_{kind}" for kind in ("perturb", "swap", "interpolate", "pca")}
    assert {path.stem for path in figures} == {
        "samples",
        "chain",
        "forward",
        "neighbours",
        "curves",
        "schedule",
        "diagnosis",
    } | latents
    record = json.loads((study / RESULTS / "runs/digits-smoke/seed0/complete.json").read_text())
    assert record["iterations"] == 40
    assert (study / RESULTS / "logs/train_model/digits-smoke_seed0.log").exists()
    assert {path.name for path in study.iterdir() if path.name[0] != "."} == {*SOURCES, RESULTS}


@pytest.mark.slow
def test_several_processes_train_together(study):
    path = study / "config/experiments/two.yaml"
    path.write_text("extends: digits-smoke\ntraining: {processes_per_node: 2, device: auto}\n")
    done = snakemake("--config", "experiments=two", "--", f"{RESULTS}/runs/two/seed0/complete.json", cwd=study)
    path.unlink()
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((study / RESULTS / "runs/two/seed0/complete.json").read_text())
    assert record["processes"] == [{"from_iteration": 0, "processes": 2}]


@pytest.mark.slow
def test_nothing_runs_twice(study):
    done = snakemake(cwd=study)
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.slow
def test_only_changed_results_are_made_again(study):
    path = study / "config/experiments/digits-smoke.yaml"
    before = path.read_text()
    try:
        path.write_text(before.replace("count: 100", "count: 110"))
        done = snakemake("-n", cwd=study)
        assert "sample_images" in done.stdout
        assert "resolve_section" in done.stdout
        assert "train_model" not in done.stdout
        path.write_text(before.replace("log_every: 5", "log_every: 6"))
        done = snakemake("-n", "--profile", "slurm", cwd=study)
        assert "Nothing to be done" in done.stdout + done.stderr
        path.write_text(before.replace("description: ", "description: still "))
        done = snakemake("-n", cwd=study)
        assert "Nothing to be done" in done.stdout + done.stderr
    finally:
        path.write_text(before)


@pytest.mark.slow
def test_report(study):
    done = snakemake("--report", ".snakemake/report.html", cwd=study)
    assert done.returncode == 0, done.stderr
    report = (study / ".snakemake/report.html").read_text()
    assert "Upsampling Diffusion Probabilistic Models" in report
    for name in ("samples", "chain", "curves", "schedule", "forward", "latents_swap"):
        assert f"{name}.svg" in report
    assert "scores.html" in report
    for category in ("1 Overview", "2 Scores", "3 Figures"):
        assert f'"{category}"' in report
    # It opens without a network.
    assert not re.search(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=[\"']?(?:https?:)?//", report)
    assert "@import url(http" not in report


def test_a_report_of_missing_files_is_one_line(tmp_path, monkeypatch, capsys):
    from snakemake import report
    from snakemake.io import flag

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    monkeypatch.setattr(report, "auto_report", lambda dag: "collected")
    from outputs import check_report

    check_report()
    figures = [SimpleNamespace(output=[flag(f"{name}.svg", "report"), f"{name}.png"]) for name in "ba"]
    with pytest.raises(SystemExit, match="2"):
        report.auto_report(SimpleNamespace(jobs=figures))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --report: 2 of its 2 files are missing, such as a.svg; make them first")
    for name in "ab":
        Path(f"{name}.svg").touch()
    assert report.auto_report(SimpleNamespace(jobs=figures)) == "collected"


@pytest.mark.slow
def test_a_changed_run_is_refused_before_anything_is_lost(study):
    folder = study / RESULTS / "runs/digits-smoke/seed0"
    before = {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
    path = study / "config/experiments/digits-smoke.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("batch: 16", "batch: 8"))
        done = snakemake(cwd=study)
    finally:
        path.write_text(text)
    assert done.returncode == 2
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "holds a run of another configuration (training.batch was 16, is 8)" in errors[0]
    assert {path: path.read_bytes() for path in before} == before
    assert "Nothing to be done" in snakemake("-n", cwd=study).stdout


def planned(folder):
    """Return the number of jobs of each rule in a dry run."""
    done = snakemake("-n", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[0].isidentifier() and line[1].isdigit()}


@pytest.fixture(scope="module")
def clone(study, tmp_path_factory):
    """Another copy of the sources, with results copied without times and without .snakemake."""
    folder = tmp_path_factory.mktemp("clone")
    for name in SOURCES:
        shutil.copytree(study / name, folder / name)
    shutil.copytree(study / RESULTS, folder / RESULTS, copy_function=shutil.copyfile)
    dice = random.Random(0)
    for path in (folder / RESULTS).rglob("*"):
        os.utime(path, (dice.randrange(2**32), dice.randrange(2**32)))
    return folder


@pytest.mark.slow
def test_copied_results_are_up_to_date(clone):
    assert "Nothing to be done" in snakemake("-n", cwd=clone).stdout


@pytest.mark.slow
def test_another_extractor_is_noticed_with_its_times_kept(clone):
    path = clone / RESULTS / "extractors/digits.pt"
    before = path.read_bytes()
    replace_keeping_times(path, before[:-1] + b"?")
    found = planned(clone)
    assert found.pop("total") == sum(found.values())
    assert found == {
        "compute_reference": 1,
        "score_samples": 1,
        "score_baseline": 2,
        "diagnose_run": 1,
        "render_diagnosis": 1,
        "render_table": 1,
        "summarize": 1,
        "write_card": 1,
        "all": 1,
    }
    replace_keeping_times(path, before)
    assert "Nothing to be done" in snakemake("-n", cwd=clone).stdout


@pytest.mark.soak
def test_a_finished_run_survives_a_kill_while_it_trains_on(clone):
    """It keeps its results until the end, and ends with the weights of a run of that length."""
    path = clone / "config/experiments/digits-smoke.yaml"
    path.write_text(path.read_text().replace("iterations: 40", "iterations: 60"))
    run = clone / RESULTS / "runs/digits-smoke/seed0"
    finished = {name: (run / name).read_bytes() for name in ("weights.safetensors", "complete.json")}
    target = str((run / "complete.json").relative_to(clone))
    with subprocess.Popen(
        [BIN / "snakemake", "--", target], cwd=clone, start_new_session=True, stderr=subprocess.PIPE
    ) as first:
        while not (run / "checkpoints/000000050.json").exists():
            assert first.poll() is None, first.stderr.read()
            time.sleep(0.01)
        os.killpg(first.pid, signal.SIGKILL)
    kept = {name: (run / name).read_bytes() for name in finished if (run / name).exists()}
    assert kept == finished or (run / "checkpoints/000000060.json").exists()
    snakemake("--unlock", cwd=clone)
    done = snakemake("--", target, cwd=clone)
    assert done.returncode == 0, done.stdout + done.stderr
    once, results = clone / "once", clone / RESULTS
    config, data, cache = (
        results / name for name in ("configs/digits-smoke/seed0.json", "datasets/digits", "caches/digits")
    )
    done = run_udpm("train", config, "--dataset", data, "--cache", cache, "--run", once, cwd=clone)
    assert done.returncode == 0, done.stderr
    assert (run / "weights.safetensors").read_bytes() == (once / "weights.safetensors").read_bytes()


@pytest.mark.slow
def test_a_new_description_of_a_data_set_reruns_nothing(study):
    path = study / "config/datasets/digits.yaml"
    text = path.read_text()
    try:
        path.write_text(text.replace("description: ", "description: still "))
        assert "Nothing to be done" in snakemake("-n", cwd=study).stdout
    finally:
        path.write_text(text)


PLAIN = "source: folder\npath: photographs\nside: 16\n"
UNLABELLED = {"dataset": "plain", "generator": {"class_conditional": False}, "latents": {"labels": []}}
UNLABELLED |= {"discriminator": {"class_conditional": False}}


@pytest.fixture
def plan_error(tmp_path, monkeypatch, capsys):
    """Plan an experiment `two` with these values, or what is given; return the line that planning prints, if any."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    (tmp_path / "config/datasets/plain.yaml").write_text(PLAIN)
    (tmp_path / "config/datasets/trained.yaml").write_text("source: digits\nside: 16\nclasses: 10\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from experiments import Experiments

    def plan(values, given=None):
        Path("config/experiments/two.yaml").write_text(json.dumps({"extends": "digits"} | values))
        with suppress(SystemExit):
            Experiments(given or {"experiments": ["two"]}, False)
        found = capsys.readouterr().err
        assert len(found.splitlines()) <= 1
        return found

    return plan


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"training": "imported", "weights": "nowhere.pt"}, "two.yaml: weights: nowhere.pt not found"),
        ({"sampling": {"noise": "nowhere.npz"}}, "two.yaml: sampling.noise: nowhere.npz not found"),
        ({"training": {"nodes": 2}}, "training.nodes: several nodes need a scheduler: snakemake --profile slurm"),
        ({"scoring": {"extractor": "no.pt"}}, "two.yaml: scoring.extractor: no.pt not found"),
        ({"scoring": {"extractor": "dinov3"}}, "scoring.extractor: dinov3 not found; did you mean dinov2?"),
        (
            {"scoring": {"extractors": ["digits", "inceptoin"]}},
            "two.yaml: scoring.extractors: inceptoin not found; did you mean inception?",
        ),
        ({"scoring": {"extractors": ["digits", "lite0", "digits"]}}, "scoring.extractors: digits is listed twice"),
        ({"scoring": {"extractors": []}}, "scoring.extractors: list should have at least 1 item"),
        (
            UNLABELLED | {"scoring": {"extractor": "lite0", "extractors": ["lite0", "digits"]}},
            "two.yaml: scoring.extractors: digits needs classes, but data set plain has none",
        ),
        (
            {"scoring": {"extractor": "inception", "download": False, "weights_folder": "w"}},
            "scoring.download: false, but scoring.weights_folder: w/inception-2015-12-05.pt not found",
        ),
        (UNLABELLED, "two.yaml: scoring.extractor: digits needs classes, but data set plain has none"),
        ({"dataset": "trained", "scoring": {"reference_split": "test"}}, "scoring.reference_split: test, but data set"),
        ({"scoring": {"ranges": 7}}, "scoring.ranges: cannot split sampling.count, 1000, into 7 equal ranges"),
        ({"sampling": {"count": 1}}, "scoring.ranges: cannot split sampling.count, 1, into 1 equal ranges of 2"),
        ({"scoring": None, "training": {"keep_every": 400}, "selection": {}}, "selection: needs scores, but"),
    ],
)
def test_mistakes_are_found_before_any_job(plan_error, values, expected):
    assert expected in plan_error(values)


@pytest.mark.parametrize(
    "values", [{}, UNLABELLED | {"scoring": None}, {"sampling": {"count": 1}, "scoring": None}, {"scoring": None}]
)
def test_harmless_values_are_accepted(plan_error, values):
    assert plan_error(values) == ""


def test_milestones_that_a_finished_run_did_not_keep(plan_error):
    values = {"training": {"iterations": 60, "keep_every": 20}, "selection": {}}
    run = Path("results/runs/two/seed0")
    run.mkdir(parents=True)
    assert plan_error(values) == ""
    record = {"format": "udpm-run/1", "experiment": "two", "seed": 0, "iterations": 40, "weights_sha256": "0" * 64}
    provenance = {"versions": {}, "commit": None, "machine": ""}
    (run / "complete.json").write_text(json.dumps(record | {"provenance": provenance}))
    expected = "two.yaml: selection: {0} is finished, but {0}/milestones/0000000{1}.safetensors was not found"
    assert expected.format(run, 20) in plan_error(values)
    (run / "milestones").mkdir()
    (run / "milestones/000000020.safetensors").touch()
    assert expected.format(run, 40) in plan_error(values)
    scored = Path("results/selection/two/seed0/scores/40.json")
    scored.parent.mkdir(parents=True)
    scored.touch()
    # Milestones beyond its end will be kept when it trains on.
    assert plan_error(values) == ""


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"experiments": "two,digits"}, "experiments: list several names in brackets: [two,digits], got 'two,digits'"),
        ({"experiments": "two digits"}, "experiments: list several names in brackets: [two,digits]"),
        ({"experiments": "Digits.yaml"}, "Digits.yaml.yaml: no such file; did you mean digits?"),
        ({"experiments": "FFHQ64"}, "FFHQ64.yaml: no such file; did you mean ffhq64?"),
        ({"experiments": "two", "seeds": 3}, "seeds: a key of experiments; write it to config/experiments/NAME.yaml"),
    ],
)
def test_a_mistake_in_the_targets_says_what_would_be_right(plan_error, given, expected):
    assert expected in plan_error({}, given)


def test_a_file_is_no_folder_of_results(plan_error):
    Path("results").touch()
    assert plan_error({}) == "error: config/config.yaml (or --config): results: results is not a folder\n"
    below, long = ({"experiments": "two", "results": path} for path in ("results/below", "x" * 300))
    assert "results: results/below is not a folder" in plan_error({}, below)
    assert "File name too long; choose another folder" in plan_error({}, long)


def test_an_experiment_that_is_not_scored(tmp_path):
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "config/experiments/two.yaml").write_text("extends: digits-smoke\nscoring: null\n")
    done = snakemake("-n", "--config", "experiments=two", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for rule in ("train_model", "sample_images", "render_samples", "render_latents", "summarize", "write_card"):
        assert f"rule {rule}:" in done.stdout
    for rule in ("train_extractor", "compute_reference", "score_", "render_neighbours", "render_table"):
        assert f"rule {rule}" not in done.stdout


def test_make_demo_in_any_folder(tmp_path):
    clone, results = tmp_path / "my $(touch PWNED) 'clone'", '-r "e" $(touch PWNED) `touch PWNED`;touch PWNED'
    (clone / ".venv/bin").mkdir(parents=True)
    (clone / "envs").mkdir()
    (clone / "config").mkdir()
    (clone / ".snakemake").mkdir()
    for name in ("Makefile", "pyproject.toml", "envs/constraints.txt"):
        shutil.copy(ROOT / name, clone / name)
    (clone / "config/config.yaml").write_text(json.dumps({"experiments": ["digits"], "results": results}))
    for name in ("tables/scores.md", "figures/a.svg"):
        (clone / results / name).parent.mkdir(parents=True)
        (clone / results / name).write_text("the scores")
    python = clone / ".venv/bin/python"
    made = 'echo "$@" >> said; echo > .snakemake/report.html'
    python.write_text(f'#!/bin/sh\n[ "$2" = snakemake ] && {{ {made}; }} || exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (clone / ".venv/.installed").touch()
    done = run("make", "-s", "--no-print-directory", "demo", cwd=clone, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    report = f"{clone}/{results}/report.html"
    assert done.stdout.splitlines()[-1] == f"the scoresReport: {report}"
    assert (clone / "said").read_text().splitlines() == [
        "-m snakemake --quiet rules",
        "-m snakemake --quiet all --report .snakemake/report.html",
    ]
    assert Path(report).exists()
    assert not list(tmp_path.rglob("PWNED"))
