"""Trackers: TensorBoard, W&B and MLflow have what metrics.jsonl has, once, and never stop or change a training."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
import tiny
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb_server import Server

from udpm.config import RunConfig
from udpm.config.validation import validate
from udpm.core.errors import StoppedEarly, UserError
from udpm.runs.layout import tracker_folder, tracker_record
from udpm.training.metrics import preview_path
from udpm.training.trackers import follow, wandb
from udpm.training.trackers.base import TrackedRun, Tracker
from udpm.training.trackers.follow import KINDS, Follower
from udpm.training.trackers.mlflow import MLflow
from udpm.training.trainer import train
from workflow.content import without_mutable_keys

ALL = ["tensorboard", "wandb", "mlflow"]


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run):
    return [line["iteration"] for line in lines_of(run)]


def stop_after(config, levels, run, iterations):
    with pytest.raises(StoppedEarly):
        train(config, levels, run, tiny.StopAfter(iterations))


def forget_after(run, iteration):
    """Remove later checkpoints, as if a kill had come before them."""
    for path in (run / "checkpoints").iterdir():
        if int(path.stem) > iteration:
            path.unlink()


class Fake(Tracker):
    """A tracker that keeps its calls; `trouble` does something in one of them."""

    package = "json"
    calls, trouble = [], {}

    def open(self):
        self._do("open", self.run.id)
        return max((step for _, step, *_ in self.added()), default=0)

    def add(self, iteration, values, image):
        self._do("add", iteration, dict(values), image)

    def close(self, complete):
        self._do("close", complete)

    def abandon(self):
        self._do("abandon")

    @classmethod
    def _do(cls, name, *arguments):
        cls.trouble.get(name, lambda: None)()
        cls.calls.append((name, *arguments))

    @classmethod
    def added(cls):
        return [call for call in cls.calls if call[0] == "add"]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setitem(KINDS, "wandb", Fake)
    monkeypatch.setattr(Fake, "calls", [])
    monkeypatch.setattr(Fake, "trouble", {})
    return Fake


def config_of(**changes):
    return tiny.run_config(training__trackers=["wandb"], **changes)


# What a tracker gets


def test_a_tracker_gets_every_line_and_preview_once(fake, levels, tmp_path):
    config = config_of(training__preview_every=3)
    stop_after(config, levels, tmp_path, 7)
    train(config, levels, tmp_path, False)
    lines = {line.pop("iteration"): line for line in lines_of(tmp_path)}
    assert [step for _, step, *_ in fake.added()] == [2, 3, 4, 6, 7, 8, 9, 10, 12]
    for _, step, values, image in fake.added():
        assert values == lines.get(step, {})
        assert (image is not None) == (step % 3 == 0)
        if image is not None:
            assert np.array_equal(image, np.asarray(Image.open(preview_path(tmp_path, step))))
    assert [call for call in fake.calls if call[0] == "close"] == [("close", False), ("close", True)]
    (first, second) = [call for call in fake.calls if call[0] == "open"]
    assert first == second


def test_repeated_work_is_added_once(fake, levels, tmp_path):
    config = config_of(training__checkpoint_every=50)
    stop_after(config, levels, tmp_path, 4)
    stop_after(config, levels, tmp_path, 4)
    forget_after(tmp_path, 4)
    train(config, levels, tmp_path, False)
    assert [step for _, step, *_ in fake.added()] == steps_of(tmp_path) == [2, 4, 6, 8, 10, 12]


def test_a_tracker_that_comes_later_gets_what_was_before(fake, levels, tmp_path):
    """Nothing is refused, and nothing is trained again."""
    stop_after(tiny.run_config(training__preview_every=3), levels, tmp_path, 7)
    assert not tracker_record(tmp_path).exists()
    train(config_of(), levels, tmp_path, False)
    assert {step for _, step, *_ in fake.added()} == {3, 6, *steps_of(tmp_path)}
    assert [step for _, step, *_, image in fake.added() if image is not None] == [3, 6]


def test_a_finished_run_gets_no_tracker(fake, levels, trained, tmp_path, capsys):
    run = shutil.copytree(trained, tmp_path / "run")
    before = tiny.snapshot(run, but=["config.json"])
    train(config_of(), levels, run, False)
    assert "complete already, nothing to do" in capsys.readouterr().out
    assert fake.calls == []
    assert tiny.snapshot(run, but=["config.json"]) == before


def test_nothing_is_added_once_the_folder_is_another_trainers(fake, levels, trained, tmp_path):
    run = TrackedRun(trained, "a" * 16, config_of(), 0)
    follower = Follower("wandb", fake(run), trained, 0, lambda: len(fake.added()) < 2)
    follower.note(12)
    follower.end(True)
    follower.join(600)
    assert [step for _, step, *_ in fake.added()] == [2, 4]
    assert fake.calls[-1][0] == "add"
    Follower("wandb", fake(run), trained, 12, lambda: False).join(600)
    assert fake.calls[-1][0] == "add"


def test_a_line_that_is_being_written_waits(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 2}\n{"iteration": 4}\n{"itera')
    with open(path, "rb") as file:
        assert [line["iteration"] for line in follow._lines(file, 2)] == [2]
        assert [line["iteration"] for line in follow._lines(file, 6)] == [4]
        with open(path, "a") as more:
            more.write('tion": 6}\n')
        assert [line["iteration"] for line in follow._lines(file, 6)] == [6]


@pytest.mark.parametrize("text", ["", "{}", '{"format": "udpm-trackers/1", "run": "../a"}', '{"format": "x/1"}'])
def test_a_damaged_record_is_made_anew(tmp_path, text):
    first = follow._known_id(tmp_path)
    assert follow._known_id(tmp_path) == first
    tracker_record(tmp_path).write_text(text)
    second = follow._known_id(tmp_path)
    assert first != second == follow._known_id(tmp_path)


# Trackers that fail


def trouble_of(capsys):
    return [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("iteration ", "resumed "))]


@pytest.mark.parametrize(
    ("method", "error"), [("open", ConnectionError("no\nnetwork")), ("add", SystemExit(3)), ("close", ValueError())]
)
def test_a_tracker_that_raises_is_left_out(fake, levels, trained, tmp_path, capsys, method, error):
    def fail():
        raise error

    fake.trouble[method] = fail
    train(config_of(), levels, tmp_path, False)
    tiny.assert_same_weights(tmp_path, trained)
    assert tiny.metrics(tmp_path) == tiny.metrics(trained)
    (line,) = trouble_of(capsys)
    assert line.startswith("warning: training.trackers: wandb is left out from now on (")
    assert line.endswith("); training continues without it")
    assert {call[0] for call in fake.calls} == {"open": set(), "add": {"open"}, "close": {"open", "add"}}[method]


@pytest.mark.parametrize("method", ["open", "add", "close"])
def test_a_tracker_that_hangs_is_left_behind(fake, levels, trained, tmp_path, capsys, monkeypatch, method):
    monkeypatch.setattr(follow, "CLOSE_SECONDS", 0.01)
    wakes, ended = threading.Event(), threading.Event()

    def hang():
        wakes.wait()
        ended.set()
        raise ConnectionError

    fake.trouble[method] = hang
    train(config_of(), levels, tmp_path, False)
    tiny.assert_same_weights(tmp_path, trained)
    (line,) = trouble_of(capsys)
    assert line == "warning: training.trackers: wandb does not end within 0.01 s; training ends without it"
    assert fake.calls[-1] == ("abandon",)
    (thread,) = [thread for thread in threading.enumerate() if thread.name == "udpm-wandb"]
    wakes.set()
    thread.join()
    assert ended.is_set()
    assert trouble_of(capsys) == []


# Configuration


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["comet"], "tiny: training.trackers[0]: input should be 'tensorboard', 'wandb' or 'mlflow', got 'comet'"),
        (["wandb", "wandb"], "tiny: training.trackers: must differ from each other, got ['wandb', 'wandb']"),
        ("wandb", "tiny: training.trackers: input should be a valid list, got 'wandb'"),
        (True, "tiny: training.trackers: input should be a valid list, got True"),
    ],
)
def test_a_list_that_makes_no_sense_is_refused_in_one_line(value, expected):
    with pytest.raises(UserError) as error:
        tiny.run_config(training__trackers=value)
    assert str(error.value) == expected


@pytest.mark.parametrize("name", ALL)
def test_without_the_package_one_line_says_so(levels, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, KINDS[name].package, None)
    with pytest.raises(
        UserError, match=rf"training\.trackers: {name} needs the {name} extra: pip install 'udpm\[{name}"
    ):
        train(tiny.run_config(training__trackers=[name]), levels, tmp_path / "run", False)
    assert not (tmp_path / "run").exists()


def test_a_dry_run_names_a_missing_package(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = tiny.write_config(tmp_path, training__trackers=["wandb"])
    tiny.assert_refused(tmp_path, f"train {config} --dry-run", "wandb needs the wandb extra: pip install", capsys)


def test_the_earlier_key_is_refused_with_what_to_write(tmp_path, capsys):
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    path = tmp_path / "config/experiments/mine.yaml"
    path.write_text("extends: digits\ntraining: {tensorboard: true}\n")
    command = f"resolve mine --config {tmp_path / 'config'} --output {tmp_path / 'run.json'}"
    expected = (
        f"{path}: training.tensorboard: is one of the trackers now; write trackers: [tensorboard], or leave it out"
    )
    tiny.assert_refused(tmp_path, command, expected, capsys)
    path.write_text("extends: digits\n")
    expected = "training.tensorboard: not a key of an experiment; TensorBoard is one of training.trackers, a list"
    tiny.assert_refused(tmp_path, f"{command} --set training.tensorboard=true", expected, capsys)


@pytest.mark.parametrize("shown", [True, False])
def test_files_of_earlier_versions_still_read(shown):
    now = tiny.run_config(training__trackers=["tensorboard"] * shown)
    values = now.model_dump(mode="json")
    del values["training"]["trackers"]
    values["training"]["tensorboard"] = shown
    assert validate(RunConfig, values, "x") == now
    assert without_mutable_keys(values) == without_mutable_keys(now.model_dump(mode="json"))


# TensorBoard


@pytest.fixture(scope="module")
def watched(levels, tmp_path_factory):
    """The tiny run in TensorBoard, with previews, stopped once on its way."""
    run = tmp_path_factory.mktemp("watched") / "run"
    config = tiny.run_config(training__trackers=["tensorboard"], training__preview_every=3)
    stop_after(config, levels, run, 7)
    train(config, levels, run, False)
    return run


def events(run):
    found = EventAccumulator(str(tracker_folder(run, "tensorboard")), size_guidance={"scalars": 0, "images": 0})
    return found.Reload()


def assert_events_are_the_metrics(run):
    found, lines = events(run), lines_of(run)
    keys = set().union(*lines) - {"iteration"}
    assert set(found.Tags()["scalars"]) == keys
    for key in keys:
        expected = [(line["iteration"], line[key]) for line in lines if key in line]
        assert [(event.step, event.value) for event in found.Scalars(key)] == [
            (step, pytest.approx(value, rel=1e-6)) for step, value in expected
        ]


def test_events_are_the_metrics(watched, trained):
    assert_events_are_the_metrics(watched)
    tiny.assert_same_weights(watched, trained)


def test_events_hold_previews_and_configuration(watched):
    found = events(watched)
    assert [event.step for event in found.Images("preview")] == [3, 6, 9, 12]
    (text, *_) = found.Tensors("config/text_summary")[0].tensor_proto.string_val
    assert json.loads(text) == json.loads((watched / "config.json").read_text())


def test_repeated_work_has_one_event(levels, tmp_path):
    """After a kill, events of iterations after the checkpoint already exist."""
    changes = {"training__preview_every": 4, "training__checkpoint_every": 50}
    config = tiny.run_config(training__trackers=["tensorboard"], **changes)
    stop_after(config, levels, tmp_path, 4)
    stop_after(config, levels, tmp_path, 4)
    forget_after(tmp_path, 4)
    train(config, levels, tmp_path, False)
    assert_events_are_the_metrics(tmp_path)
    assert [event.step for event in events(tmp_path).Images("preview")] == [4, 8, 12]


@pytest.fixture(scope="module")
def half_watched(levels, tmp_path_factory):
    """The tiny run in TensorBoard, stopped at iteration 10."""
    run = tmp_path_factory.mktemp("half") / "run"
    stop_after(tiny.run_config(training__trackers=["tensorboard"], training__preview_every=4), levels, run, 10)
    return run


@pytest.mark.parametrize("bytes_left", [0, 5, 5000, -3])
def test_events_that_a_kill_cut_are_written_again(half_watched, levels, tmp_path, bytes_left):
    run = shutil.copytree(half_watched, tmp_path / "run")
    (path,) = tracker_folder(run, "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:bytes_left])
    train(tiny.run_config(training__trackers=["tensorboard"], training__preview_every=4), levels, run, False)
    assert_events_are_the_metrics(run)
    assert [event.step for event in events(run).Images("preview")] == [4, 8, 12]


def test_events_that_cannot_be_written_stop_nothing(levels, trained, tmp_path, capsys):
    tracker_folder(tmp_path, "tensorboard").write_text("a file in the folder's place")
    train(tiny.run_config(training__trackers=["tensorboard"]), levels, tmp_path, False)
    tiny.assert_same_weights(tmp_path, trained)
    (line,) = trouble_of(capsys)
    assert line.startswith("warning: training.trackers: tensorboard is left out from now on (")


def test_no_trackers_by_default(trained):
    assert [path for name in ALL for path in [tracker_folder(trained, name)] if path.exists()] == []
    assert not tracker_record(trained).exists()


@pytest.mark.slow
def test_two_processes_write_once(digits, tmp_path):
    seen = {"training__trackers": ["tensorboard"], "training__preview_every": 3}
    config = tiny.write_config(tmp_path, training__processes_per_node=2, training__iterations=6, **seen)
    places = ["--dataset", digits / "dataset", "--cache", digits / "cache", "--run", tmp_path / "run"]
    command = [str(part) for part in (*tiny.TORCHRUN, "train", config, *places)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode == 0, done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("iteration ")]) == 3
    assert len(list(tracker_folder(tmp_path / "run", "tensorboard").iterdir())) == 1
    assert_events_are_the_metrics(tmp_path / "run")
    assert [event.step for event in events(tmp_path / "run").Images("preview")] == [3, 6]


# W&B and MLflow


def in_blocks(records):
    """Write records as a .wandb file has them, without checksums."""
    data = b":W&B" + bytes(3)
    for record in records:
        first = True
        while first or record:
            left = wandb.BLOCK - len(data) % wandb.BLOCK
            if left < 7:
                data += bytes(left)
                left = wandb.BLOCK
            part, record = record[: left - 7], record[left - 7 :]
            kind = (1 if first else 4) if not record else (2 if first else 3)
            data += bytes(4) + len(part).to_bytes(2, "little") + bytes([kind]) + part
            first = False
    return data


@pytest.mark.parametrize("size", [1, 100, 2**15 - 22, 2**15 - 21, 2**15 - 20, 2**15 - 14, 2**15, 3 * 2**15, 10**5])
def test_records_of_any_size_are_read(tmp_path, size):
    records = [b"a" * size, b"b", b"c" * size, b"d" * 7]
    data = in_blocks(records)
    path = tmp_path / "run.wandb"
    path.write_bytes(data)
    assert list(wandb._records(path)) == records
    path.write_bytes(data[:-1])
    assert list(wandb._records(path)) == records[:-1]


@pytest.fixture
def tracked(levels, tmp_path):
    """A tracker of MLflow for a run in a folder, in files of that folder."""

    def open_again():
        found = MLflow(TrackedRun(tmp_path, "a" * 16, tiny.run_config(), 0))
        return found, found.open()

    return open_again


def mlflow_runs(place):
    from mlflow import MlflowClient

    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    client = MlflowClient(tracking_uri=place.resolve().as_uri())
    runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
    return client, runs


def history(client, run, name):
    return [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, name)]


@pytest.mark.slow
def test_mlflow_completes_an_iteration_that_a_kill_cut(tracked, tmp_path):
    tracker, last = tracked()
    assert last == 0
    tracker.add(2, {"a": 0.5, "b/l1": 1.0}, None)
    tracker.add(4, {"a": 0.25}, None)
    tracker, last = tracked()
    assert last == 3
    tracker.add(4, {"a": 0.25, "b/l1": 2.0}, None)
    tracker.add(6, {"a": 0.125}, np.zeros((8, 8, 3), np.uint8))
    tracker.close(True)
    client, (run,) = mlflow_runs(tmp_path / "mlflow")
    assert history(client, run, "a") == [(2, 0.5), (4, 0.25), (6, 0.125)]
    assert history(client, run, "b/l1") == [(2, 1.0), (4, 2.0)]
    assert run.info.status == "FINISHED"
    assert (run.data.params["training.batch"], run.data.params["losses.reconstruction_weight"]) == (
        "8",
        "[1.0, 1.0, 0.0]",
    )
    assert [file.path for file in client.list_artifacts(run.info.run_id, "previews")] == ["previews/000000006.png"]


@pytest.mark.slow
def test_a_copied_run_does_not_write_into_the_original(tmp_path):
    config, image = tiny.run_config(), np.zeros((8, 8, 3), np.uint8)
    MLflow(TrackedRun(tmp_path / "run", "a" * 16, config, 0)).open()
    shutil.copytree(tmp_path / "run", tmp_path / "copy")
    before = tiny.snapshot(tmp_path / "run")
    tracker = MLflow(TrackedRun(tmp_path / "copy", "a" * 16, config, 0))
    tracker.open()
    tracker.add(2, {"a": 0.5}, image)
    assert tiny.snapshot(tmp_path / "run") == before
    client, (run,) = mlflow_runs(tmp_path / "copy/mlflow")
    assert history(client, run, "a") == [(2, 0.5)]


def has_step(run, step):
    """Return whether W&B's and MLflow's files have a step."""
    metrics = (run / "mlflow").glob("*/*/metrics/learning_rate")
    in_mlflow = [int(line.split()[2]) for path in metrics for line in path.read_text().splitlines()]
    files = (path for path in (run / "wandb").glob("offline-*/*.wandb") if path.stat().st_size > wandb.HEADER)
    return step in in_mlflow and step in {found for path in files for found in wandb._steps(path)}


@pytest.mark.slow
@pytest.mark.parametrize("sees", [True, False])
def test_real_trackers_have_one_run_through_a_kill(digits, trained, tmp_path, sees):
    """Killed once the trackers have something (`sees`), or at any time; W&B's folders are read by `wandb sync`."""
    run, changes = tmp_path / "run", {"training__trackers": ALL, "training__preview_every": 4}
    config = tiny.write_config(tmp_path, **changes)
    command = ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run]
    held = tiny.Held.before_iteration(tmp_path, 7)
    with Server() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_DIR", "MLFLOW_TRACKING_URI"):
            patch.delenv(name, raising=False)
        for name, value in server.environment.items():
            patch.setenv(name, value)
        process = tiny.start(*command, program=held.program)
        held.wait(process)
        if sees:
            tiny.wait_for(lambda: has_step(run, 6), process)
        process.send_signal(signal.SIGKILL)
        held.release()
        process.communicate()
        (tmp_path / "again").mkdir()
        held = tiny.Held.before_iteration(tmp_path / "again", 11)
        process = tiny.start(*command, program=held.program)
        # Only so that a busy machine has imported W&B and MLflow before the training ends.
        tiny.wait_for(lambda: has_step(run, 10), process)
        held.release()
        _, errors = process.communicate()
        assert process.returncode == 0
        assert "resumed at iteration 4" in errors
        assert "warning" not in errors
        assert server.asked == 0, "nothing asks for the network before the user does"
        sync = [sys.executable, "-m", "wandb", "sync", run / "wandb"]
        done = subprocess.run(sync, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    tiny.assert_same_weights(run, trained)
    lines, known = lines_of(run), json.loads(tracker_record(run).read_text())["run"]
    config = json.loads((run / "config.json").read_text())
    points = {
        key: [(line["iteration"], line[key]) for line in lines if key in line]
        for key in set().union(*lines) - {"iteration"}
    }
    # Clocks tell two attempts apart, so what was seen before the kill differs in them.
    points = {key: found for key, found in points.items() if key not in tiny.CLOCKS}

    assert list(server.history) == [known]
    rows = server.history[known]
    assert [row["_step"] for row in rows] == [line["iteration"] for line in lines]
    assert [row["_step"] for row in rows if "preview" in row] == [4, 8, 12]
    assert {key: [(row["_step"], row[key]) for row in rows if key in row] for key in points} == points
    assert {key: value["value"] for key, value in server.config[known].items() if key != "_wandb"} == config
    kept = {path.name for path in (run / "wandb").rglob("files/*")}
    assert kept <= {"media", "config.yaml", "wandb-summary.json"}

    client, (found,) = mlflow_runs(run / "mlflow")
    assert {key: history(client, found, key) for key in points} == points
    assert len(history(client, found, "seconds")) == len(lines)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "digits seed0")
    assert found.data.params["training.trackers"] == json.dumps(ALL)

    shown = events(run)
    assert {key: [event.step for event in shown.Scalars(key)] for key in points} == {
        key: [step for step, _ in found] for key, found in points.items()
    }


ONLINE = """
import pathlib, sys
import tiny
from udpm.training.trackers.base import TrackedRun
from udpm.training.trackers.wandb import WandB
for start in (0, 6):
    tracker = WandB(TrackedRun(pathlib.Path(sys.argv[1]), "b" * 16, tiny.run_config(), start))
    print(tracker.open())
    for step in (2, 4, 6):
        tracker.add(start + step, {"a": 0.5 * step}, None)
    tracker.close(start == 6)
"""
"""Two attempts at a run."""


@pytest.mark.slow
def test_wandb_goes_online_if_asked(tmp_path):
    with Server() as server:
        paths = os.pathsep.join([str(tiny.ROOT), str(tiny.ROOT / "tests/helpers")])
        asked = os.environ | server.environment | {"WANDB_MODE": "online", "PYTHONPATH": paths}
        command = [sys.executable, "-c", ONLINE, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=asked)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["-1", "6"]
    rows = server.history["b" * 16]
    assert [(row["_step"], row["a"]) for row in rows] == [(2, 1), (4, 2), (6, 3), (8, 1), (10, 2), (12, 3)]
