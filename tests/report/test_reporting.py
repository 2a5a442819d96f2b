"""Tables and figures: contents, missing values, protocols, sizes, bytes."""

import itertools
import json

import numpy as np
import pandas as pd
import pytest
import tiny
from PIL import Image

from udpm.config import Sampling, to_json
from udpm.core.errors import UserError
from udpm.report.figures import curves
from udpm.report.figures.curves import plot_curves, read_metrics
from udpm.report.figures.samples import _nearest, plot_chain, plot_samples
from udpm.report.figures.schedule import plot_run_schedule
from udpm.report.figures.style import LARGEST
from udpm.report.scores import score_table
from udpm.sampling.generate import draw_samples as sample


def score(kind="samples", value=12.345, extractor="a" * 64, experiment="digits_x", **metrics):
    names = ("precision", "recall", "class_agreement", "nearest_distance", "nearest_distance_ratio")
    values = dict.fromkeys(names, 0.5) | metrics
    subject = {"kind": kind}
    if kind == "samples":
        subject |= {"experiment": experiment, "run_seed": 0, "iteration": 7, "weights": "ema", "seed": 3}
        subject |= {"weights_sha256": "b" * 64, "posterior": "scalar", "nfe": 3}
    return {
        "format": "udpm-score/1",
        "subject": subject,
        "metrics": {"frechet_distance": {"value": value, "label": "FD (digits features)"}}
        | {name: {"value": number, "label": name, "reason": "because"} for name, number in values.items()},
        "protocol": {
            "n": 1000,
            "extractor": {"name": "digits", "sha256": extractor, "heldout_accuracy": 0.99},
            "reference": {"dataset": "digits", "split": "train", "n": 1297, "sha256": "c" * 64},
            "neighbours": 3,
            "device": "cpu",
        },
        "provenance": {"versions": {"udpm": "0.1.0", "torch": "2"}, "commit": None},
    }


def files(folder, **given):
    (folder / "digits_x").mkdir(exist_ok=True)
    paths = []
    for name, value in given.items():
        paths.append(folder / "digits_x" / f"{name}.json")
        paths[-1].write_text(json.dumps(value))
    return paths


def test_the_table_lists_the_model_then_floor_and_ceiling(tmp_path):
    paths = files(tmp_path, noise=score("noise", 800.0), heldout=score("heldout", 5.0), seed0=score())
    markdown = score_table(paths).write(tmp_path / "t")
    rows = [line for line in markdown.splitlines() if line.startswith("| digits_x")]
    assert ["UDPM, seed 0" in rows[0], "floor" in rows[1], "ceiling" in rows[2]] == [True] * 3
    assert "12.35" in rows[0] or "12.34" in rows[0]
    assert "Distances at different N do not compare" in markdown
    table = pd.read_csv(tmp_path / "t.csv")
    assert table["frechet_distance"].tolist() == [12.345, 5.0, 800.0]
    for column in ("n", "extractor_sha256", "reference_sha256", "neighbours", "sampling_seed", "weights_sha256"):
        assert table[column].notna().iloc[0]
    assert table["iteration"].iloc[0] == 7
    latex = (tmp_path / "t.tex").read_text()
    assert r"digits\_x" in latex
    assert r"\toprule" in latex
    assert "digits_x" in (tmp_path / "t.html").read_text()


def test_distances_at_equal_n_are_next_to_those_of_all_images(tmp_path):
    samples, floor = score(), score("heldout", 5.0)
    for one, value in ((samples, 13.5), (floor, 5.0)):
        one["metrics"]["frechet_distance_matched"] = {"value": value, "label": "FD", "n": 500}
        one["metrics"] |= {name: {"value": 0.25, "label": name} for name in ("density", "coverage")}
    paths = files(tmp_path, heldout=floor, seed0=samples, noise=score("noise", 800.0))
    markdown = score_table(paths).write(tmp_path / "t")
    head, _, *rows = (
        [cell.strip() for cell in line.split("|")] for line in markdown.splitlines() if line.startswith("|")
    )
    assert [dict(zip(head, row, strict=True))["at equal N"] for row in rows] == ["13.50 (500)", "5.00 (500)", "–"]
    assert {"density", "coverage"} < set(head)
    assert "At equal N: " in markdown


def test_a_warning_of_a_metric_is_a_note(tmp_path):
    one = score()
    one["metrics"]["frechet_distance"]["warning"] = "40 images are too few"
    assert "UDPM, seed 0: 40 images are too few." in score_table(files(tmp_path, seed0=one)).write(tmp_path / "t")


def test_a_missing_number_is_shown_as_missing(tmp_path):
    markdown = score_table(files(tmp_path, seed0=score(class_agreement=None))).write(tmp_path / "t")
    row = next(line for line in markdown.splitlines() if line.startswith("| digits_x"))
    assert [cell.strip() for cell in row.split("|")].count("–") == 1
    assert "no class_agreement, because because" in markdown
    assert np.isnan(pd.read_csv(tmp_path / "t.csv")["class_agreement"].iloc[0])


def test_distances_in_different_features_never_share_a_column(tmp_path):
    paths = files(tmp_path, seed0=score(), other=score("heldout", 9.0, extractor="d" * 64))
    markdown = score_table(paths).write(tmp_path / "t")
    header = markdown.splitlines()[0]
    assert "FD (digits features) [1]" in header
    assert "FD (digits features) [2]" in header
    rows = [line for line in markdown.splitlines() if line.startswith("| digits_x")]
    assert all(row.count("–") >= 1 for row in rows)


def test_scores_by_several_extractors_stand_in_groups(tmp_path):
    """Each row names its features; models stand next to their own floor."""
    given = {}
    for suffix, name, digest in (("", "digits", "a"), ("@lite0", "EfficientNet-Lite0", "d")):
        for kind, stem in (("samples", "seed0"), ("heldout", "heldout")):
            one = score(kind, extractor=digest * 64)
            one["protocol"]["extractor"]["name"] = name
            one["metrics"]["frechet_distance"]["warning"] = "too few"
            given[f"{stem}{suffix}"] = one
    paths = files(tmp_path, **{name: given[name] for name in sorted(given)})
    markdown = score_table(paths).write(tmp_path / "t")
    header, _, *lines = markdown.splitlines()
    assert [cell.strip() for cell in header.split("|")][3] == "features"
    rows = [[cell.strip() for cell in line.split("|")] for line in lines if line.startswith("| digits_x")]
    assert [(row[2], row[3]) for row in rows] == [
        (subject, name)
        for name in ("digits", "EfficientNet-Lite0")
        for subject in ("UDPM, seed 0", "held-out images (floor)")
    ]
    assert "- UDPM, seed 0, features of digits: too few." in markdown
    assert "- UDPM, seed 0, features of EfficientNet-Lite0: too few." in markdown
    alone = score_table(files(tmp_path, seed0=given["seed0"])).write(tmp_path / "t")
    assert "features |" not in alone.splitlines()[0]


def test_same_scores_same_bytes(tmp_path):
    paths = files(tmp_path, seed0=score(), noise=score("noise"))
    score_table(paths).write(tmp_path / "a")
    score_table(list(reversed(paths))).write(tmp_path / "b")
    for suffix in (".csv", ".md", ".tex", ".html"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_not_a_score(tmp_path):
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(UserError, match=r"x\.json: format is None"):
        score_table([tmp_path / "x.json"]).write(tmp_path / "t")
    assert not (tmp_path / "t.csv").exists()


@pytest.fixture(scope="module")
def drawn(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("drawn")
    config = Sampling(count=130, threads=1)
    sample(trained / "weights.safetensors", config, folder / "samples.npz", folder / "chain.npz")
    (folder / "run.json").write_text(to_json(tiny.run_config()))
    shown = {"iteration", "seconds", "images_per_second", *(f"discriminator/r1/l{level}" for level in (1, 2, 3))}
    shown |= {f"generator/reconstruction/l{level}" for level in (1, 2, 3)}
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if key in shown} for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept))
    return folder


FIGURES = {
    "samples": (plot_samples, "samples.npz"),
    "chain": (plot_chain, "chain.npz"),
    "curves": (plot_curves, "metrics.jsonl"),
    "schedule": (plot_run_schedule, "run.json"),
}


@pytest.mark.parametrize("kind", FIGURES)
def test_figures(drawn, tmp_path, kind):
    draw, source = FIGURES[kind]
    for name in ("a", "b"):
        draw(drawn / source, tmp_path / name)
    for suffix in (".svg", ".pdf", ".png", ".csv"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        assert max(image.size) <= LARGEST
        assert np.asarray(image.convert("L")).std() > 5
    # Text is text, to search and to edit.
    assert (tmp_path / "a.svg").read_text().count("<text") > 3
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF-")
    assert len(pd.read_csv(tmp_path / "a.csv")) >= 3


@pytest.mark.parametrize("kind", FIGURES)
def test_figures_of_nothing(tmp_path, kind):
    draw, source = FIGURES[kind]
    for content in (None, b"rubbish"):
        if content is not None:
            (tmp_path / source).write_bytes(content)
        with pytest.raises(UserError) as error:
            draw(tmp_path / source, tmp_path / "figure")
        assert "\n" not in str(error.value)
        assert not list(tmp_path.glob("figure*"))


def test_titles_of_all_panels_are_apart(tmp_path, monkeypatch):
    line = {"iteration": 1} | {f"{kind}/l{level}": float(level) for kind in curves.PANELS for level in (1, 2, 3)}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line | {"iteration": n}) + "\n" for n in (1, 2)))
    monkeypatch.setattr(curves, "save", lambda figure, *rest: figures.append(figure))
    figures: list = []
    curves.plot_curves(tmp_path / "metrics.jsonl", tmp_path / "figure")
    figures[0].draw_without_rendering()
    edges = figures[0].bbox
    boxes = [axes.title.get_window_extent() for axes in figures[0].axes if axes.get_visible()]
    assert len(boxes) == len(curves.PANELS)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(edges.x0 <= box.x0 and box.x1 <= edges.x1 for box in boxes)


def test_curves_name_their_run_and_each_level_once(drawn, tmp_path):
    (tmp_path / "metrics.jsonl").write_text((drawn / "metrics.jsonl").read_text())
    for config, title in ((None, "training losses"), (tiny.run_config(), "digits, seed 0: training losses")):
        if config is not None:
            (tmp_path / "config.json").write_text(to_json(config))
        plot_curves(tmp_path / "metrics.jsonl", tmp_path / "a")
        picture = (tmp_path / "a.svg").read_text()
        assert f">{title} by level ℓ (1 is the finest)</text>" in picture
        assert [picture.count(f">ℓ = {level}</text>") for level in (1, 2, 3)] == [1, 1, 1]


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("generator/adversarial", [8.9, 0.7, 0.71, 0.69, 0.7], True),
        ("generator/adversarial", [0.9, 0.7, 0.71, 0.69, 0.7], False),
        ("generator/adversarial", [8.9, 0.7, 0.71, 0.0, 0.7], False),
        ("generator/spread", [0.01, 0.9, 0.91, 0.92], False),
        ("discriminator/r1", [0.3, 0.1, 0.2], True),
        ("discriminator/r1", [0.13, 0.1, 0.11], False),
        ("discriminator/r1", [], False),
    ],
)
def test_a_spike_makes_an_axis_logarithmic(kind, values, expected):
    assert curves.is_logarithmic(kind, [*values, float("nan")]) == expected


@pytest.mark.parametrize(
    ("labels", "count", "expected"),
    [(None, 3, [4, 1, 0]), ([1, 0, 1, 1, 0, 2], 12, [4, 0, 5]), ([1, 0, 1, 1, 0, 2], 2, [4, 0])],
)
def test_nearest_images_are_one_of_each_class(labels, count, expected):
    distances = np.array([0.3, 0.2, 0.5, 0.4, 0.1, 0.6])
    assert _nearest(distances, None if labels is None else np.array(labels), count).tolist() == expected


def test_metrics_of_a_resumed_and_killed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"iteration": 1, "x": 1.0}, {"iteration": 2, "x": 2.0}, {"iteration": 2, "x": 3.0}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"iterat')
    assert read_metrics(path)["x"].tolist() == [1.0, 3.0]
    path.write_text("rubbish\n" + json.dumps(lines[0]) + "\n")
    with pytest.raises(UserError, match="line 1 contains no metrics"):
        read_metrics(path)


def test_the_precision_of_the_network_is_noted(tmp_path):
    other = score()
    other["subject"] |= {"precision": "bfloat16", "compiled": True, "guidance": 2.0, "classes": 10}
    markdown = score_table(files(tmp_path, seed0=other)).write(tmp_path / "t")
    assert "scalar posterior, guidance 2, bfloat16 network, compiled, 3 network calls per image; " in markdown
    row = pd.read_csv(tmp_path / "t.csv").iloc[0]
    assert (row["network_precision"], bool(row["network_compiled"])) == ("bfloat16", True)
