"""Files of an earlier version can be read, its score reproduced, and its stopped run resumed."""

import json
import shutil

import golden_vectors as golden
import numpy as np
import pytest
import tiny

EARLIER = golden.FOLDER / "earlier"


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    """A copy of the files, with a store and a cache made by this version."""
    folder = tmp_path_factory.mktemp("earlier") / "files"
    shutil.copytree(EARLIER, folder)
    assert not tiny.call("prepare", folder / "dataset.json", "--output", folder / "dataset")
    assert not tiny.call("cache", folder / "dataset", "--output", folder / "cache")
    return folder


def test_a_stopped_run_is_resumed(earlier, capsys):
    """It ends with the weights of an uninterrupted run, up to another CPU's rounding."""
    run = earlier / "half"
    data = ("--dataset", earlier / "dataset", "--cache", earlier / "cache")
    assert not tiny.call("train", earlier / "run.json", *data, "--run", run)
    assert "resumed at iteration 5" in "".join(capsys.readouterr())
    found, expected = tiny.weights(run), tiny.weights(earlier)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Without the optimizer's state, or with other batches, weights would differ by about the rate, 1e-3.
        assert (found[name] - value).abs().mean() < 1e-5, name
    # Its first iterations did not record their processor time, so the whole run's is unknown.
    assert json.loads((run / "complete.json").read_text())["cpu_seconds"] is None
    assert "cpu_seconds" not in (run / "metrics.jsonl").read_text()


def test_weights_make_the_same_images(earlier, tmp_path):
    assert not tiny.call("sample", earlier / "weights.safetensors", "--count", 100, "--output", tmp_path / "new.npz")
    found, expected = (np.load(path) for path in (tmp_path / "new.npz", earlier / "samples.npz"))
    assert np.array_equal(found["labels"], expected["labels"])
    assert np.abs(found["images"].astype(int) - expected["images"]).max() <= 1


def test_a_score_is_reproduced(earlier, tmp_path, monkeypatch):
    monkeypatch.chdir(earlier)
    assert not tiny.call("score", "--again", "score.json", "--output", tmp_path / "new.json")
    found, expected = (
        json.loads(path.read_text())["metrics"] for path in (tmp_path / "new.json", earlier / "score.json")
    )
    for name, metric in expected.items():
        if metric["value"] is None:
            assert found[name] == metric
        else:
            assert found[name]["value"] == pytest.approx(metric["value"], rel=1e-5), name


def test_a_stopped_run_is_described(capsys):
    assert not tiny.call("status", EARLIER / "half", "--json")
    (status,) = json.loads(capsys.readouterr().out)
    assert (status["state"], status["iteration"], status["iterations"], status["attempts"]) == ("stopped", 5, 12, 5)


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("weights.safetensors", "udpm-weights/2"),
        ("samples.npz", "udpm-samples/1"),
        ("reference.npz", "udpm-reference/1"),
        ("score.json", "udpm-score/1"),
    ],
)
def test_files_are_described(name, format, capsys):
    assert not tiny.call("info", EARLIER / name)
    found = json.loads(capsys.readouterr().out)
    assert found["format"] == format
    assert found.get("dataset_sha256", found.get("subject", {}).get("dataset_sha256")).startswith("628c68fb")


def test_scores_and_chains_are_shown(earlier, tmp_path):
    assert not tiny.call("table", earlier / "score.json", "--output", tmp_path / "scores")
    assert "365398" in (tmp_path / "scores.csv").read_text()
    assert not tiny.call("figure", "chain", earlier / "chain.npz", "--output", tmp_path / "chain")
