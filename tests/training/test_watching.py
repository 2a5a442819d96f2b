"""Seeing how a run goes: log lines, metrics, previews, status, dry runs."""

import json
import os
import re
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from udpm.core.errors import StoppedEarly, UserError
from udpm.core.work import duration
from udpm.networks.inference import counted_flops, multiply_adds
from udpm.networks.unet import UNet, build_generator
from udpm.runs import lock as owners
from udpm.runs.status import QUIET_AT_FIRST
from udpm.training.estimate import estimate_resources, iteration_cost, milestone_warning
from udpm.training.metrics import COLUMNS, draw_preview, preview_labels, preview_path, progress_line, progress_text
from udpm.training.state import State
from udpm.training.trainer import train


@pytest.fixture(scope="module")
def watched(levels, tmp_path_factory):
    """The tiny run with previews, stopped once on its way."""
    run = tmp_path_factory.mktemp("watched") / "run"
    config = tiny.run_config(training__preview_every=3)
    with pytest.raises(StoppedEarly):
        train(config, levels, run, tiny.StopAfter(7))
    train(config, levels, run, False)
    return run


def lines_of(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def status(capsys, *arguments):
    assert tiny.call("status", *arguments, "--json") == 0
    return json.loads(capsys.readouterr().out)


def put_owner(run, **changes):
    """The record of a trainer elsewhere that is well."""
    record = {"token": "t", "host": "node3", "pid": 1, "job": "77", "attempt": "2", "beat": 9}
    record |= {"time": time.time(), "since": time.time()} | changes
    (run / "owner.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def stopped_once(levels, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.raises(StoppedEarly):
        train(tiny.run_config(), levels, run, tiny.StopAfter(7))
    return run


@pytest.fixture
def stopped(stopped_once, tmp_path):
    """A run that was stopped after 7 of 12 iterations, to be changed at will."""
    return shutil.copytree(stopped_once, tmp_path / "run")


# Metrics and their log line


def test_metrics_hold_discriminator_outputs_and_memory(trained):
    line = lines_of(trained)[-1]
    judged = {key.rpartition("/")[0] for key in line if key.startswith("discriminator/")}
    assert {"discriminator/real", "discriminator/fake"} <= judged
    assert 0.1 < line["memory_gib"] < 20


LINE = {
    "iteration": 40,
    "seconds": 9.0,
    "images_per_second": 800.0,
    "learning_rate": 1e-3,
    "memory_gib": 0.5,
    "gpu_memory_gib": 3.25,
    "generator/reconstruction/l1": 0.1234567,
    "generator/lpips/l1": 0.5,
    "generator/adversarial/l2": 0.7,
    "discriminator/real/l2": 1.5,
    "discriminator/fake/l2": -1.5,
    "discriminator/r1/l2": 0.01,
    "discriminator/loss/l2": 9.0,
}


def test_the_line_in_a_log():
    assert progress_line(LINE, 3240, 32) == (
        "iteration 40 of 3240, 800 img/s, 2.1 min left, rate 0.001 | l=1 rec 0.123 lpips 0.5 | "
        "l=2 adv 0.7 D real 1.5 fake -1.5 R1 0.01 | 0.50 GiB, GPU 3.25 GiB"
    )


def test_the_text_after_a_progress_bar():
    assert progress_text(LINE) == "800 img/s; rec l=1 0.123"


def test_training_logs_the_line(levels, tmp_path, capsys):
    train(tiny.run_config(training__iterations=2), levels, tmp_path, False)
    output = capsys.readouterr().err.splitlines()
    assert len(output) == 1
    assert output[0] == progress_line(lines_of(tmp_path)[0], 2, 8)
    assert "img/s" in output[0]
    assert "D real" in output[0]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (119, "119 s"), (150, "2.5 min"), (5000, "83 min"), (7200, "2.0 h"), (3e5, "3.5 days")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words


# Previews


def test_no_previews_by_default(trained):
    assert not (trained / "previews").exists()


def test_previews_leave_the_training_alone(watched, trained):
    tiny.assert_same_weights(watched, trained)
    assert tiny.metrics(watched)[-1] == tiny.metrics(trained)[-1]


def test_previews_are_png_files(watched):
    assert sorted(path.name for path in (watched / "previews").iterdir()) == [
        f"{iteration:09d}.png" for iteration in (3, 6, 9, 12)
    ]
    first, last = (np.asarray(Image.open(preview_path(watched, iteration))) for iteration in (3, 12))
    assert first.shape == last.shape == (8 * 64 + 7 * 2, 8 * 64 + 7 * 2, 3)
    assert (first != last).any()


@pytest.mark.parametrize("training", [True, False])
def test_a_preview_changes_neither_mode_nor_random_state(training):
    config = tiny.run_config(generator__dropout=0.5).model
    generator = build_generator(config).train(training)
    state = torch.get_rng_state()
    first, second = (draw_preview(generator, config) for _ in range(2))
    assert (first == second).all()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training is training for module in generator.modules())
    assert not any(value.is_inference() for value in generator.state_dict().values())


@pytest.mark.parametrize(
    ("classes", "rows"),
    [
        (0, [0] * 8),
        (2, [0] * 4 + [1] * 4),
        (3, [0, 0, 1, 1, 2, 2]),
        (8, list(range(8))),
        (10, list(range(8))),
    ],
)
def test_rows_of_a_preview(classes, rows):
    assert preview_labels(classes) == [label for label in rows for _ in range(COLUMNS)]


def test_raw_weights_are_shown_where_there_is_no_average(levels, tmp_path):
    train(
        tiny.run_config(training__iterations=2, training__ema_decay=0, training__preview_every=2),
        levels,
        tmp_path,
        False,
    )
    assert preview_path(tmp_path, 2).exists()


# udpm status


def test_a_complete_run(trained, capsys):
    (found,) = status(capsys, trained)
    assert (found["state"], found["iteration"], found["iterations"], found["checkpoint"]) == ("complete", 12, 12, 12)
    assert found["seconds_left"] is found["heartbeat_age"] is None


def test_a_stopped_run(stopped, capsys):
    (found,) = status(capsys, stopped)
    assert (found["state"], found["iteration"], found["iterations"], found["checkpoint"]) == ("stopped", 7, 12, 7)
    assert 0 <= found["checkpoint_age"] < 100


def test_a_running_run(stopped, capsys):
    put_owner(stopped)
    (found,) = status(capsys, stopped)
    assert found["state"] == "running"
    assert (found["host"], found["job"], found["attempt"]) == ("node3", "77", "2")
    assert found["seconds_left"] == pytest.approx((12 - 7) * 8 / found["images_per_second"])
    assert tiny.call("status", stopped) == 0
    header, row = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["run", "state", "iteration", "img/s"]
    assert "7 of 12" in row
    assert "node3, job 77, attempt 2" in row


def test_a_trainer_without_heartbeat_is_stalled(stopped, capsys):
    put_owner(stopped, time=time.time() - 3600)
    (found,) = status(capsys, stopped)
    assert found["state"] == "stalled"
    assert found["heartbeat_age"] == pytest.approx(3600, abs=60)
    assert found["note"] == "no heartbeat from process 1 on node3, job 77"
    assert found["seconds_left"] is None


def test_a_trainer_that_lives_but_hangs_is_stalled(stopped, capsys):
    long_ago = time.time() - QUIET_AT_FIRST - 100
    put_owner(stopped, since=long_ago)
    os.utime(stopped / "metrics.jsonl", (long_ago, long_ago))
    (found,) = status(capsys, stopped)
    assert found["state"] == "stalled"
    assert "is alive, but has written no metrics for 62 min" in found["note"]


def test_a_killed_trainer_of_this_host_is_not_running(stopped, capsys):
    put_owner(stopped, machine=owners._machine(), pid=2**22 + 1)
    (found,) = status(capsys, stopped)
    assert found["state"] == "stopped"
    assert "ended abruptly" in found["note"]


def test_a_run_that_has_not_begun(tmp_path, capsys):
    tiny.write_config(tmp_path).rename(tmp_path / "config.json")
    (found,) = status(capsys, tmp_path)
    assert (found["state"], found["iteration"], found["iterations"]) == ("waiting", None, 12)


def test_a_failed_run(levels, tmp_path, capsys):
    with pytest.raises(UserError, match="is not finite"):
        train(tiny.run_config(training__learning_rate=1e30, training__warmup=0), levels, tmp_path, False)
    (found,) = status(capsys, tmp_path)
    assert found["state"] == "failed"
    assert "was not finite in iteration" in found["note"]


def test_status_survives_damaged_metrics_and_records(stopped, capsys):
    with open(stopped / "metrics.jsonl", "a") as file:
        file.write('{"iteration": 8, "sec')
    (stopped / "owner.json").write_text("rubbish")
    (found,) = status(capsys, stopped)
    assert (found["state"], found["iteration"]) == ("stopped", 7)


def test_all_runs_of_a_folder(stopped, trained, tmp_path, capsys):
    for name, run in (("a", stopped), ("b", trained)):
        (tmp_path / f"results/runs/{name}").mkdir(parents=True)
        (tmp_path / f"results/runs/{name}/seed0").symlink_to(run)
    found = status(capsys, "--results", tmp_path / "results")
    assert [run["state"] for run in found] == ["stopped", "complete"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["{}"], "not a run's folder"),
        (["{}/missing"], "not a run's folder"),
        (["--results", "{}"], "no runs found"),
        ([], "give RUN folders, or --results"),
    ],
)
def test_refuses_a_folder_without_a_run(tmp_path, capsys, arguments, expected):
    assert tiny.call("status", *(argument.format(tmp_path) for argument in arguments)) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert expected in errors[0]


def test_status_imports_no_torch(trained):
    code = (
        "import atexit, sys; atexit.register(lambda: print('torch' in sys.modules)); from udpm.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "status", trained], capture_output=True, text=True, cwd=tiny.ROOT
    )
    _, row, torch_was_imported = done.stdout.splitlines()
    assert "complete" in row
    assert torch_was_imported == "False"


# udpm train --dry-run


def dry_run(capsys, *arguments):
    assert tiny.call("train", *arguments, "--dry-run") == 0
    output = capsys.readouterr().out
    return {line.split()[0]: line.split(maxsplit=1)[1] for line in output.splitlines()}


def test_a_dry_run_writes_nothing(digits, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    before = tiny.snapshot(tmp_path)
    run = tmp_path / "run"
    found = dry_run(capsys, config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--run", run)
    assert tiny.snapshot(tmp_path) == before
    assert not run.exists()
    assert found["run"] == f"digits, seed 0; {run} is new"
    assert found["data"] == "digits, 16×16, 10 classes, 1297 training images"
    assert found["training"].startswith("12 iterations of 8 images")
    assert found["losses"].startswith("l1 [1.0, 1.0, 0.0], adversarial [")


@pytest.mark.slow
def test_a_dry_run_of_the_paper_estimates_resources(tmp_path, capsys):
    tiny.udpm("resolve", "cifar10", "--output", tmp_path / "run.json")
    found = dry_run(capsys, tmp_path / "run.json")
    assert "generator ncsnpp 57.74 M parameters, discriminator 18.95 M" in found["networks"]
    assert "milestones 60 × 0.23 GB = 13.86 GB, one every 10000" in found["disk"]
    assert found["memory"].startswith("1.46 GB for the state")
    assert found["GPU"].startswith("about 6.9")
    assert "in the discriminator's step at l = 1 for 64 images at once" in found["GPU"]
    assert re.search(r"that fit: \d+ on 24 GB, \d+ on 40 GB, \d+ on 80 GB$", found["GPU"])
    assert "without LPIPS" in found["arithmetic"]


def test_a_dry_run_reports_the_status_of_the_run(digits, stopped, tmp_path, capsys):
    places = ["--dataset", digits / "dataset", "--cache", digits / "cache", "--run", stopped]
    found = dry_run(capsys, tiny.write_config(tmp_path), *places)
    assert found["run"] == f"digits, seed 0; {stopped} is stopped, last checkpoint 7"
    other = tiny.write_config(tmp_path, training__learning_rate=0.5)
    assert tiny.call("train", other, *places, "--dry-run") == 2
    assert "training.learning_rate was 0.001, is 0.5" in capsys.readouterr().err


def test_training_needs_its_folders(tmp_path, capsys):
    assert tiny.call("train", tiny.write_config(tmp_path)) == 2
    assert "Missing option '--dataset'" in capsys.readouterr().err


def test_estimates_are_the_sizes_of_the_files(levels, tmp_path):
    changes = {"training__more_ema_decays": [0.9], "training__posthoc_average": True}
    config = tiny.run_config(training__iterations=6, training__keep_every=3, **changes)
    train(config, levels, tmp_path, False)
    needs = estimate_resources(config, 6)
    sizes = {
        "checkpoint": tmp_path / "checkpoints/000000006.safetensors",
        "milestone": tmp_path / "milestones/000000006.safetensors",
        "snapshot": tmp_path / "snapshots/000000006.safetensors",
        "final": tmp_path / "weights.safetensors",
    }
    for name, path in sizes.items():
        with open(path, "rb") as file:
            header = 8 + int.from_bytes(file.read(8), "little")
        assert path.stat().st_size - header == getattr(needs, name), name
    assert needs.milestones == len(list((tmp_path / "milestones").iterdir())) == 2
    assert needs.snapshots == len(list((tmp_path / "snapshots").glob("*.safetensors"))) == 2
    assert needs.parameters == json.loads((tmp_path / "complete.json").read_text())["parameters"]
    state = State.fresh(config, torch.device("cpu"))
    assert needs.averages == sum(
        value.nbytes for average in state.averages.values() for value in average.module.state_dict().values()
    )


def test_large_milestones_are_announced(tmp_path):
    needs = estimate_resources(tiny.run_config(), 600_000)
    assert milestone_warning(needs, 0, 10_000, tmp_path) is None
    large = type(needs)(**vars(needs) | {"milestone": 230_950_448, "milestones": 60})
    output = milestone_warning(large, 0, 10_000, tmp_path)
    assert "milestones will take 60 × 0.23 GB = 13.86 GB (training.keep_every: 10000" in output
    assert "50 × 0.23 GB" in milestone_warning(large, 100_000, 10_000, tmp_path)
    huge = type(needs)(**vars(needs) | {"milestone": 10**18, "milestones": 60})
    assert milestone_warning(huge, 0, 10_000, tmp_path).startswith("warning: ")


def test_arithmetic_is_counted_as_pytorch_counts_it():
    config = tiny.run_config()
    with torch.device("meta"):
        network = build_generator(config.model)
    assert isinstance(network, UNet)
    image, label = torch.empty(1, 3, 8, 8, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        network(image, 0.5, label).sum().backward()
    with counted_flops() as counted:
        network(image, 0.5, label).sum().backward()
    assert counted.flops == counter.get_total_flops()
    assert 2 < counted.flops // 2 / multiply_adds(network, 8) < 3


def test_arithmetic_of_an_iteration():
    """Forward once, backward nearly twice; a discriminator costs more, and so do two images for one."""
    finest = {"training__level_probabilities": [1.0, 0.0, 0.0]}
    config = tiny.run_config(losses__adversarial_weight=0.0, **finest)
    with torch.device("meta"):
        forward = multiply_adds(build_generator(config.model), 8)
    alone = iteration_cost(config).multiply_adds
    assert 2.7 * forward < alone / 8 < 3 * forward
    doubled = tiny.run_config(losses__adversarial_weight=0.0, training__batch=16, **finest)
    assert iteration_cost(doubled).multiply_adds == pytest.approx(2 * alone)
    judged = tiny.run_config(**finest)
    assert iteration_cost(judged).multiply_adds > alone + 8 * forward
