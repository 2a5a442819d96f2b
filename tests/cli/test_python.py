"""`udpm.prepare`, `train` and `score` are the commands, called from Python."""

import json
import signal
import threading

import numpy as np
import pytest
import tiny
import torch

import udpm
from udpm.cli import call
from udpm.config import DatasetConfig, Scoring, to_json
from udpm.core import devices
from udpm.core.work import SIGNALS


@pytest.fixture(autouse=True)
def handlers_stay():
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    assert {number: signal.getsignal(number) for number in SIGNALS} == before


def test_prepares_a_data_set(photographs, tmp_path):
    config = photographs[2]
    (tmp_path / "set.json").write_text(to_json(config))
    record = udpm.prepare(tmp_path / "set.json", tmp_path / "new", workers=1)
    assert record == json.loads((photographs[1] / "dataset.json").read_text()) | {
        key: record[key] for key in ("provenance", "record_sha256")
    }
    before = tiny.snapshot(tmp_path / "new")
    assert udpm.prepare(tmp_path / "set.json", str(tmp_path / "new")) == record
    assert tiny.snapshot(tmp_path / "new") == before


def test_prepares_images_without_a_configuration(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((6, 16, 16, 3), np.uint8))
    record = udpm.prepare(tmp_path / "images.npy", tmp_path / "new", side=8, holdout=2)
    assert (record["side"], record["splits"]) == (8, {"train": [0, 4], "test": [4, 6]})


def test_trains_resumes_and_loads(digits, trained, tmp_path):
    paths = {"dataset": digits / "dataset", "cache": digits / "cache", "run": tmp_path / "run"}
    with pytest.raises(udpm.StoppedEarly):
        udpm.train(tiny.write_config(tmp_path), **paths, max_minutes=0)
    assert not (tmp_path / "run/weights.safetensors").exists()
    record = udpm.train(tmp_path / "run.json", **paths)
    assert (record["experiment"], record["iterations"]) == ("digits", 12)
    tiny.assert_same_weights(tmp_path / "run", trained)
    assert udpm.train(tmp_path / "run.json", **paths) == record
    assert np.array_equal(udpm.load(tmp_path / "run").sample(2), udpm.load(trained).sample(2))


@pytest.fixture(scope="module")
def stage(digits, tmp_path_factory):
    """An extractor, its configuration and a reference."""
    devices.configure("cpu", 1)
    folder = tmp_path_factory.mktemp("stage")
    network = torch.nn.Sequential(torch.nn.AvgPool2d(8), torch.nn.Flatten())
    torch.jit.save(torch.jit.trace(network, torch.zeros(2, 3, 16, 16)), str(folder / "x.pt"))
    scoring = Scoring(extractor=str(folder / "x.pt"), device="cpu", threads=1)
    (folder / "scoring.json").write_text(to_json(scoring))
    call("reference", digits / "dataset", config=folder / "scoring.json", output=folder / "r.npz")
    return folder


def test_scores(stage, digits, tmp_path):
    given = {"config": stage / "scoring.json", "reference": stage / "r.npz", "dataset": digits / "dataset"}
    found = udpm.score(tmp_path / "a.json", noise=100, **given)
    assert found["protocol"]["n"] == 100
    options = [word for name, path in given.items() for word in (f"--{name}", path)]
    assert tiny.call("score", "--noise", 100, *options, "--output", tmp_path / "b.json") == 0
    theirs = json.loads((tmp_path / "b.json").read_text())
    assert found["metrics"]["frechet_distance"]["value"] == theirs["metrics"]["frechet_distance"]["value"] > 0
    assert udpm.score(tmp_path / "c.json", heldout=True, **given)["subject"]["kind"] == "heldout"


def test_mistakes_are_those_of_the_commands(stage, digits, trained, tmp_path):
    (tmp_path / "set.json").write_text(to_json(DatasetConfig(source="folder", path=str(tmp_path / "none"), side=8)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/notes.txt").write_text("mine")
    folders = {"dataset": digits / "dataset", "cache": digits / "cache"}
    given = {"config": stage / "scoring.json", "reference": stage / "r.npz", "dataset": digits / "dataset"}
    for function, expected in (
        (lambda: udpm.prepare(tmp_path / "set.json", tmp_path / "out"), "none"),
        (lambda: udpm.prepare(tmp_path / "set.json", tmp_path / "mine"), "--output: "),
        (lambda: udpm.prepare("-x", tmp_path / "out"), "-x"),
        (lambda: udpm.prepare(tmp_path / "set.json", tmp_path / "out", workers=0), "Invalid value for '--workers'"),
        (lambda: udpm.train("nowhere.json", run=tmp_path / "run", **folders), "`udpm resolve EXPERIMENT"),
        (lambda: udpm.train(trained / "weights.safetensors", run=tmp_path / "run", **folders), "but a weights file"),
        (lambda: udpm.score(tmp_path / "a.json", **given), "give exactly one of --samples, --images, --heldout"),
        (lambda: udpm.score(tmp_path / "a.json", noise=0, **given), "Invalid value for '--noise'"),
        (lambda: udpm.score(tmp_path / "a.json", samples=trained / "weights.safetensors", **given), "is a weights"),
    ):
        before = tiny.snapshot(tmp_path)
        with pytest.raises(udpm.UserError) as found:
            function()
        (line,) = found.value.mistakes
        assert expected in line
        assert tiny.snapshot(tmp_path) == before


def test_another_thread_is_refused(tmp_path):
    mistakes = []

    def prepare():
        try:
            udpm.prepare("set.json", tmp_path / "out")
        except udpm.UserError as error:
            mistakes.extend(error.mistakes)

    thread = threading.Thread(target=prepare)
    thread.start()
    thread.join()
    assert mistakes == ["udpm.prepare: must be called in the main thread, the only one that can be stopped by signals"]
