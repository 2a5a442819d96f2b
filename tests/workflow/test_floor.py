"""Facts about a data set at planning: the held-out floor, and labels by name."""

import json
import shutil
from pathlib import Path

import pytest
from pictures import tree
from tiny import ROOT

from udpm.config import load_dataset
from udpm.data.prepare import prepare

EXPERIMENT = {"extends": "digits-paper", "dataset": "mine", "latents": {"labels": []}}


@pytest.fixture
def planned(tmp_path, monkeypatch, capsys):
    """Plan an experiment on images/; return its baselines, and stderr."""
    for kind in ("experiments/digits-paper", "datasets/digits"):
        target = tmp_path / "config" / f"{kind}.yaml"
        target.parent.mkdir(parents=True)
        shutil.copy(ROOT / "config" / f"{kind}.yaml", target)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "workflow"))
    from experiments import Experiments

    def plan(dataset=(), **values):
        given = {"source": "folder", "path": "images", "side": 16, "classes": 2} | dict(dataset)
        Path("config/datasets/mine.yaml").write_text(json.dumps(given))
        Path("config/experiments/some.yaml").write_text(json.dumps(EXPERIMENT | values))
        found = Experiments({"experiments": ["some"]}, False)
        found.report_missing_floors()
        return found.baselines("some"), capsys.readouterr().err

    return plan


def test_held_out_images_give_a_floor(planned):
    baselines, printed = planned()
    assert baselines == ("noise",)
    assert printed.startswith("note: data set mine: no held-out floor is scored: its images were not found")
    assert planned({"holdout": 1})[0] == planned({"expected_test_count": 1})[0] == ("heldout", "noise")
    tree(Path("images"))
    assert planned() == (("heldout", "noise"), "")
    prepare(load_dataset("mine"), "results/datasets/mine")
    shutil.rmtree("images/test")
    # The prepared data set counts, not its source.
    assert planned() == (("heldout", "noise"), "")
    baselines, printed = planned({"on_error": "skip"})
    assert baselines == ("noise",)
    assert printed == (
        "note: data set mine: no held-out floor is scored: it has no test split; holdout: N keeps N images out of "
        "training\n"
    )
    assert planned({"on_error": "skip", "holdout": 2}) == (("heldout", "noise"), "")
    shutil.rmtree("images")
    assert planned({"description": "photographs that were deleted once they were prepared"})[0] == ("heldout", "noise")


def test_an_experiment_that_is_not_scored_has_no_floor_and_no_note(planned):
    assert planned(scoring=None) == ((), "")


def test_labels_are_names_of_the_images_classes(planned, capsys):
    tree(Path("images"))
    planned(sampling={"labels": ["b", 0]}, latents={"labels": ["a"]})
    for key in ("sampling", "latents"):
        with pytest.raises(SystemExit) as stop:
            planned(**{key: {"labels": ["c"]}})
        assert stop.value.code == 2
        printed = capsys.readouterr().err
        assert f"some.yaml: {key}.labels: no class is called 'c'; the classes are a, b" in printed
        assert len(printed.splitlines()) == 1


def test_a_diagnosis_needs_held_out_images(planned):
    """An experiment inherits it; without a test split, training must not end in a job that fails."""
    from experiments import Experiments
    from targets import StudyTargets

    def diagnosed():
        targets = StudyTargets(Experiments({"experiments": ["some"]}, False))
        shown = [path for path in targets.figures() if path.endswith("diagnosis.png")]
        assert shown == targets.diagnoses()
        return bool(shown)

    for holdout, expected in ((0, False), (1, True)):
        planned({"holdout": holdout} if holdout else {})
        assert diagnosed() is expected
