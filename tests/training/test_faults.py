"""Failures of unattended training: torn checkpoints, full disks, losses that are not finite."""

import json
import os
import random
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tiny
import torch
from safetensors.torch import load_file

from udpm.core import devices
from udpm.core.containers import read_header
from udpm.core.errors import StoppedEarly, UserError
from udpm.runs import lock as owners
from udpm.runs.attempts import ATTEMPTS
from udpm.runs.lock import RunLock, read_owner
from udpm.training import checkpoint
from udpm.training.checkpoint import checkpoints
from udpm.training.perceptual import load_lpips
from udpm.training.state import State
from udpm.training.trainer import Trainer, train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stopped(levels, tmp_path_factory):
    """A tiny run that was stopped at iteration 9, with checkpoints of 8 and 9."""
    devices.configure("cpu", 1)
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(StoppedEarly):
        train(tiny.run_config(), levels, run, tiny.StopAfter(9))
    return run


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of it."""
    return shutil.copytree(stopped, tmp_path / "run")


def command(digits, config, run, *more):
    return ["train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run, *more]


def fails(digits, config, run, capsys):
    """Return the one line of a training that cannot continue."""
    assert tiny.call(*command(digits, config, run)) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("warning:", "iteration "))]
    (line,) = [line for line in lines if not line.startswith("resumed at iteration")]
    assert line.startswith("error: ")
    return line


# --- torn checkpoints ------------------------------------------------------------------------------------------------


def cut_at_random(path):
    size = random.Random(path.stat().st_ino).randrange(path.stat().st_size)
    with open(path, "r+b") as file:
        file.truncate(size)


TEARS = {
    "cut": lambda path: cut_at_random(path),
    "a flipped byte": lambda path: tiny.flip_byte(path, path.stat().st_size // 3),
    "no manifest": lambda path: path.with_suffix(".json").unlink(),
    "a manifest of other bytes": lambda path: shutil.copy(
        path.with_name("000000008.json"), path.with_name("000000009.json")
    ),
    "a cut manifest": lambda path: tiny.cut(path.with_suffix(".json")),
}


@pytest.mark.parametrize("tear", TEARS)
def test_a_torn_checkpoint_is_skipped(levels, trained, run, capsys, tear):
    TEARS[tear](checkpoints(run / "checkpoints")[-1])
    train(tiny.run_config(), levels, run, False)
    output = capsys.readouterr().err
    warnings = [line for line in output.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 1
    assert "warning: skipped: " in warnings[0]
    assert "000000009" in warnings[0]
    assert "resumed at iteration 8" in output
    tiny.assert_same_weights(run, trained)
    assert [path.name for path in checkpoints(run / "checkpoints")] == [
        "000000008.safetensors",
        "000000012.safetensors",
    ]


def test_a_checkpoint_cut_anywhere_is_skipped(run, capsys):
    """At 20 random places, its ends included."""
    state, newest = State.fresh(tiny.run_config(), CPU), checkpoints(run / "checkpoints")[-1]
    whole, rng = newest.read_bytes(), random.Random(0)
    for size in [0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(18))]:
        newest.write_bytes(whole[:size])
        assert checkpoint.resume(run / "checkpoints", state, 12, lambda *_: None)["iteration"] == 8
        (line,) = capsys.readouterr().err.splitlines()
        assert line == f"warning: skipped: {newest}: its bytes are not those that were written (SHA-256)"
    newest.write_bytes(whole)
    assert checkpoint.resume(run / "checkpoints", state, 12, lambda *_: None)["iteration"] == 9


@pytest.mark.parametrize("tear", [tear for tear in TEARS if tear != "a manifest of other bytes"])
def test_if_all_checkpoints_are_torn_nothing_changes(digits, run, tmp_path, capsys, tear):
    for path in checkpoints(run / "checkpoints"):
        TEARS[tear](path)
    before = tiny.snapshot(run, but=[ATTEMPTS])
    line = fails(digits, tiny.write_config(tmp_path), run, capsys)
    assert line.endswith("none of its 2 checkpoints can be read; delete the folder to start anew")
    assert tiny.snapshot(run, but=[ATTEMPTS]) == before


def test_a_first_save_that_was_interrupted_is_no_checkpoint(levels, trained, tmp_path, capsys):
    """Killed between the file and its manifest, before any other checkpoint: training starts again."""
    with pytest.raises(StoppedEarly):
        train(tiny.run_config(), levels, tmp_path, tiny.StopAfter(3))
    (only,) = checkpoints(tmp_path / "checkpoints")
    only.with_suffix(".json").unlink()
    (tmp_path / "checkpoints/.000000004.safetensors.tmp-1").write_bytes(b"half")
    train(tiny.run_config(), levels, tmp_path, False)
    assert "resumed" not in capsys.readouterr().err
    tiny.assert_same_weights(tmp_path, trained)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        f"{iteration:09d}.{kind}" for iteration in (8, 12) for kind in ("json", "safetensors")
    ]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"training__learning_rate": 0.5}, "is of another run (training.learning_rate was 0.5, is 0.001); remove it"),
        ({"generator__channels": 16}, "is of another run (generator.channels was 16, is 8); remove it"),
        ({"dataset": "others"}, "was trained on other images than those in "),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(digits, levels, run, tmp_path, capsys, changes, expected):
    config = tiny.run_config(**(changes if "dataset" not in changes else {}))
    state = State.fresh(config, CPU)
    state.iteration = 10
    images = "0" * 64 if "dataset" in changes else levels.store.digest
    description = {"dataset_sha256": images, "run": config.model_dump(mode="json"), "processes": [], "origin": None}
    checkpoint.save_checkpoint(run / "checkpoints", state, description)
    before = tiny.snapshot(run, but=[ATTEMPTS])
    assert expected in fails(digits, tiny.write_config(tmp_path), run, capsys)
    assert tiny.snapshot(run, but=[ATTEMPTS]) == before


# --- disks -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A file system of a few MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=12m", "none", str(folder)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("A FULL DISK IS NOT TESTED: mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder, leave=0):
    """Fill a file system up to `leave` bytes."""
    with open(folder / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            file.truncate(max(0, file.tell() - leave))


class FillAfter:
    """Fills a disk after an iteration; never asks to stop."""

    def __init__(self, folder, iterations, leave):
        self.folder, self.left, self.leave = folder, iterations, leave

    def __bool__(self):
        self.left -= 1
        if self.left == 0:
            fill(self.folder, self.leave)
        return False


@pytest.mark.parametrize(
    ("changes", "leave", "written"),
    [
        ({"training__log_every": 100}, 0, "checkpoints/000000008.safetensors"),
        ({"training__log_every": 100}, 1 << 20, "checkpoints/000000008.safetensors"),
        ({"training__log_every": 1, "training__checkpoint_every": 5}, 0, "metrics.jsonl"),
        ({"training__log_every": 100, "training__checkpoint_every": 5, "training__keep_every": 7}, 4096, "milestones/"),
    ],
)
def test_a_full_disk(digits, levels, trained, disk, tmp_path, capsys, changes, leave, written):
    run, config = disk / "run", tiny.run_config(**changes)
    with pytest.raises(UserError) as caught:
        train(config, levels, run, FillAfter(disk, 6, leave))
    assert str(caught.value).startswith(f"{run}/{written}")
    assert "No space left on device" in str(caught.value)
    assert "\n" not in str(caught.value)
    capsys.readouterr()
    # Still full: the first write fails with the same message, and nothing is lost.
    if not leave:
        before = {path: data for path, data in tiny.snapshot(run).items() if path.parts[0] == "checkpoints"}
        assert "No space left on device" in fails(digits, tiny.write_config(tmp_path, **changes), run, capsys)
        after = tiny.snapshot(run)
        assert {path: after.get(path) for path in before} == before
    (disk / "filler").unlink()
    train(config, levels, run, False)
    assert f"resumed at iteration {config.training.checkpoint_every}\n" in capsys.readouterr().err
    tiny.assert_same_weights(run, trained)
    assert not list(run.rglob(".*.tmp-*"))


def test_the_lock_has_a_heartbeat_on_a_full_disk(disk, monkeypatch, capsys):
    """Without room for a new record, its time still shows that the owner lives."""
    monkeypatch.setattr(owners, "HEARTBEAT", 0.05)
    record = disk / owners.RECORD
    with RunLock(disk, False) as owner:
        fill(disk)
        # One beat may have been on its way already.
        times = AFewTimes(record, 2)
        tiny.wait_for(lambda: times)
        beat, times = read_owner(disk)["beat"], AFewTimes(record, 2)
        # As from another node, from which the process cannot be seen.
        monkeypatch.setattr(owners.socket, "gethostname", lambda: "elsewhere")
        with pytest.raises(StoppedEarly, match="while waiting for process"):
            RunLock(disk, times, stale=6).__enter__()
        assert read_owner(disk)["beat"] == beat
        assert owner.is_held()
        (disk / "filler").unlink()
        tiny.wait_for(lambda: read_owner(disk)["beat"] > beat)
    assert read_owner(disk) is None
    assert "taking over" not in capsys.readouterr().err


class AFewTimes:
    """A request to stop that becomes true once a file has had `count` different times."""

    def __init__(self, path, count):
        self.path, self.count, self.seen = path, count, set()

    def __bool__(self):
        self.seen.add(self.path.stat().st_mtime_ns)
        return len(self.seen) > self.count


@pytest.mark.parametrize("finished", [False, True])
def test_a_read_only_folder(digits, trained, disk, tmp_path, capsys, finished):
    if finished:
        shutil.copytree(trained, disk / "run")
    before = tiny.snapshot(disk)
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    line = fails(digits, tiny.write_config(tmp_path), disk / "run", capsys)
    assert line.startswith(f"error: {disk / 'run'}")
    assert line.endswith("Read-only file system")
    assert tiny.snapshot(disk) == before


@pytest.mark.slow
def test_training_continues_without_a_writable_log(digits, trained, tmp_path):
    config = tiny.write_config(tmp_path)
    launch = [sys.executable, "-m", "udpm", *map(str, command(digits, config, tmp_path / "run"))]
    with open("/dev/full", "w") as full:
        assert subprocess.run(launch, stdout=full, stderr=full, cwd=tiny.ROOT).returncode == 0
        tiny.assert_same_weights(tmp_path / "run", trained)
        (tmp_path / "run.json").write_text("rubbish")
        assert subprocess.run(launch, stdout=full, stderr=full, cwd=tiny.ROOT).returncode == 2


# --- losses that are not finite --------------------------------------------------------------------------------------


def poison(monkeypatch, player, iteration, term, value):
    """Let one term of a player's loss be something else in one iteration (counted from 0); "gradient" for gradients."""
    losses_of = Trainer.losses_of

    def changed(self, name, weights):
        compute = losses_of(self, name, weights)

        def poisoned(weights, batch):
            found = compute(weights, batch)
            if (name, self.state.iteration) == (player, iteration):
                if term == "gradient":
                    # The value stays as it is, and only what flows back is not.
                    found["total"] = found["total"] + (found["total"] - found["total"].detach()) * value
                else:
                    found[term] = found[term] * value
                    found["total"] = found["total"] * value
            return found

        return poisoned

    monkeypatch.setattr(Trainer, "losses_of", changed)


@pytest.mark.parametrize(
    ("player", "term", "value"),
    [
        ("generator", "adversarial", float("nan")),
        ("generator", "gradient", float("inf")),
        ("discriminator", "loss", float("inf")),
        ("discriminator", "gradient", float("nan")),
    ],
)
def test_losses_that_are_not_finite(levels, tmp_path, monkeypatch, player, term, value):
    """The first is named, though everything after it is not finite either; state and batch are kept to look at."""
    config = tiny.run_config(training__log_every=3)
    poison(monkeypatch, player, 6, term, value)
    draw = Trainer(config, levels, CPU).batches(player, 6)
    expected = f"{player}/{term} of level {draw.level} is not finite in iteration 7; a lower training.learning_rate may"
    with pytest.raises(UserError, match=expected) as caught:
        train(config, levels, tmp_path, False)
    assert "state and batch are in failures/; the last checkpoint is older" in str(caught.value)
    assert [line["iteration"] for line in tiny.metrics(tmp_path)] == [3, 4, 6]
    assert [path.stem for path in checkpoints(tmp_path / "checkpoints")] == ["000000004"]
    failed = tmp_path / "failures/000000006.safetensors"
    kept, description = load_file(failed), read_header(failed).description
    assert description["format"] == checkpoint.FAILURE_FORMAT
    assert (description["player"], description["term"], description["level"]) == (player, term, draw.level)
    # Noticed at the interval's end, the checkpoint of iteration 8.
    assert (description["first"], description["iteration"]) == (6, 8)
    for name in ("target", "labels", "noise"):
        assert torch.equal(kept[f"batch/{name}"], getattr(draw, name))
    assert not kept["generator/head.weight"].isfinite().all()
    monkeypatch.undo()
    train(config, levels, tmp_path, False)
    assert [line["iteration"] for line in tiny.metrics(tmp_path)] == [3, 4, 6, 8, 9, 12]


def test_a_loss_that_is_not_finite_is_reported_on_a_full_disk(levels, disk, monkeypatch):
    poison(monkeypatch, "generator", 6, "reconstruction", float("nan"))
    write = checkpoint.write_tensors
    monkeypatch.setattr(
        checkpoint, "write_tensors", lambda path, *rest: (no_room if "failures" in path.parts else write)(path, *rest)
    )
    config = tiny.run_config(training__level_probabilities=[1, 0, 0])
    with pytest.raises(
        UserError, match=r"generator/reconstruction of level 1 .* \(state and batch are not kept: full;"
    ):
        train(config, levels, disk / "run", False)


def no_room(*_):
    raise UserError("full")


# --- what cannot begin -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lpips_without_its_weights(digits, tmp_path):
    """No network, and none of the weights in torchvision's folder."""
    config = tiny.write_config(tmp_path, losses__lpips_weight=[1.0, 0.0, 0.0])
    environment = os.environ | {"TORCH_HOME": str(tmp_path / "empty"), "https_proxy": "http://127.0.0.1:9"}
    done = tiny.udpm(*command(digits, config, tmp_path / "run"), check=False, env=environment)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    folder = f"{tmp_path}/empty/hub/checkpoints"
    assert f"losses.lpips_weight: {folder}/vgg16-397923af.pth: cannot be downloaded" in line
    assert f"put vgg16-397923af.pth from https://download.pytorch.org/models/vgg16-397923af.pth into {folder}" in line


def test_lpips_downloads_nothing_offline(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", SimpleNamespace())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("UDPM_OFFLINE", "1")
    with pytest.raises(UserError, match=r"vgg16-397923af.pth: not found, and downloads are switched off"):
        load_lpips("vgg", 2.0, CPU)
    assert not list(tmp_path.iterdir())


def test_a_backend_for_gpus_on_a_cpu(digits, tmp_path, capsys):
    line = fails(digits, tiny.write_config(tmp_path, training__backend="nccl"), tmp_path / "run", capsys)
    assert "training.backend: nccl needs GPUs, but this training is on the CPU; use auto or gloo" in line


def test_a_time_limit(digits, trained, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    assert tiny.call(*command(digits, config, tmp_path / "run", "--max-minutes", "0")) == 75
    *_, line = capsys.readouterr().err.splitlines()
    assert line == "stopped on --max-minutes at iteration 1 of 12, state saved: run the same command again"
    assert tiny.call(*command(digits, config, tmp_path / "run", "--max-minutes", "60")) == 0
    tiny.assert_same_weights(tmp_path / "run", trained)


def test_a_damaged_line_of_metrics_is_removed(levels, trained, run):
    """A torn or damaged line is removed, and training continues."""
    with open(run / "metrics.jsonl", "ab") as file:
        file.write(b'\xff\x00{"iteration": 9, "sec\n[1]\n{}\n{"iteration": 9')
    train(tiny.run_config(), levels, run, False)
    tiny.assert_same_weights(run, trained)
    assert [line["iteration"] for line in tiny.metrics(run)] == [2, 4, 6, 8, 9, 10, 12]


# --- a week ----------------------------------------------------------------------------------------------------------


@pytest.mark.soak
def test_memory_does_not_grow(digits, tmp_path):
    """After 3000 iterations a process takes what it took after 500, but for a few MiB."""
    config = tiny.write_config(
        tmp_path,
        training__iterations=3000,
        training__batch=1,
        training__log_every=100,
        training__checkpoint_every=500,
        training__keep_every=500,
    )
    tiny.udpm(*command(digits, config, tmp_path / "run"))
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    taken = {line["iteration"]: line["memory_gib"] * 1024 for line in lines}
    assert taken[3000] - taken[500] < 8
