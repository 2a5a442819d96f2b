"""The DAG with Inception: fetched or found, in all three modes, without a network."""

import csv
import itertools
import json
import re
import shlex
import shutil

import fake_transformers
import inception
import numpy as np
import pytest
import tiny
import torch
import yaml
from dag import SOURCES, snakemake
from tiny import ROOT

from udpm.core.files import sha256
from udpm.runs.layout import suffix_of

MODES = ("clean", "legacy_tensorflow", "legacy_pytorch")
# Paths that the file system allows. A shell that evaluated them would leave files called PWNED.
FOLDER = "-w e'i\"ghts $(touch PWNED)"
WEIGHTS = "we'ights $(touch PWNED) <name> #.safetensors"
NETWORK = "x$(touch PWNED);touch PWNED.pt"
STATISTICS = "-the'irs $(touch PWNED) & `touch PWNED`.npz"


@pytest.fixture
def study(tmp_path, trained):
    """A copy of the project's sources with an experiment for each mode of a fake Inception, DINOv2 and CLIP."""
    shutil.copy(trained / "weights.safetensors", tmp_path / WEIGHTS)
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name)
    digest = sha256(inception.write(tmp_path / FOLDER))
    fake_transformers.write_dinov2(tmp_path / FOLDER)
    clip = sha256(fake_transformers.write_clip(tmp_path / FOLDER))
    own = {mode: {"extractor": "inception", "inception_mode": mode, "weights_sha256": digest} for mode in MODES}
    own |= {"dinov2": {"extractor": "dinov2"}, "clip": {"extractor": "clip", "weights_sha256": clip}}
    scoring = {
        "weights_folder": FOLDER,
        "download": False,
        "kernel_subsets": 3,
        "reference_split": "test",
        "threads": 1,
    }
    for name, changes in own.items():
        values = {"extends": "digits-paper", "generator": {"channels": tiny.SMALL["generator.channels"]}}
        values |= {"training": "imported", "weights": WEIGHTS, "sampling": {"count": 50, "threads": 1}}
        values["scoring"] = scoring | changes
        (tmp_path / f"config/experiments/{name}.yaml").write_text(yaml.safe_dump(values))
    return tmp_path


@pytest.mark.soak
def test_inception_runs_offline_in_all_modes(study):
    given = ("--config", f"experiments=[{','.join(MODES)}]")
    targets = [f"results/scores/{mode}/seed0.json" for mode in MODES]
    done = snakemake(*targets, *given, cwd=study)
    assert done.returncode == 0, done.stdout + done.stderr
    scores = [json.loads((study / target).read_text()) for target in targets]
    for mode, score in zip(MODES, scores, strict=True):
        assert f"clean-fid's mode {mode}" in score["protocol"]["preprocessing"]
    values = sorted(score["metrics"]["frechet_distance"]["value"] for score in scores)
    assert all(0 < low < 0.999 * high for low, high in itertools.pairwise(values))
    assert all(len(score["metrics"]["class_frechet_distance"]["by_class"]) == 10 for score in scores)
    assert all(score["metrics"]["inception_score"]["value"] >= 1 for score in scores)
    assert "FID" not in scores[0]["metrics"]["frechet_distance"]["label"]
    for name in ("dinov2", "clip"):
        target = f"results/scores/{name}/seed0.json"
        done = snakemake(target, "--config", f"experiments={name}", cwd=study)
        assert done.returncode == 0, done.stdout + done.stderr
        distance = json.loads((study / target).read_text())["metrics"]["frechet_distance"]
        assert distance["value"] > 0
        assert distance["label"] == f"FD (stand-in for {name} features)"
    assert list((study / "results/features").glob("*.npz"))
    again = snakemake("-n", *targets, *given, cwd=study)
    assert "Nothing to be done" in again.stdout + again.stderr


def test_missing_weights_are_fetched_before_anything_needs_them(study):
    (study / FOLDER / "inception-2015-12-05.pt").unlink()
    path = study / "config/experiments/clean.yaml"
    path.write_text(path.read_text().replace("download: false", "download: true"))
    done = snakemake("-n", "-p", "results/scores/clean/seed0.json", "--config", "experiments=clean", cwd=study)
    assert done.returncode == 0, done.stderr
    assert "fetch_extractor" in done.stdout
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("Shell command: udpm ")]
    fetched = next(words for words in commands if "fetch" in words)
    assert fetched[fetched.index("--folder") + 1] == FOLDER
    scored = next(words for words in commands if "score" in words)
    assert scored[scored.index("--extractor") + 1] == f"{FOLDER}/inception-2015-12-05.pt"


@pytest.fixture
def published(tmp_path, trained):
    """A copy of the project's sources with an experiment that is scored against published statistics."""
    for name in SOURCES:
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(trained / "weights.safetensors", tmp_path / WEIGHTS)
    network = torch.nn.Sequential(torch.nn.AvgPool2d(4), torch.nn.Flatten())
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, 16, 16)), str(tmp_path / NETWORK))
    features = np.random.default_rng(0).uniform(0, 255, (200, 48))
    np.savez(tmp_path / STATISTICS, mu=features.mean(0), sigma=np.cov(features, rowvar=False))
    configure(tmp_path)
    return tmp_path


def configure(folder, **changes):
    values = {"extends": "digits-paper", "generator": {"channels": tiny.SMALL["generator.channels"]}}
    values |= {"training": "imported", "weights": WEIGHTS, "sampling": {"count": 20, "threads": 1}}
    values["scoring"] = {"extractor": NETWORK, "reference": STATISTICS, "threads": 1} | changes
    (folder / "config/experiments/published.yaml").write_text(yaml.safe_dump(values))


PUBLISHED = ("results/scores/published/seed0.json", "--config", "experiments=published")


@pytest.mark.slow
def test_scores_against_published_statistics(published):
    done = snakemake(*PUBLISHED, cwd=published)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "compute_reference" not in done.stderr
    found = json.loads((published / PUBLISHED[0]).read_text())
    assert found["metrics"]["frechet_distance"]["value"] > 0
    for name in ("kernel_distance", "precision", "recall", "class_frechet_distance"):
        assert found["metrics"][name]["value"] is None
        assert found["metrics"][name]["reason"]
    reference = found["protocol"]["reference"]
    assert (reference["dataset"], reference["split"], reference["n"]) == (
        STATISTICS.removesuffix(".npz"),
        "published",
        None,
    )
    assert reference["imported_sha256"] == sha256(published / STATISTICS)
    np.savez(published / STATISTICS, mu=np.zeros(3), sigma=np.eye(3))
    again = snakemake("-n", *PUBLISHED, cwd=published)
    assert "import_reference" in again.stdout
    assert "sample_images" not in again.stdout


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reference": "no.npz"}, "published.yaml: scoring.reference: no.npz not found"),
        ({"extractor": "digits"}, "scoring.reference: published statistics cannot belong to the digits extractor"),
        ({"reference_flips": True}, "scoring.reference_flips: is about the data set's statistics"),
        ({"reference_split": "test"}, "scoring.reference_split: is about the data set's statistics"),
    ],
)
def test_refuses_unusable_published_statistics(published, changes, expected):
    configure(published, **changes)
    before = tiny.snapshot(published)
    done = snakemake("-n", *PUBLISHED, cwd=published)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if expected in line]
    assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1
    assert {path for path in tiny.snapshot(published) if ".snakemake" not in str(path)} == set(before)


SEVERAL = ("--config", "experiments=several")
FILE = "here/net.pt"


@pytest.fixture
def several(published):
    """A copy of the project's sources with an experiment that two extractors score, and no result."""
    (published / "here").mkdir()
    shutil.move(published / NETWORK, published / FILE)
    values = {"extends": "digits-paper", "generator": {"channels": tiny.SMALL["generator.channels"]}}
    values |= {"training": "imported", "weights": WEIGHTS, "sampling": {"count": 20, "threads": 1}}
    values["scoring"] = {"extractor": "digits", "threads": 1}
    path = published / "config/experiments/several.yaml"
    path.write_text(yaml.safe_dump(values))
    values["scoring"]["extractors"] = ["digits", FILE]
    return published, path, yaml.safe_dump(values)


def counted(done):
    return dict(re.findall(r"^(compute_reference|score_\w+|diagnose_run|sample_images) +(\d+)$", done.stdout, re.M))


def test_every_extractor_has_jobs(several):
    folder, path, two = several
    before = counted(snakemake("-n", *SEVERAL, cwd=folder))
    path.write_text(two)
    done = snakemake("-n", "-p", *SEVERAL, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert (before["score_samples"], before["score_baseline"], before["compute_reference"]) == ("1", "2", "1")
    doubled = {rule: str(2 * int(before[rule])) for rule in ("score_samples", "score_baseline", "compute_reference")}
    assert counted(done) == before | doubled
    commands = [shlex.split(line) for line in done.stdout.splitlines() if line.startswith("Shell command: udpm ")]
    suffix = suffix_of(FILE)
    for words in commands:
        if f"results/references/several{suffix}.npz" in words:
            assert words[words.index("--extractor") + 1] == FILE
            assert words[words.index("--config") + 1] == f"results/configs/several/scoring{suffix}.json"
    (card,) = (words for words in commands if words[3:4] == ["card"] or "card" in words[:5])
    assert [word for word in card if word.startswith("results/scores/")] == [
        f"results/scores/several/seed0{end}.json" for end in ("", suffix)
    ]


@pytest.mark.soak
def test_a_further_extractor_is_added_to_finished_results(several):
    folder, path, two = several
    targets = ("results/tables/scores.csv", "results/summary.md", "results/runs/several/seed0/README.md")
    done = snakemake("results/scores/several/seed0.json", *SEVERAL, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    score = folder / "results/scores/several/seed0.json"
    before = score.read_bytes()
    path.write_text(two)
    done = snakemake(*targets, *SEVERAL, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert score.read_bytes() == before
    assert len(re.findall(r"^rule score_samples:|^localrule score_samples:", done.stderr, re.M)) == 1
    with open(folder / targets[0], newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == 2 * ["UDPM, seed 0", "held-out images (floor)", "noise (ceiling)"]
    names = [row["extractor"] for row in rows]
    assert names == 3 * names[:1] + 3 * ["net"]
    assert names[0] != "net"
    for row in rows:
        assert row["frechet_label"] == f"FD ({row['extractor']} features)"
    summary, card = ((folder / name).read_text() for name in targets[1:])
    for label in {row["frechet_label"] for row in rows}:
        assert summary.count(f"| {label} ") == 1
        assert f"Protocol: {label} of N = 20 images" in card
    again = snakemake("-n", *targets, *SEVERAL, cwd=folder)
    assert "Nothing to be done" in again.stdout + again.stderr
