"""Averages of any width from the snapshots of two."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from udpm.core import devices
from udpm.core.containers import read_header
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import sha256
from udpm.networks.weights import load_model, read_tensors, write_tensors
from udpm.runs.layout import snapshot
from udpm.sampling.sample_set import load_samples
from udpm.training.posthoc import FORMAT, combine, exponent, power_decay
from udpm.training.trainer import Trainer, train

KEPT = {"training__posthoc_average": True, "training__keep_every": 2}
ALL = KEPT | {
    "training__ema_decay": None,
    "training__ema_halflife": 40.0,
    "training__ema_rampup": 0.5,
    "training__learning_rate_end": 0.1,
    "training__decay_iterations": 9,
}
"""With every option on averages and the decay of learning rates."""


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


# --- the combination -------------------------------------------------------------------------------------------------


def tracked(values, width):
    """Return the average of a width after each iteration of a trajectory."""
    found = []
    for iteration, value in enumerate(values, start=1):
        factor = power_decay(width, iteration)
        found.append(factor * found[-1] + (1 - factor) * value if found else value)
    return np.array(found)


def test_the_exponents_are_those_of_edm2():
    assert [round(exponent(width), 2) for width in (0.05, 0.1)] == [16.97, 6.94]


@pytest.mark.parametrize("width", [0.03, 0.05, 0.1, 0.25])
def test_the_average_is_the_power_function_with_this_width(width):
    count, power = 4000, exponent(width) + 1
    times = np.arange(1, count + 1)
    profile = (times / count) ** power - ((times - 1) / count) ** power
    assert tracked(times, width)[-1] == pytest.approx(profile @ times, rel=1e-9)
    spread = math.sqrt(profile @ times**2 - (profile @ times) ** 2)
    assert spread / count == pytest.approx(width, rel=1e-3)


WALK = np.cumsum(np.random.default_rng(0).normal(size=8000))
TRAJECTORIES = {"time": np.arange(8000.0), "walk": WALK, "constant": np.full(8000, 3.0)}


@pytest.mark.parametrize("trajectory", TRAJECTORIES)
@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.1, 0.15, 0.2])
def test_a_combination_is_the_average_that_was_not_tracked(trajectory, width):
    values = TRAJECTORIES[trajectory]
    iterations = list(range(250, 8001, 250))
    snapshots = np.stack([tracked(values, known)[np.array(iterations) - 1] for known in (0.05, 0.1)], axis=1)
    weights, error = combine(iterations, width)
    found, expected = (weights * snapshots).sum(), tracked(values, width)[-1]
    if width in (0.05, 0.1):
        assert (found, error) == (expected, 0)
    else:
        assert 0 < error < 0.02
        # Relative to what the trajectory moves within the average's width.
        moved = values[-int(2 * width * 8000) :].std()
        assert abs(found - expected) <= 0.01 * moved + 1e-9


def test_few_snapshots_allow_few_widths():
    errors = {width: combine([1000], width)[1] for width in (0.01, 0.07, 0.25)}
    assert errors[0.07] < 0.06
    assert min(errors[0.01], errors[0.25]) > 0.5
    assert combine(list(range(1000, 60_001, 1000)), 0.25)[1] < 0.02


# --- a run -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(levels, tmp_path_factory):
    """A finished run of 11 iterations with a snapshot every 2."""
    devices.configure("cpu", 1)
    run = tmp_path_factory.mktemp("kept") / "run"
    train(tiny.run_config(**ALL, training__iterations=11), levels, run, False)
    return run


@pytest.fixture
def run(kept, tmp_path):
    return Path(shutil.copytree(kept, tmp_path / "run"))


def test_snapshots_are_kept_and_change_no_weights(levels, kept, tmp_path):
    names = sorted(path.name for path in (kept / "snapshots").iterdir())
    assert names == [f"{number:09d}.{kind}" for number in (2, 4, 6, 8, 10, 11) for kind in ("json", "safetensors")]
    plain = ALL | {"training__posthoc_average": False}
    train(tiny.run_config(**plain, training__iterations=11), levels, tmp_path, False)
    tiny.assert_same_weights(kept, tmp_path)
    assert {key.split("/")[0] for key in tiny.tensors(snapshot(kept, 11))} == {"power-0.05", "power-0.1"}


def test_stops_resumes_and_grows_exactly(levels, kept, tmp_path):
    first = tiny.run_config(**ALL, training__iterations=8)
    with pytest.raises(StoppedEarly):
        train(first, levels, tmp_path, tiny.StopAfter(3))
    train(first, levels, tmp_path, False)
    train(tiny.run_config(**ALL, training__iterations=11), levels, tmp_path, False)
    for path in (Path("weights.safetensors"), *(snapshot("", iteration) for iteration in (10, 11))):
        assert (tmp_path / path).read_bytes() == (kept / path).read_bytes()
    assert tiny.metrics(kept)[-1]["learning_rate"] == pytest.approx(1e-4)


def test_a_reconstruction_is_close_to_a_tracked_average(levels, kept, tmp_path):
    trainer = Trainer(tiny.run_config(**ALL, training__iterations=11), levels, torch.device("cpu"))
    expected = {}
    for iteration in range(1, 12):
        trainer.iterate()
        weights = trainer.state.generator.state_dict()
        for width in (0.05, 0.07, 0.1):
            factor, before = power_decay(width, iteration), expected.get(width, weights)
            expected[width] = {name: factor * before[name] + (1 - factor) * weights[name] for name in weights}
    for width, state in expected.items():
        assert tiny.call("average", kept, "--width", width, "--output", tmp_path / "a.safetensors") == 0
        found = load_model(tmp_path / "a.safetensors").generator.state_dict()
        for name, value in state.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6 if width != 0.07 else 1e-4)
    exact = {
        f"ema/{name.removeprefix('power-0.1/')}": value for name, value in tiny.tensors(snapshot(kept, 11)).items()
    }
    written = tiny.tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(written[name], exact[name]) for name in written)


def test_it_is_sampled_and_says_what_it_is(kept, tmp_path, capsys):
    output = tmp_path / "a.safetensors"
    for _ in range(2):
        assert tiny.call("average", kept, "--width", 0.08, "--output", output, "--at", 8) == 0
    assert "average of width 0.08 at iteration 8, from 4 snapshots, error " in capsys.readouterr().out
    description = read_header(output).description
    assert description["iteration"] == 8
    assert description["average"]["width"] == 0.08
    manifests = [json.loads(snapshot(kept, each).with_suffix(".json").read_text()) for each in (2, 4, 6, 8)]
    assert description["average"]["snapshots"] == [
        {"iteration": each["iteration"], "sha256": each["sha256"]} for each in manifests
    ]
    assert tiny.call("sample", output, "--count", 4, "--threads", 1, "--output", tmp_path / "s.npz") == 0
    record = load_samples(tmp_path / "s.npz").record
    assert (record["average_width"], record["iteration"], record["weights"]) == (0.08, 8, "ema")


# --- mistakes --------------------------------------------------------------------------------------------------------


def other_run(run):
    path = snapshot(run, 6)
    tensors, description = read_tensors(path, FORMAT)
    description["run"]["training"]["batch"] = 4
    write_tensors(path, tensors, description)
    manifest = path.with_suffix(".json")
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"sha256": sha256(path)}))


def without(key):
    def change(run):
        path = run / "config.json"
        values = json.loads(path.read_text())
        values["training"][key] = False
        path.write_text(json.dumps(values))

    return change


@pytest.mark.parametrize(
    ("change", "options", "expected"),
    [
        (None, "--width 0", "--width: must be above 0 and at most 0.25, got 0"),
        (None, "--width -0.1", "--width: must be above 0 and at most 0.25, got -0.1"),
        (None, "--width nan", "--width: must be above 0 and at most 0.25, got nan"),
        (None, "--width 0.3", "--width: must be above 0 and at most 0.25, got 0.3"),
        (
            None,
            "--width 0.01",
            "--width: 0.01 cannot be reconstructed from the 6 snapshots of {run} up to iteration 11",
        ),
        (
            None,
            "--width 0.01 --at 2",
            "must be at most 10%; widths from 0.04 to 0.12 can, and more if training.keep_e",
        ),
        (None, "--width 0.1 --at 7", "--at: {run} has no snapshot of iteration 7; kept are 2, 4, 6, 8, 10, 11"),
        (without("posthoc_average"), "--width 0.1", "{run}: keeps no snapshots of averages; train a run with"),
        (
            lambda run: shutil.rmtree(run / "snapshots"),
            "--width 0.1",
            "{run}: has no snapshots of averages so far; one",
        ),
        (lambda run: snapshot(run, 6).unlink(), "--width 0.1", "000000006.safetensors: no such file"),
        (lambda run: tiny.cut(snapshot(run, 6)), "--width 0.1", "000000006.safetensors: its bytes are not those that"),
        (
            lambda run: tiny.flip_byte(snapshot(run, 6), 60_000),
            "--width 0.1",
            "its bytes are not those that were written",
        ),
        (lambda run: tiny.cut(snapshot(run, 6).with_suffix(".json")), "--width 0.1", "000000006.json: not"),
        (other_run, "--width 0.1", "000000006.safetensors: is of another run (training.batch was 4, is 8)"),
        (lambda run: (run / "config.json").unlink(), "--width 0.1", "{run}: is not the folder of a training"),
    ],
)
def test_averages_that_cannot_be(run, tmp_path, capsys, change, options, expected):
    if change is not None:
        change(run)
    command = f"average {run} {options} --output {tmp_path / 'a.safetensors'}"
    tiny.assert_refused(tmp_path, command, expected.format(run=run), capsys)


def test_weights_of_another_kind_are_not_replaced(run, tmp_path, capsys):
    for output in (run / "weights.safetensors", run / "new.safetensors"):
        tiny.assert_refused(tmp_path, f"average {run} --width 0.1 --output {output}", "the input", capsys)
    shutil.copy(run / "weights.safetensors", tmp_path / "mine.safetensors")
    command = f"average {run} --width 0.1 --output {tmp_path / 'mine.safetensors'}"
    tiny.assert_refused(tmp_path, command, "already exists, not a reconstructed average that udpm wrote", capsys)


def test_snapshots_need_an_interval():
    with pytest.raises(UserError, match=r"posthoc_average: needs snapshots, but keep_every is 0; set keep_every above"):
        tiny.run_config(training__posthoc_average=True, training__keep_every=0)


def test_a_dry_run_names_every_option(tmp_path, capsys):
    config = tiny.write_config(tmp_path, **ALL, training__iterations=11, losses__adversarial_weight=0.0)
    assert tiny.call("train", config, "--dry-run") == 0
    shown = capsys.readouterr().out
    assert "rate 0.001, 0.0001 from iteration 9, float32" in shown
    assert "averages ema, power-0.05, power-0.1" in shown
    assert "; snapshots for udpm average 6 × " in shown
