"""The best milestone: selected on separate images, scored on others, and reported next to the last."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
import yaml
from dag import SOURCES, snakemake
from scored import save_samples
from tiny import ROOT

from udpm.config import load_experiment
from udpm.core.files import sha256

EXPERIMENT = "config/experiments/digits-smoke.yaml"
RUN = {"kind": "samples", "experiment": "x", "run_seed": 0, "weights": "ema", "seed": 1, "posterior": "scalar"}
EXTRACTOR = {"name": "digits", "sha256": "a" * 64}
REFERENCE = {"dataset": "digits", "split": "train", "n": 1297, "sha256": "c" * 64}
PROTOCOL = {"n": 40, "extractor": EXTRACTOR, "reference": REFERENCE, "neighbours": 3}


def score(iteration, distance, **changes):
    """A milestone's score as `udpm score` writes it, shortened."""
    subject = RUN | {"iteration": iteration, "weights_sha256": f"{iteration:064}"} | changes.get("subject", {})
    return {
        "format": changes.get("format", "udpm-score/1"),
        "subject": subject,
        "protocol": PROTOCOL | changes.get("protocol", {}),
        "metrics": {
            "frechet_distance": {"value": distance, "label": "FD (digits features)"},
            "kernel_distance": {"value": 0.1, "std": 0.01, "label": "kernel distance"},
            "precision": {"value": None, "label": "precision", "reason": "because"},
        },
    }


def write(path, iteration, distance, **changes):
    path.write_text(json.dumps(score(iteration, distance, **changes)))


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Scores of three milestones, and a sample set of the best."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "config", tmp_path / "config")
    for iteration, distance in ((10, 5.0), (20, 3.0), (30, 3.0)):
        write(tmp_path / f"{iteration}.json", iteration, distance)
    assert tiny.call("select", "30.json", "10.json", "20.json", "--output", "selection.json") == 0
    return tmp_path


def test_selects_the_earliest_milestone_of_least_distance(project):
    found = json.loads((project / "selection.json").read_text())
    assert (found["iteration"], found["frechet_distance"], found["seed"]) == (20, 3.0, 1)
    assert found["protocol"]["n"] == 40
    assert [row["iteration"] for row in found["milestones"]] == [10, 20, 30]
    assert found["milestones"][0]["kernel_distance_std"] == 0.01


def test_table_and_curve_of_milestones(project):
    for stem in ("a", "b"):
        assert tiny.call("select", "10.json", "20.json", "--output", "s.json", "--table", f"{stem}-table") == 0
        assert tiny.call("figure", "selection", "s.json", "--output", stem) == 0
        for suffix in (".svg", ".pdf", ".png", ".csv", "-table.csv", "-table.md", "-table.tex", "-table.html"):
            assert (project / f"{stem}{suffix}").read_bytes() == (project / f"a{suffix}").read_bytes()
    text = (project / "a-table.md").read_text()
    assert "20 (selected)" in text
    assert "–" in text
    assert "40 images of each milestone, sampling seed 1" in text
    table = pd.read_csv(project / "a.csv")
    assert table["frechet_distance"].tolist() == [5.0, 3.0]
    assert table["selected"].tolist() == [False, True]
    assert table["precision"].isna().all()


def configured(folder, **changes):
    """Change sections of an experiment that has a selection."""
    values = yaml.safe_load((folder / EXPERIMENT).read_text())
    values["selection"] = {"count": 40} | changes.pop("selection", {})
    values["training"]["keep_every"] = 20
    for section, keys in changes.items():
        values[section] = keys if isinstance(keys, str) else values.get(section, {}) | keys
    (folder / EXPERIMENT).write_text(yaml.safe_dump(values))


def drawn(folder, **changes):
    """A sample set, and nothing else that scoring needs: a wrong selection is refused before it is looked for."""
    record = RUN | {"seed": 0, "iteration": 20, "weights_sha256": f"{20:064}", "classes": 10} | changes
    save_samples(folder / "best.npz", np.zeros((4, 16, 16, 3), np.uint8), np.zeros(4, np.int64), record)
    (folder / "scoring.json").write_text('{"extractor": "digits", "threads": 1}')


RESOLVE = "resolve digits-smoke --part selection_sampling --output out.json"
SELECT = "select 10.json 20.json --output out.json"
SCORE = "score --images best.npz --selection selection.json --reference r.npz --config scoring.json --output out.json"
BAD = {
    "the same seed": (
        lambda f: configured(f, selection={"seed": 0}),
        RESOLVE,
        "digits-smoke.yaml: selection.seed: 0 is also sampling.seed; use another",
    ),
    "a milestone that is not kept": (
        lambda f: configured(f, selection={"milestones": [20, 30]}),
        RESOLVE,
        "selection.milestones: 30 is not kept; training keeps every 20 (keep_every) up to 40",
    ),
    "a milestone after the end": (
        lambda f: configured(f, selection={"milestones": [60]}),
        RESOLVE,
        "selection.milestones: 60 is not kept; training keeps every 20",
    ),
    "a milestone twice": (
        lambda f: configured(f, selection={"milestones": [20, 20]}),
        RESOLVE,
        "selection.milestones: duplicate iteration in [20, 20]",
    ),
    "no milestones": (
        lambda f: configured(f, training={"keep_every": 0}),
        RESOLVE,
        "selection: training keeps no milestones; training.keep_every is 0, must be in 1..40",
    ),
    "milestones after the end": (
        lambda f: configured(f, training={"keep_every": 50}),
        RESOLVE,
        "training.keep_every is 50, must be in 1..40",
    ),
    "epochs that may end before": (
        lambda f: configured(f, training={"epochs": 1}),
        RESOLVE,
        "selection.milestones: is missing; training.epochs may end before the last milestone",
    ),
    "imported weights": (
        lambda f: (configured(f, training="imported"), (f / EXPERIMENT).open("a").write("weights: x.pt\n")),
        RESOLVE,
        "selection: imported weights have no milestones to choose from; leave it out",
    ),
    "raw weights": (
        lambda f: configured(f, sampling={"weights": "raw"}),
        RESOLVE,
        "sampling.weights: raw, but milestones keep only averages; use ema",
    ),
    "one milestone and the best": (
        lambda f: configured(f, sampling={"iteration": 20}),
        RESOLVE,
        "sampling.iteration: samples one milestone, but selection samples the best; leave one out",
    ),
    "a missing score": (lambda f: (f / "20.json").unlink(), SELECT, "20.json: score not found"),
    "no score": (lambda f: write(f / "20.json", 20, 3.0, format="other"), SELECT, "20.json: format is 'other'"),
    "another seed": (
        lambda f: write(f / "20.json", 20, 3.0, subject={"seed": 2}),
        SELECT,
        "20.json: seed differs from that of 10.json; score all milestones alike",
    ),
    "another run": (
        lambda f: write(f / "20.json", 20, 3.0, subject={"run_seed": 2}),
        SELECT,
        "20.json: run seed differs from that of 10.json",
    ),
    "another count": (
        lambda f: write(f / "20.json", 20, 3.0, protocol={"n": 41}),
        SELECT,
        "20.json: n differs from that of 10.json",
    ),
    "the same milestone twice": (
        lambda f: write(f / "20.json", 10, 3.0),
        SELECT,
        "two of these files score iteration 10",
    ),
    "no milestone": (
        lambda f: write(f / "20.json", 20, 3.0, subject={"iteration": None}),
        SELECT,
        "20.json: not the score of a milestone",
    ),
    "no selection": (lambda f: (f / "s.json").write_text("{}"), "figure selection s.json --output t", "format is None"),
    "a missing selection": (lambda f: None, "figure selection s.json --output t", "s.json: selection not found"),
    "a selection of no sample set": (drawn, SCORE, "--selection is for --samples"),
    "a selection and an iteration": (
        lambda f: None,
        "sample w.safetensors --selection selection.json --iteration 10 --output out.npz",
        "give either --iteration or --selection",
    ),
    "images that were chosen by": (
        lambda f: drawn(f, seed=1),
        SCORE.replace("--images", "--samples") + " --dataset dataset",
        "selection.json: selected on images of sampling seed 1, like these; score images of another seed",
    ),
    "images of another milestone": (
        lambda f: drawn(f, iteration=10, weights_sha256=f"{10:064}"),
        SCORE.replace("--images", "--samples") + " --dataset dataset",
        "selection.json: selects iteration 20 of x, but these images are of other weights (iteration 10)",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(project, digits, case, capsys):
    shutil.copytree(digits / "dataset", project / "dataset")
    prepare, command, expected = BAD[case]
    prepare(project)
    tiny.assert_refused(project, command, expected, capsys)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ""),
        ({"weights_sha256": "0" * 64}, "selects iteration 20 of x, seed 0, but "),
        ({"weights": "raw"}, "selected on images of raw weights, but sampling.weights is ema; set it to raw"),
    ],
)
def test_a_selection_is_of_the_weights_that_are_sampled(project, trained, capsys, changes, expected):
    kept = project / "run/milestones/000000020.safetensors"
    kept.parent.mkdir(parents=True)
    shutil.copy(trained / "weights.safetensors", kept)
    chosen = json.loads((project / "selection.json").read_text()) | {"weights_sha256": sha256(kept)} | changes
    del chosen["record_sha256"]
    (project / "chosen.json").write_text(json.dumps(chosen))
    command = "sample run/weights.safetensors --selection chosen.json --count 2 --threads 1 --device cpu --output o.npz"
    if expected:
        tiny.assert_refused(project, command, expected, capsys)
    else:
        assert not tiny.call(*command.split())


def test_images_for_selection_are_drawn_like_those_to_score(project):
    configured(project, sampling={"labels": [3, 5], "intermediate": True, "images": "flat"})
    experiment = load_experiment("digits-smoke", project / "config")
    expected = {"count": 40, "seed": 1, "intermediate": False, "images": "none"}
    assert experiment.candidates == [20, 40]
    assert experiment.selection_sampling == experiment.sampling.model_copy(update=expected)
    configured(project, selection={"milestones": [40]}, training={"epochs": 3})
    assert load_experiment("digits-smoke", project / "config").candidates == [40]


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A copy of the project's sources in which a run's best of two milestones was chosen."""
    folder = tmp_path_factory.mktemp("study")
    for name in SOURCES:
        shutil.copytree(ROOT / name, folder / name)
    values = {"extends": "digits-smoke", "training": {"keep_every": 20}, "scoring": {"threads": 1}}
    values |= {"sampling": {"count": 60, "threads": 1}, "selection": {"count": 40, "seed": 7}}
    (folder / "config/experiments/chosen.yaml").write_text(yaml.safe_dump(values))
    done = snakemake(*TARGETS, *GIVEN, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


GIVEN = ("--config", "experiments=chosen")
TARGETS = ("results/figures/chosen/seed0/selection.png", "results/tables/scores.csv")


@pytest.mark.slow
def test_the_best_and_the_last_milestone_share_a_table(study):
    folder = study / "results/selection/chosen/seed0"
    selection = json.loads((folder / "selection.json").read_text())
    scores = {row["iteration"]: row["frechet_distance"] for row in selection["milestones"]}
    assert list(scores) == [20, 40]
    assert scores[selection["iteration"]] == min(scores.values())
    table = pd.read_csv(study / "results/tables/scores.csv")
    last, best = table.iloc[0], table.iloc[1]
    assert table["subject"].tolist()[:2] == ["UDPM, seed 0, last", "UDPM, seed 0, best of 2 milestones"]
    assert (best["n"], best["sampling_seed"], best["iteration"]) == (60, 0, selection["iteration"])
    assert (best["selection_n"], best["selection_seed"]) == (40, 7)
    assert best["selection_iterations"] == "20 40"
    assert best["selection_frechet_distance"] == selection["frechet_distance"] != best["frechet_distance"]
    assert (last["iteration"], last["sampling_seed"]) == (40, 0)
    text = (study / "results/tables/scores.md").read_text()
    assert (
        "chosen from iterations 20, 40 by the least Fréchet distance of 40 other images each (sampling seed 7" in text
    )


@pytest.mark.slow
def test_a_score_of_the_best_can_be_made_again_from_itself(study, monkeypatch):
    monkeypatch.chdir(study)
    path = "results/scores/chosen/seed0_best.json"
    assert tiny.call("score", "--again", path, "--output", "again.json") == 0
    found, expected = (json.loads((study / name).read_text()) for name in ("again.json", path))
    assert found["subject"] == expected["subject"]
    assert found["metrics"]["frechet_distance"] == expected["metrics"]["frechet_distance"]
    assert found["request"]["selection"] == "results/selection/chosen/seed0/selection.json"


@pytest.mark.slow
def test_a_changed_selection_retrains_nothing_and_a_lost_milestone_is_one_line(study):
    again = snakemake("-n", *TARGETS, *GIVEN, cwd=study)
    assert "Nothing to be done" in again.stdout + again.stderr
    path = study / "config/experiments/chosen.yaml"
    path.write_text(path.read_text().replace("seed: 7", "seed: 8"))
    planned = snakemake("-n", *TARGETS, *GIVEN, cwd=study).stdout
    assert "sample_milestone" in planned
    assert "train_model" not in planned
    assert "rule sample_images" not in planned
    (study / "results/runs/chosen/seed0/milestones/000000020.safetensors").unlink()
    sample = "results/selection/chosen/seed0/samples/20.npz"
    assert snakemake(sample, *GIVEN, cwd=study).returncode == 1
    log = (study / "results/logs/sample_milestone/chosen_seed0_20.log").read_text().splitlines()
    assert len(log) == 1
    assert "no weights of iteration 20; kept are 40; take one of those" in log[0]
