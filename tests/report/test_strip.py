"""A sweep's points side by side, the forward process; same scores, same bytes; and mistakes in sweeps."""

import json
import re
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from PIL import Image
from scored import save_samples

from udpm.config import to_json
from udpm.data.store import open_store
from udpm.diffusion.process import seeded, step
from udpm.diffusion.schedule import Schedule
from udpm.report.figures.style import LARGEST
from udpm.report.figures.sweep import ROWS

SUFFIXES = (".svg", ".pdf", ".png", ".csv")
TABLES = (".csv", ".md", ".tex", ".html")
POINTS = {
    "full": {},
    "no-gan": {"losses.adversarial_weight": 0, "losses.reconstruction_weight": 1},
    "no-class": {"generator.class_conditional": False, "discriminator.class_conditional": False, "latents.labels": []},
    "gone": {"losses.r1_gamma": 1},
}


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """A sweep called mine in ./config; all points but one have samples and scores in ./results."""
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, seeds=[0, 1, 2], points=POINTS, grids={"g": {"a": axis("a"), "b": axis("b")}})
    for number, name in enumerate(["full", "no-gan", "no-class"]):
        draw(tmp_path, name, number)
        for seed in range(2 if name == "no-class" else 3):
            score(tmp_path, name, seed, 10.0 * (number + 1) + seed)
    return tmp_path


def axis(name):
    key = {"a": "process.sigmas[3]", "b": "losses.adversarial_weight"}[name]
    return {"key": key, "values": [0.25, 0.5]}


def write(folder, **values):
    (folder / "config/sweeps/mine.yaml").write_text(yaml.safe_dump({"base": "digits", **values}, sort_keys=False))


def draw(folder, name, number, classes=10):
    path = folder / f"results/samples/mine.{name}/seed0.npz"
    path.parent.mkdir(parents=True)
    classes = 0 if name == "no-class" else classes
    labels = np.arange(20) % 10 if classes else np.zeros(20, dtype=np.int64)
    images = np.full((20, 16, 16, 3), 60 * number, dtype=np.uint8)
    save_samples(path, images, labels, {"classes": classes, "seed": 0, "nfe": 3})


def score(folder, name, seed, value):
    metrics = {"frechet_distance": {"value": value, "label": "FD (digits features)"}}
    protocol = {"n": 20, "extractor": {"sha256": "e" * 64}, "reference": {"sha256": "f" * 64}}
    path = folder / f"results/scores/mine.{name}/seed{seed}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    found = {"format": "udpm-score/1", "subject": {"kind": "samples"}, "metrics": metrics, "protocol": protocol}
    path.write_text(json.dumps(found))


def test_the_strip_shows_existing_images(sweep):
    figures = plt.get_fignums()
    assert not tiny.call("sweep", "strip", "mine", "--output", "strip")
    table = pd.read_csv("strip.csv").set_index("point")
    assert list(table.index)[:4] == list(POINTS)
    assert list(table["images"]) == ["shown"] * 3 + ["missing"] * 5
    assert "seed0.json: sample set's record not found" in table.loc["gone", "why_missing"]
    assert table.loc["no-class", "differs_in"] == "no class"
    assert table.loc[["full", "no-gan"], "differs_in"].isna().all()
    assert table.loc["no-gan", ["frechet_distance", "frechet_distance_std"]].tolist() == [21.0, 1.0]
    assert table.loc["no-gan", "frechet_distance_values"] == "20.0 21.0 22.0"
    assert str(table.loc["no-class", "missing_seeds"]) in ("2", "2.0")
    assert set(table["image_numbers"]) == {"0 1 2 3 4 5 6 7 8 9"}
    assert (sweep / "strip.svg").read_text().count(">missing</text>") == 50
    assert plt.get_fignums() == figures
    with Image.open("strip.png") as image:
        assert max(image.size) <= LARGEST


def test_only_the_best_of_many_points_are_shown(sweep):
    write(sweep, points={f"p{n}": {"losses.r1_gamma": n + 1} for n in range(ROWS + 6)})
    for number in range(ROWS + 6):
        score(sweep, f"p{number}", 0, 100.0 - number)
    assert not tiny.call("sweep", "strip", "mine", "--output", "strip")
    assert pd.read_csv("strip.csv")["point"].tolist() == [f"p{n}" for n in range(6, ROWS + 6)]
    with Image.open("strip.png") as image:
        assert max(image.size) <= LARGEST


def test_a_strip_without_images_shows_them_as_missing(sweep):
    shutil.rmtree("results")
    (sweep / "results").mkdir()
    assert not tiny.call("sweep", "strip", "mine", "--output", "strip")
    assert set(pd.read_csv("strip.csv")["images"]) == {"missing"}


@pytest.mark.slow
def test_same_scores_same_bytes(sweep):
    few = {"a": axis("a"), "b": axis("b") | {"values": [0.5]}}
    write(sweep, points={name: POINTS[name] for name in ("full", "gone")}, grids={"g": few})
    for name in ("one", "two"):
        for verb, suffixes in ((("plan", "mine"), TABLES), (("rank", "mine"), TABLES), (("strip", "mine"), SUFFIXES)):
            assert not tiny.call("sweep", *verb, "--output", f"{name}/{verb[0]}")
            assert all((sweep / f"{name}/{verb[0]}{suffix}").stat().st_size for suffix in suffixes)
        assert not tiny.call("sweep", "heat", "mine", "g", "--output", f"{name}/heat")
        assert not tiny.call("sweep", "rank", "mine", "--best", f"{name}/best.yaml")
    first, second = (tiny.snapshot(sweep / name) for name in ("one", "two"))
    assert len(first) == 4 + 4 + 4 + 4 + 1
    assert first == second


def test_the_forward_process_is_that_of_training(digits, tmp_path):
    run = tiny.run_config()
    (tmp_path / "run.json").write_text(to_json(run))
    for name in ("a", "b"):
        arguments = (tmp_path / "run.json", "--dataset", digits / "dataset", "--output", tmp_path / name)
        assert not tiny.call("figure", "forward", *arguments)
    assert all((tmp_path / f"a{end}").read_bytes() == (tmp_path / f"b{end}").read_bytes() for end in SUFFIXES)
    table = pd.read_csv(tmp_path / "a.csv")
    assert len(table) == 10 * run.process.levels
    assert sorted(table["label"].unique()) == list(range(10))
    row = table[table["level"] == 1].iloc[3]
    store, schedule = open_store(digits / "dataset"), Schedule.from_config(run.process)
    number = int(row["image"])
    image = torch.from_numpy(store.images[number] / 127.5 - 1).float().movedim(-1, 0)[None]
    state = step(schedule, image, 1, seeded(schedule, 16, 0, [number]).noise(1))
    assert row["mean"] == pytest.approx(float(state.mean()), abs=1e-5)
    assert row["std"] == pytest.approx(float(state.std(correction=0)), abs=1e-5)
    with Image.open(tmp_path / "a.png") as picture:
        assert max(picture.size) <= LARGEST


GRID = {"key": "losses.r1_gamma", "values": [1]}
MISTAKES = {
    "sweep point invalid": ({"points": {"p": {"process.sigmas": [1]}}}, "point p: process.sigmas: has 1 values"),
    "sweep point twice": ({"points": {"a-1": {}}, "grids": {"g": {"a": GRID}}}, "point a-1: duplicate"),
    "axis that names no key": ({"grids": {"g": {"a": GRID | {"key": "losses.r1"}}}}, "losses.r1: not a key of an exp"),
}


@pytest.mark.parametrize("verb", ["plan", "status", "rank", "strip"])
@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_in_a_sweep_changes_nothing(sweep, capsys, case, verb):
    values, expected = MISTAKES[case]
    write(sweep, **values)
    options = () if verb == "status" else ("--output", "out")
    refused(sweep, capsys, ("sweep", verb, "mine", *options), expected)


@pytest.mark.parametrize("value", ["many", "[1]", "-1", "true"])
def test_a_published_file_with_a_wrong_number_changes_nothing(sweep, capsys, value):
    path = sweep / "config/published/table1.yaml"
    path.write_text(path.read_text().replace("value: 13.36", f"value: {value}", 1))
    refused(sweep, capsys, ("paper", "table1", "--output", "out"), "table1.yaml: rows[0].value: ")
    path = sweep / "config/published/runtime.yaml"
    path.write_text(re.sub(r"step: [\d.]+", f"step: {value}", path.read_text(), count=1))
    refused(sweep, capsys, ("paper", "runtime", "--output", "out"), "runtime.yaml: costs[0].step: ")


def refused(folder, capsys, command, expected):
    before = tiny.snapshot(folder)
    assert tiny.call(*command) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert expected in text, text
    assert tiny.snapshot(folder) == before


def test_a_missing_score_is_noted_and_the_rest_is_ranked(sweep, capsys):
    before = tiny.snapshot(sweep / "results")
    assert not tiny.call("sweep", "rank", "mine")
    text = capsys.readouterr().out
    assert "no-class, seed 2: no score (results/scores/mine.no-class/seed2.json: score not found" in text
    assert "21.00 ± 1.00" in text
    assert tiny.snapshot(sweep / "results") == before


def test_tables_of_no_runs_say_not_run(sweep):
    (sweep / "none").mkdir()
    names = ("table1", "table2", "peers", "digits")
    assert not tiny.call("paper", *names, "--results", "none", "--output", "out")
    assert all("not run" in (sweep / f"out/{name}.md").read_text() for name in names)
    assert not list((sweep / "none").iterdir())
