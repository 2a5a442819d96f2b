"""Which scores compare: one rule, and all who average, choose, rank or put in one column keep to it."""

import copy
import json
import shutil

import pytest
import yaml
from tiny import ROOT

from udpm.config import Experiment, RunConfig, load_experiment, load_sweep, resolve_run
from udpm.config.validation import validate
from udpm.core.errors import UserError
from udpm.metrics.protocol import DRAWING, FEATURES, MEASURING, comparable, describe
from udpm.metrics.selection import select
from udpm.report.paper.study import StudyReport
from udpm.report.scores import score_table, summarize_scores, training_length
from udpm.report.sweep import ranking_table, read_results

LAST = resolve_run("digits", 0, ROOT / "config").training.iterations
SUBJECT = {
    **{"kind": "samples", "experiment": "digits", "run_seed": 0, "iteration": LAST, "weights": "ema", "seed": 0},
    **{"weights_sha256": "1" * 64, "posterior": "scalar", "guidance": 1.0, "precision": "float32", "nfe": 3},
    **{"classes": 10, "device": "cuda", "tf32": False},
}
PROTOCOL = {
    **{"n": 40, "neighbours": 3, "preprocessing": "none", "device": "cuda", "tf32": False},
    "extractor": {"name": "digits", "sha256": "a" * 64},
    "reference": {"dataset": "digits", "split": "train", "n": 1297, "sha256": "c" * 64},
}
CHANGES = {
    "metric": {"metrics": {"frechet_distance": {"label": "FD"}}},
    "n": {"protocol": {"n": 41}},
    "neighbours": {"protocol": {"neighbours": 5}},
    "labels": {"subject": {"labels": [5, 3]}},
    "extractor_sha256": {"protocol": {"extractor": {"sha256": "b" * 64}}},
    "preprocessing": {"protocol": {"preprocessing": "resized"}},
    "reference_sha256": {"protocol": {"reference": {"sha256": "d" * 64}}},
    "scoring_tf32": {"protocol": {"tf32": True}},
    "weights": {"subject": {"weights": "raw"}},
    "posterior": {"subject": {"posterior": "exact"}},
    "guidance": {"subject": {"guidance": 2.0}},
    "nfe": {"subject": {"nfe": 6}},
    "classes": {"subject": {"classes": 0}},
    "network_precision": {"subject": {"precision": "bfloat16"}},
    "network_tf32": {"subject": {"tf32": True}},
    "network_compiled": {"subject": {"compiled": True}},
}


def changed(values, changes):
    return values | {
        key: changed(values.get(key, {}), value) if isinstance(value, dict) else value for key, value in changes.items()
    }


def a_score(value, changes=(), **subject):
    metrics = {"frechet_distance": {"value": value, "label": "FD (digits features)"}}
    whole = {"format": "udpm-score/1", "subject": SUBJECT | subject, "protocol": PROTOCOL, "metrics": metrics}
    return changed(copy.deepcopy(whole), dict(changes))


@pytest.fixture
def scores(tmp_path, monkeypatch):
    """Write scores of two seeds as files of an experiment, the second with a change."""
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)

    def write(experiment, changes, key="run_seed"):
        paths = [tmp_path / f"results/scores/{experiment}/seed{seed}.json" for seed in (0, 1)]
        for seed, path in enumerate(paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            found = a_score(4.0 + 2 * seed, changes if seed else {}, experiment=experiment, **{key: seed})
            path.write_text(json.dumps(found))
        return paths

    return write


def test_every_part_of_the_rule_is_tried():
    assert set(CHANGES) == {*MEASURING, *DRAWING}
    assert set(FEATURES) < set(MEASURING)


@pytest.mark.parametrize("labels", [[*range(9, -1, -1)], [*range(10)], None])
def test_all_classes_in_any_order_are_one_protocol(labels):
    assert comparable(a_score(4.0, labels=labels)) == comparable(a_score(4.0))


def test_a_table_marks_images_of_chosen_classes_or_none(scores):
    table = score_table(scores("digits", CHANGES["labels"]))
    assert table.shown["images"].tolist() == ["UDPM, seed 0", "UDPM, seed 1, classes 3, 5 alone"]
    assert any(note.startswith("FD (digits features) [2]: Fréchet distance of classes 3, 5 in") for note in table.notes)
    assert table.full["labels"].tolist()[1] == "classes 3, 5"
    table = score_table(scores("digits", CHANGES["classes"]))
    assert "scalar posterior, no labels, 3 network calls per image" in table.markdown()
    assert table.full["classes"].tolist() == [10, 0]


def test_a_protocol_in_words_names_chosen_classes():
    assert "scalar posterior, classes 3, 5 alone, 3 network calls" in describe(a_score(4.0, labels=[5, 3]))


@pytest.mark.parametrize(("milestone", "expected"), [(None, "last"), (40, "milestone")])
def test_the_end_of_the_epochs_is_the_end_of_training(milestone, expected):
    values = load_experiment("digits", ROOT / "config").model_dump()
    values["training"]["epochs"], values["training"]["keep_every"] = 1, 40
    values["sampling"]["iteration"] = milestone
    length = training_length(validate(Experiment, values, "digits"))
    (found,) = summarize_scores([a_score(4.0, iteration=40) | {"experiment": "digits"}], "digits", length)
    assert found.checkpoint == expected


@pytest.mark.parametrize(("epochs", "expected"), [(1, 40), (None, LAST)])
def test_a_finished_run_knows_its_length(epochs, expected):
    values = resolve_run("digits", 0, ROOT / "config").model_dump()
    values["training"]["epochs"] = epochs
    assert training_length(validate(RunConfig, values, "digits"), 40) == expected


@pytest.mark.parametrize("key", CHANGES)
def test_scores_that_differ_in_any_part_of_their_protocol_are_never_averaged(key, scores, tmp_path):
    plain, other = a_score(4.0), a_score(6.0, CHANGES[key])
    assert [one for one, two in zip(comparable(plain), comparable(other), strict=True) if one != two] == [
        (key, dict(comparable(plain))[key])
    ]
    # Means over seeds, as in the paper's tables, the summary and the trade-off.
    read = [score | {"experiment": "digits"} for score in (plain, changed(other, {"subject": {"run_seed": 1}}))]
    assert [entry.mean for entry in summarize_scores(read, "digits")] == [4.0, 6.0]
    assert [entry.mean for entry in summarize_scores(read[::-1], "digits")] == [6.0, 4.0]
    scores("digits", CHANGES[key])
    StudyReport("results", "config", ["digits"]).write("digits", tmp_path / "t")
    assert "5.00" not in (tmp_path / "t.md").read_text()
    # Columns of the score table share a scale; N and the sampling are shown in the table.
    headings = list(score_table(scores("digits", CHANGES[key])).shown)
    assert len([name for name in headings if name.startswith("FD")]) == (
        2 if key in ("metric", "labels", *FEATURES) else 1
    )
    # The choice of a milestone.
    with pytest.raises(UserError, match=f"{key.replace('_', ' ')} differs from that of"):
        select(scores("digits", CHANGES[key], "iteration"))
    # The ranking of a sweep: no mean, and no rank.
    sweep = {"base": "digits", "seeds": [0, 1], "points": {"p": {}}}
    (tmp_path / "config/sweeps/mine.yaml").write_text(yaml.safe_dump(sweep))
    scores("mine.p", CHANGES[key])
    loaded = load_sweep("mine", "config")
    (point,) = found = read_results(loaded, tmp_path / "results")
    assert (point.rank, point.mean("frechet_distance"), point.spread("frechet_distance")) == (None, None, None)
    text = ranking_table(loaded, found).markdown()
    assert f"p: no mean, since the scores of its seeds differ in {key.replace('_', ' ')}." in text
    assert "5.00" not in text


def test_scores_that_agree_are_averaged_by_all(scores, tmp_path):
    scores("digits", {})
    text = StudyReport("results", "config", ["digits"]).write("digits", tmp_path / "t")
    assert "5.00 ± 1.41 (2 seeds)" in text
    assert f"digits, last checkpoint, training seeds 0, 1: {describe(a_score(4.0))}." in text
    sweep = {"base": "digits", "seeds": [0, 1], "points": {"p": {}}}
    (tmp_path / "config/sweeps/mine.yaml").write_text(yaml.safe_dump(sweep))
    scores("mine.p", {})
    (point,) = read_results(load_sweep("mine", "config"), tmp_path / "results")
    assert (point.rank, point.mean("frechet_distance")) == (1, 5.0)
    assert select(scores("digits", {}, "iteration"))["frechet_distance"] == 4.0


def test_runs_of_another_length_are_not_averaged():
    read = [a_score(4.0, experiment="digits"), a_score(6.0, run_seed=1, iteration=20)]
    assert len(summarize_scores([score | {"experiment": "digits"} for score in read], "digits")) == 2


def test_points_of_a_sweep_compare_even_if_sampled_differently(scores, tmp_path):
    sweep = {"base": "digits", "seeds": [0], "points": {"p": {}, "q": {"sampling.posterior": "exact"}}}
    (tmp_path / "config/sweeps/mine.yaml").write_text(yaml.safe_dump(sweep))
    for point, changes in (("p", {}), ("q", CHANGES["posterior"])):
        path = tmp_path / f"results/scores/mine.{point}/seed0.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(a_score(4.0, changes)))
    assert [point.rank for point in read_results(load_sweep("mine", "config"), tmp_path / "results")] == [1, 2]
