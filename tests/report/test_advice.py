"""Advice of reports: every command on a page can be applied and planned."""

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
import tiny
import yaml
from scored import fid, results

from udpm.config.published_scores import load_published
from udpm.networks.inference import Cost
from udpm.report.paper.entries import differences
from udpm.report.paper.study import StudyReport
from udpm.report.paper.tables import Setup, setup_table
from udpm.report.scores import summarize_scores

PLAIN = re.compile(r"`snakemake (--profile slurm )?(\w+) --config experiments=([\w.-]+)`")
ADVICE = re.compile(r"(?:`([^`]+)` (in|as) (config/experiments/[\w.-]+\.yaml), then )?" + PLAIN.pattern)
SEVERAL = {"training": {"nodes": 2}}
CASES = {
    "the demo": ({}, "as config/experiments/two-best.yaml"),
    "milestones": ({"training": {"keep_every": 400}}, "`selection: {count: 1000}` in config/experiments/two.yaml"),
    "the seed of the choice": (
        {"training": {"keep_every": 400}, "sampling": {"seed": 1, "count": 20_000}},
        "`selection: {seed: 2}` in",
    ),
    "several nodes": (SEVERAL, "`snakemake --profile slurm all --config experiments=two`"),
    "imported": ({"training": "imported", "weights": "w.pt"}, "experiments=two"),
    "raw weights": ({"training": {"keep_every": 400}, "sampling": {"weights": "raw"}}, "experiments=two"),
    "a milestone": ({"training": {"keep_every": 400}, "sampling": {"iteration": 400}}, "experiments=two"),
    "epochs": ({"training": {"keep_every": 400, "epochs": 9}}, "experiments=two"),
    "not scored": ({"scoring": None}, "two: nothing is scored (scoring: null)."),
    "a selection": ({"training": {"keep_every": 400}, "selection": {}}, "experiments=two"),
}


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with the configuration and `two`, an experiment of the digits' table."""
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    table = tmp_path / "config/published/digits.yaml"
    table.write_text(table.read_text().replace("[digits]", "[digits, two, gone]"))
    (tmp_path / "w.pt").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tiny.ROOT / "workflow"))
    return tmp_path


def planned(advice):
    """Apply an advice to the configuration and plan its command, which fails if refused."""
    from experiments import Experiments
    from targets import PaperTargets, StudyTargets

    keys, how, file, profile, target, name = advice
    if keys:
        before = Path(file).read_text() if how == "in" else ""
        Path(file).write_text(f"{before}\n{keys}\n")
    plan = Experiments({"experiments": [name]}, bool(profile))
    study = StudyTargets(plan)
    wanted = study.all() if target == "all" else PaperTargets(plan, study).tables()
    if keys:
        assert any(path.endswith("_best.json") for path in study.scores())
        Path(file).write_text(before) if how == "in" else Path(file).unlink()
    return wanted


@pytest.mark.parametrize("case", CASES)
def test_all_advice_is_followed(study, case):
    values, expected = CASES[case]
    values = yaml.safe_dump({"extends": "digits"} | values)
    Path("config/experiments/two.yaml").write_text(values)
    page = StudyReport("results", "config", ["two"]).write_summary(study)
    table = StudyReport("results", "config").write("digits", "table")
    assert expected in page
    assert page.count("`snakemake all") + page.count("`snakemake --profile") == len(PLAIN.findall(page))
    found = {*ADVICE.findall(page), *ADVICE.findall(table)}
    assert {advice[-1] for advice in found} >= {"digits", "cifar10"}
    assert "gone" not in {advice[-1] for advice in found}
    assert all(map(planned, sorted(found)))
    rows = pd.read_csv("table.csv").set_index(["experiment", "checkpoint"])
    assert pd.isna(rows.loc[("gone", "last"), "to_fill"])
    assert rows.loc[("two", "last"), "state"] == ("not scored" if case == "not scored" else "not run")


def test_an_experiment_that_was_scored_before_is_not_missing(study):
    Path("config/experiments/two.yaml").write_text("extends: digits\n")
    assert "digits: is not in this study" in StudyReport("results", "config", ["two"]).write_summary(study)
    results(study / "results", seed0=fid(18.0, "digits", selection=None, classes=10))
    page = StudyReport("results", "config", ["two"]).write_summary(study)
    assert "digits: is not in this study" not in page
    assert "cifar10: is not in this study" in page


def test_a_missing_score_by_a_further_extractor_is_named(study):
    Path("config/experiments/two.yaml").write_text("extends: cifar10\nscoring: {extractors: [inception, dinov2]}\n")
    folder = results(study / "results", seed0=fid(18.0, "two", selection=None))
    pages = [StudyReport(folder, "config", ["two"]).write_summary(study)]
    scored = folder / "scores/two/seed0.json"
    shutil.copy(scored, scored.with_name("seed0@dinov2.json"))
    pages.append(StudyReport(folder, "config", ["two"]).write_summary(study))
    expected = "two: no score of seed 0 by dinov2; `snakemake all --config experiments=two`"
    assert [expected in page for page in pages] == [True, False]


def test_an_unknown_training_is_not_described(study):
    trained, given = tiny.run_config(), tiny.run_config().model_copy(update={"training": "imported", "weights": "w.pt"})
    cost = Cost(16, (1,), 1, 1, 1_000_000, 1, discriminator_parameters=2_000_000)
    shown = {"mine": Setup(trained, True, cost), "theirs": Setup(given, True, cost)}
    text = setup_table("training", shown).write(study / "t")
    assert "As it ran (resolved configuration of the run): mine." in text
    assert "Imported weights, of whose training nothing is known here: theirs." in text
    frame = setup_table("training", shown).shown.set_index("setting")["theirs"]
    assert {frame[name] for name in ("iterations", "λ1", "reconstruction", "R1 γ", "discriminator noise")} == {"–"}
    assert frame["data set"] == "digits"
    assert set(setup_table("discriminator", shown).shown["theirs"]) == {"–"}
    assert setup_table("generator", shown).shown.set_index("setting").loc["parameters", "theirs"] == "1.00 M"


def test_the_card_of_imported_weights_says_what_is_known(study, trained):
    shutil.copy(trained / "weights.safetensors", "mine.safetensors")
    config = tiny.run_config(training__device="cpu")
    config = config.model_copy(update={"training": "imported", "weights": "mine.safetensors"})
    for name, text in (("configs/digits/seed0.json", config.model_dump_json()), ("datasets/digits/dataset.json", "")):
        path = study / "results" / name
        path.parent.mkdir(parents=True)
        path.write_text(text or json.dumps({"sha256": "d" * 64}))
    run = study / "results/runs/digits/seed0"
    run.mkdir(parents=True)
    assert not tiny.call("import", "--run-config", "results/configs/digits/seed0.json", "--run", run)
    record = json.loads((run / "complete.json").read_text())
    assert record.pop("record_sha256")
    assert record["parameters"]["generator"] > 10_000
    assert record["dataset_sha256"] == json.loads((trained / "complete.json").read_text())["dataset_sha256"]
    for changes in ({}, {"parameters": {}, "dataset_sha256": None}):
        (run / "complete.json").write_text(json.dumps(record | changes))
        assert not tiny.call("card", run, "--output", study / "README.md")
        card = (study / "README.md").read_text()
        assert f"Parameters of the generator: {record['parameters']['generator']}" in card
        known = f"unknown of the weights' training; of the images prepared here {'d' * 64}"
        assert f"SHA-256 of images and labels: {known if changes else record['dataset_sha256']}" in card


def test_a_fact_of_one_row_is_not_stated_for_all(study):
    for name in ("peers", "table1", "table2"):
        text = StudyReport("results", "config").write(name, "table")
        stated = "Stated of the published protocol: metric FID, N 50000, extractor inception; of UDPM alone"
        assert f"{stated} checkpoint best, weights ema; not stated" in text
        row = next(row for row in load_published(name).rows if row.experiments)
        other = fid(experiment=row.experiments[0], selection=None, weights="raw")
        (last,) = summarize_scores([other | {"experiment": row.experiments[0]}], row.experiments[0], 600_000)
        why = differences(load_published(name).protocol, row, last)
        assert {"checkpoint last, published best", "weights raw, published ema"} <= set(why)
