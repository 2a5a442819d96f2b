"""Comparisons with the plain way run, say what they measured, and compute the same."""

import json
import re
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas
import pytest
import tiny
import torch
from test_bench import CEILINGS, CPU, FakeGpu, assert_record, assert_spread, parts, quick, single_record  # noqa: F401

from benchmarks.__main__ import main
from benchmarks.fft import adjoint_by_fft, downsample_by_fft
from benchmarks.gains import comparison_lines, in_turn, speedup, switches
from benchmarks.sampling import SwitchedSampler, sampling_ways
from benchmarks.training import SwitchedTrainer, TrainingGains
from udpm.bench import measure
from udpm.bench.measure import Workload
from udpm.core.arrays import sealed
from udpm.core.files import write_json
from udpm.data.levels import open_levels
from udpm.diffusion.process import adjoint, downsample
from udpm.networks.unet import build_generator
from udpm.networks.weights import Model
from udpm.sampling.sampler import Sampler
from udpm.training.trainer import Trainer


def assert_compared(record):
    for row in record["rows"]:
        for key in ("seconds", "speedup", "cpu_speedup"):
            assert_spread(row[key], 2)
        assert row["multiply_adds"] > 0
        assert row["bytes"] > 0
        assert row["of_matrix_product"] > 0
        assert row["of_copy"] > 0
    assert all(row["speedup"]["median"] == 1 for row in record["rows"] if row["way"] == "plain")


SHORT = ("--repetitions", 2, "--threads", 1)


def run(*arguments):
    """Run a command in this process and return its exit code."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


def record_of(capsys, *arguments):
    capsys.readouterr()
    assert not run(*arguments, "--json")
    record = json.loads(capsys.readouterr().out)
    assert_record(record)
    return record


@pytest.mark.soak
@pytest.mark.usefixtures("quick")
def test_sampling_against_the_plain_way(tmp_path, capsys):
    output = tmp_path / "sampling.json"
    arguments = ("sample", "digits", "--batch", 2, *SHORT, "--gains", "--memory", "--output", output)
    record = record_of(capsys, *arguments)
    assert json.loads(output.read_text()) == record
    assert_compared(record)
    assert parts(record) == [("batch", way) for way in ("plain", "float32", "bfloat16")]
    assert all(row["peak_bytes"] > 1e7 for row in record["rows"])
    assert [gain["gain"] for gain in record["gains"]] == ["pooling", "channels last", "inference mode", "bfloat16"]
    assert all(gain["used"] for gain in record["gains"])


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_training_against_the_plain_way(tmp_path, capsys):
    config = tiny.write_config(tmp_path, training__precision="bfloat16")
    record = record_of(capsys, "train", config, "--batch", 4, *SHORT)
    assert_compared(record)
    ways = ("plain", "float32", "as configured")
    assert parts(record) == [(part, way) for part in ("l = 1", "l = 2", "l = 3", "mean") for way in ways]
    assert [row["precision"] for row in record["rows"][:3]] == ["float32", "float32", "bfloat16"]
    assert "gains" not in record


@pytest.mark.soak
@pytest.mark.usefixtures("quick")
def test_gains_of_training_one_by_one(tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    record = record_of(capsys, "train", config, "--batch", 4, *SHORT, "--gains", "--memory", "--levels", "3")
    assert parts(record) == [("l = 3", "plain"), ("l = 3", "as configured")]
    assert all(row["peak_bytes"] > 1e7 for row in record["rows"])
    used = {gain["gain"]: gain["used"] for gain in record["gains"]}
    assert [gain for gain, there in used.items() if not there] == ["bfloat16", "channels last", "ahead"]
    assert [gain for gain, there in used.items() if there] == [
        "cache",
        "pooling",
        "foreach average",
        "asynchronous",
        "fused adam",
    ]
    for gain in record["gains"]:
        for key in ("seconds_with", "seconds_without", "speedup", "cpu_speedup"):
            assert_spread(gain[key], 2)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
def test_comparisons_as_text_as_table_and_as_figure(tmp_path, capsys):
    for name, arguments in {
        "drawn": ("sample", "digits", "--batch", 2, *SHORT, "--gains"),
        "trained": ("train", tiny.write_config(tmp_path), "--batch", 4, *SHORT),
    }.items():
        assert not run(*arguments, "--output", tmp_path / f"{name}.json")
        assert "record_sha256" in json.loads((tmp_path / f"{name}.json").read_text())
    shown = capsys.readouterr().out
    assert "sampling of digits, batch 2, cpu (1 thread)" in shown
    assert re.search(
        r"^  batch  pooling +×[\d.]+ \([\d.]+–[\d.]+\): [\d.]+ s with, [\d.]+ without; has it$", shown, re.M
    )
    assert re.search(r"^  mean +as configured +[\d.]+ s", shown, re.M)
    single = ("sample", "digits", "--batch", 2, "--seconds", 0, "--threads", 1, "--output", tmp_path / "single.json")
    assert not tiny.call("bench", *single)
    capsys.readouterr()
    records = [tmp_path / f"{name}.json" for name in ("drawn", "trained", "single")]
    assert not run("table", *records)
    tables = capsys.readouterr().out
    assert tables.count("**: matrix product ") == 3
    assert "| in the full way" in tables
    for clock in ("wall", "cpu"):
        stem = tmp_path / f"figure_{clock}"
        assert not run("figure", *records[:2], "--output", stem, "--clock", clock)
        assert all(stem.with_suffix(suffix).stat().st_size for suffix in (".svg", ".pdf", ".png", ".csv"))
    assert len(pandas.read_csv(tmp_path / "figure_wall.csv")) == 3 + 4 + 4 * 2


def test_every_way_samples_the_same_images():
    model = Model(build_generator(tiny.run_config().model).eval(), tiny.run_config().model, {})
    with torch.no_grad():
        for parameter in model.generator.parameters():
            parameter.normal_(std=0.1)

    def fresh():
        return replace(model, generator=deepcopy(model.generator))

    def drawn(gains):
        return SwitchedSampler(fresh(), 4, gains).sample(4)

    expected = Sampler(fresh(), batch=4).sample(4)
    full = sampling_ways(graphs=False, compiles=False)["float32"]
    assert (drawn(full) == expected).all()
    assert np.ptp(expected) > 20
    bfloat16 = Sampler(fresh(), batch=4, precision="bfloat16").sample(4)
    for name in switches(full):
        if name == "bfloat16":
            found, wanted = drawn(replace(full, bfloat16=True)), bfloat16
        else:
            found, wanted = drawn(replace(full, **{name: False})), expected
        # A value between two bytes may be rounded either way.
        assert np.abs(found.astype(int) - wanted).max() <= 1, name


@pytest.mark.parametrize("gain", switches(TrainingGains()))
def test_no_gain_changes_training(digits, gain):
    levels = open_levels(digits / "dataset", digits / "cache", 3)
    config = tiny.run_config(training__flip=False)
    full = TrainingGains.configured(config)
    other = replace(full, **{gain: not getattr(full, gain)})
    ours, switched = Trainer(config, levels, CPU), SwitchedTrainer(config, levels, CPU, other)
    for _ in range(3):
        ours.iterate()
        switched.iterate()
    tolerance = {"rtol": 0.05, "atol": 0.005} if gain == "bfloat16" else {"rtol": 1e-3, "atol": 1e-4}
    assert_alike(ours, switched, **tolerance)


def test_the_plain_way_computes_the_same(digits):
    image = torch.randn(2, 3, 16, 16)
    for scale in (1, 2):
        torch.testing.assert_close(downsample_by_fft(image, scale, 2), downsample(image, scale, 2))
        torch.testing.assert_close(adjoint_by_fft(image, scale), adjoint(image, scale))
    levels = open_levels(digits / "dataset", digits / "cache", 3)
    config = tiny.run_config(training__flip=False)
    plain, ours = SwitchedTrainer(config, levels, CPU, TrainingGains()), Trainer(config, levels, CPU)
    for _ in range(3):
        plain.iterate()
        ours.iterate()
    assert_alike(plain, ours, rtol=1e-3, atol=1e-4)


def assert_alike(one, other, **tolerance):
    for name in ("generator", "discriminator"):
        torch.testing.assert_close(*(each.state.networks[name].state_dict() for each in (one, other)), **tolerance)
    averages = (each.state.ema_models["ema"].module.state_dict() for each in (one, other))
    torch.testing.assert_close(*averages, **tolerance)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train {0}/run.json --levels 1,4", "--levels: 4 is not among 1..3"),
        ("train {0}/run.json --dataset {0}", "--dataset and --cache go together"),
        ("table {0}/run.json", "run.json: format is None, expected 'udpm-bench/1'"),
        ("table {0}/none.json", "none.json: benchmark record not found"),
        ("figure {0}/none.json --output {0}/figure", "none.json: benchmark record not found"),
        ("table {0}/wrong.json", "wrong.json: rows[0].seconds: "),
        ("figure {0}/single.json --output {0}/figure", "single.json: not a comparison"),
    ],
)
def test_mistakes(tmp_path, capsys, command, expected):
    tiny.write_config(tmp_path)
    (tmp_path / "single.json").write_text(json.dumps(single_record()))
    wrong = single_record()
    wrong["rows"] = [wrong["rows"][0] | {"seconds": "fast"}]
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    before = tiny.snapshot(tmp_path)
    assert run(*command.format(tmp_path).split()) == 2
    assert expected in capsys.readouterr().err
    assert tiny.snapshot(tmp_path) == before


def test_cpu_seconds_are_not_recorded_on_a_gpu(tmp_path, monkeypatch, capsys):
    gpu = FakeGpu(monkeypatch)
    timings = in_turn({"slow": lambda: None, "fast": lambda: None}, 2, gpu)
    assert [timing.cpu for timing in (*timings.values(), measure.repeated(lambda: None, gpu, 0))] == [[], [], []]
    found = speedup(timings["slow"], timings["fast"])
    assert found["speedup"]["count"] == 2
    assert found["cpu_speedup"] is None
    ways = {name: measure.row("batch", name, timings[name], Workload(1, 9, 9), CEILINGS) | found for name in timings}
    record = single_record() | {"rows": list(ways.values())}
    assert "CPU" not in comparison_lines(record)[-1]
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    assert not run("table", tmp_path / "gpu.json")
    assert "CPU" not in capsys.readouterr().out
    assert not run("figure", tmp_path / "gpu.json", "--output", tmp_path / "figure")
    expected = "gpu.json: contains no CPU seconds, which are not recorded on a GPU; omit --clock cpu"
    assert run("figure", tmp_path / "gpu.json", "--clock", "cpu", "--output", tmp_path / "other") == 2
    assert expected in capsys.readouterr().err
    assert not list(tmp_path.glob("other*"))


def test_a_record_that_was_changed_is_refused(tmp_path, capsys):
    path = tmp_path / "bench.json"
    write_json(path, sealed(single_record()) | {"device": "a faster one"})
    assert run("table", path) == 2
    assert "was changed since it was written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key", ["way", "multiply_adds", "of_copy", "of_matrix_product", "bytes", "peak_bytes", "speedup", "cpu_speedup"]
)
@pytest.mark.parametrize("left_out", [True, False])
def test_missing_values_of_a_record_are_unknown(tmp_path, key, left_out):
    record = single_record()
    line = {name: value for name, value in record["rows"][0].items() if name != key}
    if not left_out and key != "way":
        line[key] = None
    write_json(tmp_path / "bench.json", record | {"rows": [line]})
    assert not run("table", tmp_path / "bench.json")
