"""Finished runs are kept or extended to more iterations; training never restarts over existing weights."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tiny

from udpm.core.errors import StoppedEarly, UserError
from udpm.runs.config_guard import preparation_changes
from udpm.runs.status import read_status
from udpm.training.trainer import train


@pytest.fixture
def run(trained, tmp_path):
    """A copy of a run that was finished after 12 iterations."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def longer(iterations=18, **changes):
    return tiny.run_config(training__iterations=iterations, **changes)


@pytest.fixture(scope="module")
def without_a_break(levels, tmp_path_factory):
    """Weights of a run configured with 18 iterations from the beginning."""
    folder = tmp_path_factory.mktemp("once") / "run"
    train(longer(), levels, folder, False)
    return (folder / "weights.safetensors").read_bytes()


def test_extends_a_finished_run(levels, run, without_a_break):
    train(longer(), levels, run, False)
    assert (run / "weights.safetensors").read_bytes() == without_a_break
    assert json.loads((run / "complete.json").read_text())["iterations"] == 18


def withdraw_extension(run):
    """Restore the configuration of 12 iterations."""
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"iterations": 18', '"iterations": 12'))
    return run


def test_a_stopped_extension_keeps_the_finished_run(levels, run, without_a_break):
    before = {name: (run / name).read_bytes() for name in ("weights.safetensors", "complete.json")}
    with pytest.raises(StoppedEarly):
        train(longer(), levels, run, tiny.StopAfter(3))
    assert {name: (run / name).read_bytes() for name in before} == before
    assert read_status(run).state == "stopped"
    # With the extension withdrawn, the run is as before.
    train(tiny.run_config(), levels, run, False)
    assert {name: (run / name).read_bytes() for name in before} == before
    with pytest.raises(UserError, match="is of iteration 15, but training ends after 14"):
        train(longer(14), levels, withdraw_extension(run), False)
    train(longer(), levels, run, False)
    assert (run / "weights.safetensors").read_bytes() == without_a_break


def test_killed_between_the_new_weights_and_their_record(levels, run, without_a_break, monkeypatch):
    def killed(path, value):
        if path.name == "complete.json":
            raise KeyboardInterrupt
        return write(path, value)

    from udpm.training import writer

    write = writer.write_json
    monkeypatch.setattr(writer, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        train(longer(), levels, run, False)
    monkeypatch.undo()
    assert not (run / "complete.json").exists()
    train(longer(), levels, run, False)
    assert (run / "weights.safetensors").read_bytes() == without_a_break


def clean(run):
    shutil.rmtree(run / "checkpoints")


def replaced(run):
    tiny.flip_byte(run / "weights.safetensors", 5000)


def unrecorded(run):
    clean(run)
    (run / "complete.json").unlink()


def recorded(**changes):
    """Return a function that changes a finished run's record."""

    def change(run):
        record = json.loads((run / "complete.json").read_text())
        del record["record_sha256"]
        (run / "complete.json").write_text(json.dumps(record | changes))

    return change


@pytest.mark.parametrize(
    ("edit", "config", "expected"),
    [
        (clean, longer(), "is finished after 12 iterations, and the checkpoints needed to continue to 18"),
        (clean, longer(10), "training.iterations was 12, is 10"),
        (clean, longer(training__batch=4), "training.batch was 8, is 4"),
        (replaced, tiny.run_config(), "is not what the run ended with"),
        (replaced, longer(), "is not what the run ended with"),
        (unrecorded, tiny.run_config(), "complete.json and checkpoints not found next to it"),
        (recorded(dataset_sha256="0" * 64), tiny.run_config(), "was trained on other images"),
        (recorded(format="udpm-run/2"), longer(), "complete.json: format is 'udpm-run/2', expected 'udpm-run/1'"),
        (lambda run: (run / "complete.json").write_text("{}"), tiny.run_config(), "complete.json: "),
    ],
)
def test_refuses_to_replace_weights(levels, run, edit, config, expected):
    edit(run)
    before = tiny.snapshot(run)
    with pytest.raises(UserError) as refused:
        train(config, levels, run, False)
    assert expected in str(refused.value)
    assert all(str(run) in mistake for mistake in refused.value.mistakes)
    assert {path: data for path, data in tiny.snapshot(run).items() if path.name != ".lock"} == before


def test_a_damaged_record_is_written_again_from_the_last_checkpoint(levels, run):
    record = run / "complete.json"
    before = json.loads(record.read_text())["weights_sha256"]
    record.write_text("")
    with pytest.raises(UserError, match="delete it, and training writes it again from the last checkpoint"):
        train(tiny.run_config(), levels, run, False)
    record.unlink()
    train(tiny.run_config(), levels, run, False)
    assert json.loads(record.read_text())["weights_sha256"] == before


def test_a_run_without_checkpoints_is_complete(levels, run, capsys):
    clean(run)
    before = tiny.snapshot(run)
    train(tiny.run_config(training__device="auto", training__log_every=7, dataset__licence="mine"), levels, run, False)
    assert "complete already" in capsys.readouterr().out
    assert tiny.snapshot(run) == before


@pytest.fixture
def results(trained, tmp_path):
    """A folder of results with a finished run, an unfinished one, and links out of it."""
    for name in ("done", "begun"):
        shutil.copytree(trained, tmp_path / f"results/runs/{name}/seed0")
    (tmp_path / "results/runs/begun/seed0/complete.json").unlink()
    shutil.copytree(trained, tmp_path / "elsewhere/seed0")
    (tmp_path / "results/runs/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "results/runs/done/seed0/checkpoints/notes.txt").write_text("mine")
    (tmp_path / "results/runs/done/seed0/checkpoints/000000099.safetensors").symlink_to(trained / "config.json")
    return tmp_path / "results"


def test_clean_frees_the_checkpoints_of_finished_runs(results, capsys, levels):
    before = tiny.snapshot(results.parent)
    assert tiny.call("clean", results, "--yes") == 0
    printed = capsys.readouterr().out
    assert f"{results}/runs/begun/seed0: kept: not finished" in printed
    gone = before.keys() - tiny.snapshot(results.parent).keys()
    assert {str(path.parent) for path in gone} == {"results/runs/done/seed0/checkpoints"}
    assert {path.name for path in gone} == {
        f"{iteration:09d}.{suffix}" for iteration in (8, 12) for suffix in ("json", "safetensors")
    }
    train(tiny.run_config(), levels, results / "runs/done/seed0", False)
    assert "complete already" in capsys.readouterr().out


def prepared_with(levels, **changes):
    """Return the same images with another record."""
    return replace(levels, store=replace(levels.store, record=levels.store.record | changes))


SPLITS = {"train": [0, 1097], "test": [1097, 1797]}


def test_refuses_the_same_images_with_other_splits(levels, run):
    other = prepared_with(levels, splits=SPLITS)
    before = tiny.snapshot(run)
    expected = r": was trained on other splits than .*: train had 1297 images, has 1097"
    for config in (tiny.run_config(), longer()):
        with pytest.raises(UserError, match=expected):
            train(config, other, run, False)
        assert tiny.snapshot(run).keys() - before.keys() <= {Path(".lock"), Path("attempts.jsonl")}


def test_refuses_a_data_set_prepared_with_another_configuration(levels, tmp_path):
    record = levels.store.record["config"]
    with pytest.raises(
        UserError, match=r"was prepared with another configuration than the run's .*holdout was 700, is 500"
    ):
        train(tiny.run_config(), prepared_with(levels, config=record | {"holdout": 700}), tmp_path / "run", False)
    assert not (tmp_path / "run").exists()
    for free in ({}, {"licence": "mine", "workers": 3}):
        assert not preparation_changes(levels.store.record | {"config": record | free}, tiny.run_config().dataset)
    # A version with other keys.
    assert not preparation_changes({"config": {"old": 1}}, tiny.run_config().dataset)


@pytest.mark.parametrize(("answer", "code", "expected"), [("n\n", 0, "nothing removed"), ("", 2, "pass --yes")])
def test_clean_asks_for_confirmation(results, capsys, monkeypatch, answer, code, expected):
    before = tiny.snapshot(results)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    assert (tiny.call("clean", results) or 0) == code
    printed = capsys.readouterr()
    assert expected in printed.out + printed.err
    assert f"{results}/runs/done/seed0: checkpoints, " in printed.out
    assert tiny.snapshot(results) == before


def without_iterations(run):
    record = json.loads((run / "complete.json").read_text())
    kept = {key: value for key, value in record.items() if key not in ("iterations", "record_sha256")}
    (run / "complete.json").write_text(json.dumps(kept))


def grown(run):
    text = (run / "config.json").read_text()
    (run / "config.json").write_text(text.replace('"iterations": 12', '"iterations": 18'))


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda run: (run / "complete.json").unlink(), "not finished"),
        (lambda run: (run / "weights.safetensors").unlink(), "not finished"),
        (replaced, "is not what the run ended with"),
        (grown, "being extended from 12 to 18 iterations"),
        (lambda run: (grown(run), without_iterations(run)), "being extended from 0 to 18 iterations"),
        (lambda run: [path.unlink() for path in run.glob("*.json*")], "neither a run's folder"),
        (lambda run: (run / "complete.json").write_text("{}"), "complete.json"),
        (
            lambda run: (run / "checkpoints").rename(run / "c") and (run / "checkpoints").symlink_to("c"),
            "is a symbolic link",
        ),
    ],
)
def test_clean_keeps_unfinished_runs(run, edit, expected, capsys):
    edit(run)
    tiny.assert_refused(run, f"clean {run} --yes", expected, capsys)


def test_clean_follows_no_link(results, tmp_path, capsys):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked/runs").symlink_to(results / "runs")
    expected = "linked/runs: is a symbolic link, which is not followed"
    tiny.assert_refused(tmp_path, f"clean {tmp_path}/linked --yes", expected, capsys)
