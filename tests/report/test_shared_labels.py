"""Scores by an extractor that learned from the same labels as a network of the training's losses are marked."""

import html
import json

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
import yaml
from PIL import Image
from scored import fid, results

from udpm.config import DatasetConfig, Scoring, load_sweep, to_json
from udpm.core import devices
from udpm.core.files import INCEPTION
from udpm.data.levels import open_levels, write_cache
from udpm.data.prepare import prepare
from udpm.metrics.selection import select
from udpm.networks.weights import loss_features
from udpm.report.figures.curves import milestone_table
from udpm.report.paper.study import StudyReport
from udpm.report.sweep import best_experiment, ranking_table, read_results
from udpm.training import trainer

CONFIG = tiny.ROOT / "config"
WORDS = "†: LPIPS, a loss of the training, compares features that were learned from ImageNet's labels"
EXTRACTORS = {"lite0": Scoring(extractor="lite0", threads=1, kernel_subsets=2), "pixels": None}
RUNS = {"digits": {"losses__lpips_weight": [1.0, 0.0, 0.0]}, "digits-paper": {}}


class Difference(torch.nn.Module):
    """Stands in for LPIPS, whose weights would be downloaded."""

    def forward(self, output, target):
        return (output - target).square().mean(dim=(1, 2, 3))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """Results of a run with LPIPS and one without, each with samples and with scores by lite0 and by pixels."""
    folder = tmp_path_factory.mktemp("shared")
    devices.configure("cpu", 1)
    images = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(images):
        path = folder / f"source/{'ab'[number % 2]}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    dataset = DatasetConfig(source="folder", path=str(folder / "source"), side=16, classes=2)
    prepare(dataset, folder / "dataset")
    write_cache(folder / "dataset", folder / "cache")
    levels = open_levels(folder / "dataset", folder / "cache", 3)
    torch.jit.save(torch.jit.script(torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())), folder / "x.pt")
    EXTRACTORS["pixels"] = Scoring(extractor=str(folder / "x.pt"), threads=1, kernel_subsets=2)
    for name, scoring in EXTRACTORS.items():
        (folder / f"{name}.json").write_text(to_json(scoring))
        command = ("reference", folder / "dataset", "--config", folder / f"{name}.json")
        assert tiny.call(*command, "--output", folder / f"{name}.npz") == 0
    for name, losses in RUNS.items():
        run, samples = folder / f"runs/{name}/seed0", folder / f"samples/{name}/seed0.npz"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(trainer, "load_lpips", lambda *of: Difference())
            config = tiny.run_config(experiment=name, dataset=dataset.model_dump(), **losses)
            trainer.train(config, levels, run, stop=False)
        assert tiny.call("sample", run, "--count", 20, "--threads", 1, "--output", samples) == 0
        for extractor in EXTRACTORS:
            score(folder, extractor, samples, folder / f"{extractor}/{name}/seed0.json")
    return folder


def score(folder, extractor, samples, output):
    output.parent.mkdir(parents=True, exist_ok=True)
    given = ("--samples", samples, "--reference", folder / f"{extractor}.npz", "--dataset", folder / "dataset")
    assert tiny.call("score", *given, "--config", folder / f"{extractor}.json", "--output", output) == 0


def table(folder, *scores):
    """Return the rows of `udpm table`, its notes and its full table."""
    assert tiny.call("table", *scores, "--output", folder / "t") == 0
    markdown = (folder / "t.md").read_text()
    head, _, *rows = ([cell.strip() for cell in line.split("|")] for line in markdown.splitlines() if line[:1] == "|")
    return [dict(zip(head, row, strict=True)) for row in rows], markdown, pd.read_csv(folder / "t.csv")


def test_the_table_marks_a_run_with_lpips_and_no_other(project, tmp_path):
    rows, markdown, full = table(tmp_path, *(project / f"lite0/{name}/seed0.json" for name in RUNS))
    assert [row["FD (EfficientNet-Lite0 features)"].endswith(" †") for row in rows] == [True, False]
    assert markdown.count(WORDS) == 1
    assert full["loss_features"].tolist() == ["vgg", "none"]
    assert full["shared_labels"].fillna("").tolist() == ["ImageNet", ""]
    latex = (tmp_path / "t.tex").read_text()
    assert latex.count(r" \ensuremath{\dagger} &") == latex.count(r"\ensuremath{\dagger}: LPIPS") == 1
    assert (tmp_path / "t.html").read_text().count(" †") == 1


def test_features_without_those_labels_are_not_marked(project, tmp_path):
    _, markdown, full = table(tmp_path, *(project / f"pixels/{name}/seed0.json" for name in RUNS))
    assert "†" not in markdown
    assert full["loss_features"].tolist() == ["vgg", "none"]
    assert full["shared_labels"].isna().all()


@pytest.mark.parametrize("of", ["an earlier version", "somebody"])
def test_unknown_losses_stay_unknown(project, tmp_path, of):
    path = tmp_path / "score.json"
    if of == "somebody":
        given = ("--images", project / "source", "--reference", project / "lite0.npz")
        assert tiny.call("score", *given, "--config", project / "lite0.json", "--output", path) == 0
    else:
        earlier = json.loads((project / "lite0/digits/seed0.json").read_text())
        del earlier["subject"]["loss_features"], earlier["record_sha256"]
        path.write_text(json.dumps(earlier))
    _, markdown, full = table(tmp_path, path)
    assert "†" not in markdown
    assert full[["loss_features", "shared_labels"]].isna().all(axis=None)


def test_the_card_marks_its_scores(project, tmp_path):
    for name in RUNS:
        scores = [word for extractor in EXTRACTORS for word in ("--score", project / extractor / name / "seed0.json")]
        assert tiny.call("card", project / "runs" / name / "seed0", *scores, "--output", tmp_path / f"{name}.md") == 0
    lines = [line for line in (tmp_path / "digits.md").read_text().splitlines() if line.startswith("- last checkpoint")]
    assert [WORDS in line for line in lines] == [True, False]
    assert [line.partition(",")[0].endswith(" †") for line in lines] == [True, False]
    front = yaml.safe_load((tmp_path / "digits.md").read_text().split("---\n")[1])
    protocols = [result["metrics"][0]["args"]["protocol"] for result in front["model-index"][0]["results"]]
    assert [WORDS in protocol for protocol in protocols] == [True, False]
    assert "†" not in (tmp_path / "digits-paper.md").read_text()


def test_the_summary_marks_what_it_lists(project, tmp_path):
    (tmp_path / "scores").symlink_to(project / "lite0")
    command = ("summary", "digits", "digits-paper", "--results", tmp_path, "--config", CONFIG)
    assert tiny.call(*command, "--output", tmp_path) == 0
    for page in ("summary.md", "overview.html"):
        assert html.unescape((tmp_path / page).read_text()).count(WORDS) == 1
    rows = [line for line in (tmp_path / "summary.md").read_text().splitlines() if line.startswith("| digits")]
    assert [" † " in row for row in rows] == [True, False]


def test_a_comparison_marks_what_it_shows(project, tmp_path):
    one, other = (project / f"lite0/{name}/seed0.json" for name in RUNS)
    assert tiny.call("compare", one, other, "--output", tmp_path) == 0
    text = (tmp_path / "compare.md").read_text()
    assert [" † " in line for line in text.splitlines()[2:4]] == [True, False]
    assert text.count(WORDS) == 1
    assert pd.read_csv(tmp_path / "compare.csv")["loss_features"].tolist() == ["vgg", "none"]
    # A number that is not shown is not marked.
    assert tiny.call("compare", project / "pixels/digits/seed0.json", one, "--output", tmp_path) == 0
    assert "†" not in (tmp_path / "compare.md").read_text()


def lpips(value, experiment, seed=0, **changes):
    """Return a score by Inception of a run with LPIPS, in features of ImageNet."""
    return fid(value, experiment, seed, **{"loss_features": ["vgg"], "sha256": INCEPTION.sha256} | changes)


def test_the_papers_tables_mark_a_mean_with_any_marked_score(tmp_path):
    """Those of earlier versions do not know their losses."""
    results(tmp_path, seed0=fid(6.0, sha256=INCEPTION.sha256), seed1=lpips(7.0, "cifar10", 1))
    text = StudyReport(tmp_path, CONFIG).write("table1", tmp_path / "t")
    assert "6.50 ± 0.71 (2 seeds) †" in text
    assert text.count(WORDS) == 1
    assert "ImageNet" in pd.read_csv(tmp_path / "t.csv")["shared_labels"].tolist()
    assert not tiny.call("figure", "tradeoff", "--results", tmp_path, "--config", CONFIG, "--output", tmp_path / "f")
    points = pd.read_csv(tmp_path / "f.csv")
    assert points[points["kind"] == "measured"]["shared_labels"].tolist() == ["ImageNet"]


def test_a_ranking_marks_its_points(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config/sweeps").mkdir(parents=True)
    for folder in ("experiments", "datasets"):
        (tmp_path / "config" / folder).symlink_to(CONFIG / folder)
    sweep = {"base": "digits", "seeds": [0], "points": {"p": {}, "q": {"training.warmup": 3}}}
    (tmp_path / "config/sweeps/mine.yaml").write_text(yaml.safe_dump(sweep))
    results(tmp_path, seed0=lpips(5.0, "mine.p"))
    results(tmp_path, seed0=lpips(6.0, "mine.q", loss_features=[]))
    loaded = load_sweep("mine", "config")
    found = read_results(loaded, tmp_path)
    ranking = ranking_table(loaded, found)
    assert ranking.shown["FID"].tolist() == ["5.00 †", "6.00"]
    assert sum(WORDS in note for note in ranking.notes) == 1
    assert ranking.full["shared_labels"].fillna("").tolist() == ["ImageNet", ""]
    assert WORDS in best_experiment(loaded, found)


def test_a_selection_remembers_the_losses(tmp_path):
    for iteration in (10, 20):
        score = lpips(5.0 + iteration, "x", iteration=iteration)
        (tmp_path / f"{iteration}.json").write_text(json.dumps(score))
    found = milestone_table(select(sorted(tmp_path.glob("*.json"))))
    assert found.shown["FID"].tolist() == ["15.00 †", "25.00 †"]
    assert any(WORDS in note for note in found.notes)


def run(weight, network="vgg"):
    return {"losses": {"lpips_weight": weight, "lpips_network": network}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"run": None, "origin": None}, None),
        ({"run": {"losses": {}}}, None),
        ({"run": run(0.0)}, []),
        ({"run": run([0.0, 0.5, 0.0])}, ["vgg"]),
        ({"run": run(1.0, "vgg-random")}, ["vgg-random"]),
        ({"origin": {"kind": "published", "files": []}}, None),
        ({"origin": {"loss_features": ["vgg"]}}, ["vgg"]),
        ({"origin": {"files": []}, "run": run(0.0)}, None),
        ({"origin": {"files": []}, "run": run(1.0)}, ["vgg"]),
        ({"origin": {"loss_features": ["vgg"]}, "run": run(0.0)}, ["vgg"]),
        ({"origin": {"loss_features": []}, "run": run(0.0)}, []),
    ],
)
def test_what_weights_say_of_their_losses(changes, expected):
    assert loss_features("x", {"model": {}} | changes) == expected


def test_imported_weights_keep_what_is_known_of_their_losses(project, tmp_path):
    for name, expected in (("digits", ["vgg"]), ("digits-paper", [])):
        weights, samples = tmp_path / f"{name}.safetensors", tmp_path / f"{name}.npz"
        assert tiny.call("import", project / f"runs/{name}/seed0/weights.safetensors", "--output", weights) == 0
        assert tiny.call("sample", weights, "--count", 2, "--threads", 1, "--output", samples) == 0
        assert json.loads(samples.with_suffix(".json").read_text())["loss_features"] == expected
