"""Benchmarks run and say what they measured; how fast anything is, they do not judge."""

import json
import re
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pandas
import pytest
import tiny
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from udpm.bench import data as feeding
from udpm.bench import measure
from udpm.bench import record as speed
from udpm.bench import scoring as benchmark
from udpm.bench.record import Work, comparison_lines, switches
from udpm.config import Scoring, to_json
from udpm.data.levels import open_levels
from udpm.diffusion.forward import adjoint, downsample
from udpm.networks.build import build_discriminator, build_generator
from udpm.networks.flops import count_cost
from udpm.networks.weights import Model
from udpm.process.plain import adjoint_by_fft, downsample_by_fft
from udpm.sampling.plain import SwitchedSampler, sampling_ways
from udpm.sampling.sampler import Sampler
from udpm.training.cost import IterationCounter
from udpm.training.objective import level_terms
from udpm.training.plain import SwitchedTrainer, TrainingGains
from udpm.training.trainer import Trainer

CPU = torch.device("cpu")
CEILINGS = dict.fromkeys(("float32_flops", "bfloat16_flops", "copy_bytes"), 1e9)


def test_where_training_spends_its_time(digits, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    before = tiny.snapshot(tmp_path)
    code = tiny.call(
        "bench", "train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--iterations", 2
    )
    assert not code
    shown = capsys.readouterr().out
    assert "digits on cpu (1 threads): batch 8, float32" in shown
    assert re.search(r"[\d.]+ iterations/s, [\d.]+ images/s", shown)
    shares = re.findall(r"^  (.+?) +([\d.]+) %$", shown, re.M)
    parts = {"discriminator step", "generator step", "data and noise", "averages", "rest"}
    assert parts <= {name for name, _ in shares}
    assert abs(sum(float(share) for _, share in shares) - 100) < 1
    assert "matrix product reaches here" in shown
    assert tiny.snapshot(tmp_path) == before


def test_how_fast_images_are_prepared_and_fed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(feeding, "IMAGES", 300)
    monkeypatch.setattr(feeding, "SECONDS", 0.02)
    for number in range(6):
        Image.new("RGB", (20, 18), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert not tiny.call("bench", "data", tmp_path, "--side", 16, "--workers", 1, "--device", "cpu", "--batch", 32)
    shown = capsys.readouterr().out
    assert re.search(r"limited by (read|decode|resize|write): \d+%", shown)
    assert re.search(r"[\d.]+ images per second with 1 process$", shown, re.M)
    fed = re.findall(r"^  (memory|device) +l = (\d) +(\d+) images per second", shown, re.M)
    expected = [kind + level for kind in ("memory", "device") for level in "123"]
    assert [kind + level for kind, level, _ in fed] == expected
    assert all(int(rate) > 0 for _, _, rate in fed)


def test_how_fast_features_are_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "SECONDS", 0.02)
    torch.jit.save(torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 20, 20)), str(tmp_path / "x.pt"))
    scoring = Scoring(extractor=str(tmp_path / "x.pt"), input_side=20, batch=4, threads=1)
    (tmp_path / "scoring.json").write_text(to_json(scoring))
    before = tiny.snapshot(tmp_path)
    assert not tiny.call("bench", "score", tmp_path / "scoring.json", "--side", 8)
    shown = capsys.readouterr().out
    assert "to 20×20 by clean-fid's PIL bicubic, in [0, 255]" in shown
    rates = re.findall(r"^  (resize|network|both) +(\d+) images per second", shown, re.M)
    assert [name for name, _ in rates] == ["resize", "network", "both"]
    assert all(int(rate) > 0 for _, rate in rates)
    assert tiny.snapshot(tmp_path) == before


@pytest.fixture
def quick(monkeypatch):
    """Ceilings and times too short to mean anything."""
    monkeypatch.setattr(measure, "LARGEST", 256)
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 16)
    for module in (benchmark, feeding):
        monkeypatch.setattr(module, "SECONDS", 0.02)
    monkeypatch.setattr(feeding, "IMAGES", 300)


def record_of(capsys, *arguments):
    capsys.readouterr()
    assert not tiny.call("bench", *arguments, "--json")
    record = json.loads(capsys.readouterr().out)
    assert record["format"] == "udpm-bench/1"
    assert set(record["ceilings"]) == {"float32_flops", "bfloat16_flops", "copy_bytes"}
    assert record["device"] == "cpu (1 threads)"
    assert record["provenance"]["versions"]["torch"]
    for row in record["rows"]:
        for key in ("seconds", "images_per_second"):
            assert_spread(row[key])
    return record


def assert_spread(value, count=None):
    assert 0 < value["low"] <= value["median"] <= value["high"]
    assert value["count"] == (count or value["count"])


def assert_compared(record):
    for row in record["rows"]:
        for key in ("seconds", "speedup", "cpu_speedup"):
            assert_spread(row[key], 2)
        assert row["multiply_adds"] > 0
        assert row["bytes"] > 0
        assert row["of_matrix_product"] > 0
        assert row["of_copy"] > 0
    assert all(row["speedup"]["median"] == 1 for row in record["rows"] if row["way"] == "plain")


def parts(record):
    return [(row["part"], row["way"]) for row in record["rows"]]


BASELINE = ("--baseline", "--repetitions", 2, "--threads", 1)


def test_records_of_every_kind(quick, tmp_path, capsys):
    drawn = record_of(capsys, "sample", "digits", "--seconds", 0, "--batch", 2, "--threads", 1)
    assert parts(drawn) == [("image", "float32"), ("full-side step", "float32")]
    assert drawn["images_per_second"] == drawn["rows"][0]["images_per_second"]["median"]
    trained = record_of(capsys, "train", tiny.write_config(tmp_path), "--iterations", 2)
    assert parts(trained) == [("mean", "as configured")]
    assert sum(trained["shares"].values()) == pytest.approx(1)
    assert trained["rows"][0]["of_matrix_product"] > 0
    Image.new("RGB", (20, 18)).save(tmp_path / "0.png")
    arguments = ("--side", 16, "--workers", 1, "--device", "cpu", "--batch", 32)
    fed = record_of(capsys, "data", tmp_path, *arguments)
    assert [part for part, _ in parts(fed)] == [
        "read",
        "decode",
        "resize",
        "write",
        "whole",
        *2 * ["l = 1", "l = 2", "l = 3"],
    ]
    assert fed["images"] == 1
    assert parts(record_of(capsys, "data", *arguments))[0] == ("l = 1", "memory")


def test_what_an_extractor_does_is_counted(quick, tmp_path, capsys):
    layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 20 * 20, 7))
    torch.jit.save(torch.jit.trace(layers, torch.zeros(2, 3, 20, 20)), str(tmp_path / "x.pt"))
    scoring = Scoring(extractor=str(tmp_path / "x.pt"), input_side=20, batch=4, threads=1)
    (tmp_path / "scoring.json").write_text(to_json(scoring))
    record = record_of(capsys, "score", tmp_path / "scoring.json", "--side", 8)
    resize, network, both = record["rows"]
    assert "multiply_adds" not in resize
    assert network["multiply_adds"] == 4 * 1200 * 7
    assert network["bytes"] == 4 * (4 * 1200 + 1200 * 7 + 7 + 4 * 7)
    assert both["multiply_adds"] == 2 * network["multiply_adds"]


@pytest.mark.soak
def test_sampling_against_the_plain_way(quick, tmp_path, capsys):
    output = tmp_path / "sampling.json"
    arguments = ("sample", "digits", "--batch", 2, *BASELINE, "--gains", "--memory", "--output", output)
    record = record_of(capsys, *arguments)
    assert json.loads(output.read_text()) == record
    assert_compared(record)
    assert parts(record) == [("batch", way) for way in ("plain", "float32", "bfloat16")]
    assert all(row["peak_bytes"] > 1e7 for row in record["rows"])
    assert [gain["gain"] for gain in record["gains"]] == ["pooling", "channels last", "inference mode", "bfloat16"]
    assert all(gain["used"] for gain in record["gains"])


def test_training_against_the_plain_way(quick, tmp_path, capsys):
    config = tiny.write_config(tmp_path, training__precision="bfloat16")
    record = record_of(capsys, "train", config, "--batch", 4, *BASELINE)
    assert_compared(record)
    ways = ("plain", "float32", "as configured")
    assert parts(record) == [(part, way) for part in ("l = 1", "l = 2", "l = 3", "mean") for way in ways]
    assert [row["precision"] for row in record["rows"][:3]] == ["float32", "float32", "bfloat16"]
    assert "gains" not in record


@pytest.mark.soak
def test_gains_of_training_one_by_one(quick, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    record = record_of(capsys, "train", config, "--batch", 4, *BASELINE, "--gains", "--memory", "--levels", "3")
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


def test_comparisons_as_text_as_table_and_as_figure(quick, tmp_path, capsys):
    for name, arguments in {
        "drawn": ("sample", "digits", "--batch", 2, *BASELINE, "--gains"),
        "trained": ("train", tiny.write_config(tmp_path), "--batch", 4, *BASELINE),
        "single": ("sample", "digits", "--batch", 2, "--seconds", 0, "--threads", 1),
    }.items():
        assert not tiny.call("bench", *arguments, "--output", tmp_path / f"{name}.json")
        assert "record_sha256" in json.loads((tmp_path / f"{name}.json").read_text())
    shown = capsys.readouterr().out
    assert "sampling of digits, batch 2, cpu (1 threads)" in shown
    assert re.search(
        r"^  batch  pooling +×[\d.]+ \([\d.]+–[\d.]+\): [\d.]+ s with, [\d.]+ without; has it$", shown, re.M
    )
    assert re.search(r"^  mean +as configured +[\d.]+ s", shown, re.M)
    records = [tmp_path / f"{name}.json" for name in ("drawn", "trained", "single")]
    assert not tiny.call("bench", "table", *records)
    tables = capsys.readouterr().out
    assert tables.count("**: matrix product ") == 3
    assert "| in the full way" in tables
    for clock in ("wall", "cpu"):
        stem = tmp_path / f"figure_{clock}"
        assert not tiny.call("figure", "speed", *records[:2], "--output", stem, "--clock", clock)
        assert all(stem.with_suffix(suffix).stat().st_size for suffix in (".svg", ".png", ".csv"))
    assert len(pandas.read_csv(tmp_path / "figure_wall.csv")) == 3 + 4 + 4 * 2


# --- on a GPU, seen from a CPU ---------------------------------------------------------------------------------------


class FakeGpu:
    """A clock that only calls move on, and the events that read it, in milliseconds."""

    type = "cuda"

    def __init__(self, monkeypatch):
        self.time, self.calls, self.waits = 0.0, 0, 0
        gpu = self

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                self.at = gpu.time

            def synchronize(self):
                gpu.waits += 1

            def elapsed_time(self, end):
                return end.at - self.at

        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)

    def work(self, milliseconds):
        self.calls += 1
        self.time += milliseconds


def test_a_gpu_is_timed_by_its_own_clock_over_many_calls(monkeypatch):
    gpu = FakeGpu(monkeypatch)
    # The first call is slow, and must not count.
    assert measure._best(lambda: gpu.work(2.0 if gpu.calls else 500.0), gpu) == pytest.approx(2e-3)
    assert gpu.calls - 1 == measure.BEST_OF * measure.AT_ONCE
    assert measure.AT_ONCE >= 10
    assert gpu.waits == measure.BEST_OF


def test_a_gpu_multiplies_large_matrices_only(monkeypatch):
    gpu, sides, random = FakeGpu(monkeypatch), [], torch.randn
    monkeypatch.setattr(measure, "SMALLEST", 4)
    monkeypatch.setattr(measure, "LARGEST", 32)

    def draw(*shape, device, dtype):
        sides.append(shape)
        gpu.time += 1
        return random(*shape, dtype=dtype)

    monkeypatch.setattr(torch, "randn", draw)
    monkeypatch.setattr(measure, "_best", lambda call, device: call() is None or 0.5)
    assert measure._product_flops(torch.float32, gpu) == 2 * 32**3 / 0.5
    assert sides == [(32, 32)]


def test_cpu_seconds_of_a_thread_that_waits_for_a_gpu_mean_nothing(tmp_path, monkeypatch, capsys):
    gpu = FakeGpu(monkeypatch)
    timings = measure.in_turn({"slow": lambda: None, "fast": lambda: None}, 2, gpu)
    assert [timing.cpu for timing in (*timings.values(), measure.repeated(lambda: None, gpu, 0))] == [[], [], []]
    found = measure.speedup(timings["slow"], timings["fast"])
    assert found["speedup"]["count"] == 2
    assert found["cpu_speedup"] is None
    ways = {name: speed.row("batch", name, timings[name], Work(1, 9, 9), CEILINGS) | found for name in timings}
    record = single_record() | {"rows": list(ways.values())}
    assert "CPU" not in comparison_lines(record)[-1]
    (tmp_path / "gpu.json").write_text(json.dumps(record))
    assert not tiny.call("bench", "table", tmp_path / "gpu.json")
    assert "CPU" not in capsys.readouterr().out
    assert not tiny.call("figure", "speed", tmp_path / "gpu.json", "--output", tmp_path / "figure")
    expected = "gpu.json: has no CPU seconds, which mean nothing on a GPU; leave out --clock cpu"
    command = "figure speed {0}/gpu.json --clock cpu --output {0}/other"
    tiny.assert_refused(tmp_path, command.format(tmp_path), expected, capsys)


# --- records ---------------------------------------------------------------------------------------------------------


def single_record():
    """A benchmark of one way."""
    spread = {"median": 1.0, "low": 0.5, "high": 2.0, "count": 3}
    rows = [{"part": "image", "way": "", "seconds": spread, "cpu_seconds": None, "images_per_second": spread}]
    told = {"of": "sampling", "experiment": "digits", "device": "cpu", "batch": 4}
    return {"format": "udpm-bench/1", **told, "ceilings": CEILINGS, "rows": rows}


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("bench sample digits --gains", "--gains needs --baseline"),
        ("bench train {0}/run.json --levels 1", "--levels needs --baseline"),
        ("bench train {0}/run.json --baseline --levels 1,4", "--levels: 4 is not among 1..3"),
        ("bench train {0}/run.json --dataset {0}", "--dataset and --cache belong together"),
        ("bench table {0}/run.json", "run.json: format is None, expected 'udpm-bench/1'"),
        ("bench table {0}/none.json", "none.json: benchmark record not found"),
        ("figure speed {0}/none.json --output {0}/figure", "none.json: benchmark record not found"),
        ("bench table {0}/wrong.json", "wrong.json: rows[0].seconds: "),
        ("figure speed {0}/single.json --output {0}/figure", "single.json: compares nothing"),
    ],
)
def test_mistakes(tmp_path, capsys, command, expected):
    tiny.write_config(tmp_path)
    (tmp_path / "single.json").write_text(json.dumps(single_record()))
    wrong = single_record()
    wrong["rows"] = [wrong["rows"][0] | {"seconds": "fast"}]
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    tiny.assert_refused(tmp_path, command.format(tmp_path), expected, capsys)


def test_every_way_draws_the_same():
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
        # Where a value lies between two bytes, rounding decides.
        assert np.abs(found.astype(int) - wanted).max() <= 1, name


@pytest.mark.parametrize("gain", switches(TrainingGains()))
def test_every_gain_leaves_training_as_it_is(digits, gain):
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


def test_what_an_iteration_does_is_counted():
    """A step with R1 costs the discriminator nine forward passes: three for generated images, six for real ones."""
    config = tiny.run_config(losses__r1_gamma=[0, 1, 1])
    counter, calls = IterationCounter(config, level_terms(config), None), count_cost(config).calls
    batch, one = config.training.batch, build_discriminator(config).to("meta")
    for level, passes in ((1, 6), (2, 9), (3, 9)):
        found, side = counter.count(level), config.dataset.side >> (level - 1)
        with FlopCounterMode(display=False) as forward, torch.no_grad():
            one(
                torch.empty(batch, 3, side, side, device="meta"),
                0.5,
                torch.zeros(batch, dtype=torch.int64, device="meta"),
            )
        judge = forward.get_total_flops() / 2
        assert found.discriminator == pytest.approx(batch * calls[level - 1] + passes * judge, rel=0.02)
        # The generator forward and backward; back through the discriminator, whose weights need no gradient.
        assert found.generator == pytest.approx(3 * batch * calls[level - 1] + 2 * judge, rel=0.02)
    own, judge = (
        sum(value.numel() for value in network.parameters()) for network in (build_generator(config.model), one)
    )
    assert counter.count(1).bytes == 4 * (own * (1 + 2 + 3 + 6 + 3) + judge * (4 + 3 + 6 + 2))
    assert counter.count(2).bytes - counter.count(1).bytes == 4 * 2 * judge


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
        torch.testing.assert_close(*(each.state.players()[name].state_dict() for each in (one, other)), **tolerance)
    averages = (each.state.averages["ema"].module.state_dict() for each in (one, other))
    torch.testing.assert_close(*averages, **tolerance)
