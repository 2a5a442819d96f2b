"""`udpm compare`: runs, sample sets, scores and images side by side."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image
from scored import fid, results, save_samples

from udpm.config import Sampling
from udpm.sampling.generate import draw_samples


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """Results of runs a and b of one seed each, with samples, and a score of each: FID 18 and 20."""
    folder = tmp_path_factory.mktemp("compared")
    for name, value in (("a", 18.0), ("b", 20.0)):
        run = folder / "runs" / name / "seed0"
        shutil.copytree(trained, run)
        samples = folder / "samples" / name / "seed0.npz"
        samples.parent.mkdir(parents=True)
        draw_samples(run / "weights.safetensors", Sampling(count=20, threads=1, seed=int(name == "b")), samples)
        digest = json.loads(samples.with_suffix(".json").read_text())["sha256"]
        score = fid(value, name, selection=None, n=20, samples_sha256=digest)
        score["metrics"]["precision"] = {"value": 0.5, "label": "precision"}
        results(folder, seed0=score)
    return folder


def compared(folder, tmp_path, *subjects):
    assert tiny.call("compare", *subjects, "--output", tmp_path / "c") == 0
    lines = [line for line in (tmp_path / "c/compare.md").read_text().splitlines() if line.startswith("|")]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    notes = (tmp_path / "c/compare.md").read_text().split("\n\n", 1)[1]
    return [dict(zip(head, row, strict=True)) for row in rows], notes


def test_runs_side_by_side(folder, tmp_path):
    rows, notes = compared(folder, tmp_path, folder / "runs/a/seed0", folder / "runs/b/seed0")
    assert [row[""] for row in rows] == ["a/seed0", "b/seed0"]
    assert [row["FID"] for row in rows] == ["18.00", "20.00"]
    assert [row["precision"] for row in rows] == ["0.500", "0.500"]
    assert rows[0]["iterations"] == rows[1]["iterations"] != "–"
    assert "not comparable" not in notes
    curves = pd.read_csv(tmp_path / "c/curves.csv")
    assert set(curves["run"]) == {"a/seed0", "b/seed0"}
    assert curves.groupby("run")["generator/reconstruction/l1"].count().tolist() == [2, 2]
    assert pd.read_csv(tmp_path / "c/grid.csv")["noise"].tolist() == [
        f"sampling seed {seed}, side 16, 3 levels, class-conditional" for seed in (0, 1)
    ]
    for name in ("curves", "grid"):
        with Image.open(tmp_path / f"c/{name}.png") as image:
            assert image.size[0] > 300


def test_a_sample_set_a_score_and_a_folder(folder, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)
    (tmp_path / "theirs").mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"theirs/{number}.png")
    subjects = (folder / "samples/a/seed0.npz", folder / "scores/b/seed0.json", tmp_path / "theirs")
    rows, notes = compared(folder, tmp_path, *subjects)
    assert [row["FID"] for row in rows] == ["18.00", "20.00", "–"]
    assert [row["N"] for row in rows] == ["20", "20", "–"]
    assert "theirs: no score of it found" in notes
    assert pd.read_csv(tmp_path / "c/grid.csv")["images"].tolist() == [3, 3]
    assert not (tmp_path / "c/curves.png").exists()


def test_images_drawn_otherwise_are_noted(tmp_path):
    given = {"a": {}, "b": {"guidance": 2.0, "nfe": 6}, "c": {"kind": "images"}}
    for name, changes in given.items():
        results(tmp_path / name, seed0=fid(selection=None, **changes))
    rows, notes = compared(tmp_path, tmp_path, *(tmp_path / f"{name}/scores/cifar10/seed0.json" for name in given))
    assert [row["FID"] for row in rows] == ["6.90", "6.90", "6.90"]
    ends = "guidance 2.0 instead of 1.0, network calls 6 instead of 3."
    found = [line for line in notes.splitlines() if "not drawn as" in line]
    assert found == [f"- b/scores/cifar10/seed0.json: not drawn as a/scores/cifar10/seed0.json: {ends}"]


def test_guidance_does_not_change_the_noise(tmp_path):
    for guidance, calls in ((1.0, 3), (2.0, 6)):
        record = {"seed": 0, "classes": 10, "guidance": guidance, "nfe": calls}
        images, labels = np.zeros((2, 16, 16, 3), np.uint8), np.zeros(2, np.int64)
        save_samples(tmp_path / f"{guidance}.npz", images, labels, record)
    compared(tmp_path, tmp_path, tmp_path / "1.0.npz", tmp_path / "2.0.npz")
    noises = pd.read_csv(tmp_path / "c/grid.csv")["noise"].tolist()
    assert noises == 2 * ["sampling seed 0, side 16, 3 levels, class-conditional"]


def test_a_score_of_other_images_is_not_shown(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "r")
    path = tmp_path / "r/scores/a/seed0.json"
    values = json.loads(path.read_text())
    values["subject"]["samples_sha256"] = "0" * 64
    path.write_text(json.dumps(values))
    rows, notes = compared(folder, tmp_path, tmp_path / "r/runs/a/seed0", tmp_path / "r/runs/b/seed0")
    assert [row["FID"] for row in rows] == ["–", "20.00"]
    assert "a/seed0: no score of it found" in notes


def test_samples_of_earlier_weights_are_not_a_runs(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "r")
    path = tmp_path / "r/runs/a/seed0/complete.json"
    values = json.loads(path.read_text())
    values.pop("record_sha256", None)
    path.write_text(json.dumps(values | {"weights_sha256": "0" * 64}))
    (tmp_path / "r/runs/b/seed0/complete.json").unlink()
    rows, notes = compared(folder, tmp_path, tmp_path / "r/runs/a/seed0", tmp_path / "r/runs/b/seed0")
    assert all("FID" not in row for row in rows)
    assert notes.count("no score of it found") == 2


def test_figures_of_an_earlier_comparison_are_removed(folder, tmp_path):
    compared(folder, tmp_path, folder / "runs/a/seed0", folder / "runs/b/seed0")
    compared(folder, tmp_path, folder / "scores/a/seed0.json", folder / "scores/b/seed0.json")
    assert {path.stem for path in (tmp_path / "c").iterdir()} == {"compare"}


def test_runs_without_losses_have_no_curves(folder, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text('{"iteration": 1}\n')
    compared(folder, tmp_path, tmp_path / "a", tmp_path / "b")
    assert not (tmp_path / "c/curves.png").exists()


@pytest.mark.parametrize(
    ("changes", "shown", "note"),
    [
        (
            {"sha256": "9" * 64},
            "not comparable",
            "b/seed0.json: not comparable with a/seed0.json; these differ: extractor.",
        ),
        ({"n": 40}, "20.00", "N differs. Distances fall as N grows: compare only those of equal N"),
    ],
)
def test_scores_of_other_protocols(folder, tmp_path, changes, shown, note):
    results(tmp_path, seed0=fid(18.0, "a", n=20))
    results(tmp_path, seed0=fid(20.0, "b", n=20) if "n" not in changes else fid(20.0, "b", **changes))
    if "sha256" in changes:
        path = tmp_path / "scores/b/seed0.json"
        values = json.loads(path.read_text())
        values["protocol"]["extractor"] |= changes
        path.write_text(json.dumps(values))
    rows, notes = compared(folder, tmp_path, tmp_path / "scores/a/seed0.json", tmp_path / "scores/b/seed0.json")
    assert [row["FID"] for row in rows] == ["18.00", shown]
    assert note in notes


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        (("runs/a/seed0",), "give at least two things to compare"),
        (("runs/a/seed0", "runs/a/seed0"), "seed0: is given twice"),
        (
            ("runs/a/seed0", "nothing"),
            "nothing: not found; expected a run's folder, a sample set, a score, or images",
        ),
        (("runs/a/seed0", "config.txt"), "config.txt: another file; expected a run's folder"),
        (
            ("runs/a/seed0", "scores/a/seed0.json", "runs/a/seed0/config.json"),
            "config.json: a run's resolved configuration",
        ),
        (("runs/a/seed0", "scores"), "scores: "),
    ],
)
def test_what_cannot_be_compared(folder, tmp_path, monkeypatch, capsys, subjects, expected):
    monkeypatch.chdir(folder)
    (folder / "config.txt").write_text("x")
    tiny.assert_refused(folder, f"compare {' '.join(subjects)} --output {tmp_path / 'c'}", expected, capsys)
    assert not (tmp_path / "c").exists()
