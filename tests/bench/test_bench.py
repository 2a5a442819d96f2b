"""Benchmarks run and say what they measured; how fast anything is, they do not judge."""

import json
import re

import pytest
import tiny
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from udpm.bench import data as feeding
from udpm.bench import measure
from udpm.bench import networks as benchmark
from udpm.config import Scoring, to_json
from udpm.networks.discriminator import build_discriminator
from udpm.networks.inference import count_cost
from udpm.networks.unet import build_generator
from udpm.training.batch import draw_level, players_at
from udpm.training.estimate import IterationCounter, iteration_cost
from udpm.training.losses import loss_weights

CPU = torch.device("cpu")
CEILINGS = dict.fromkeys(("float32_flops", "bfloat16_flops", "copy_bytes"), 1e9)


@pytest.fixture
def quick(monkeypatch):
    """Ceilings and times too short to be meaningful."""
    monkeypatch.setattr(measure, "LARGEST", 256)
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 16)
    for module in (benchmark, feeding):
        monkeypatch.setattr(module, "SECONDS", 0.02)
    monkeypatch.setattr(feeding, "IMAGES", 300)


@pytest.mark.slow
def test_the_shares_of_a_training_iteration(digits, tmp_path, capsys):
    config = tiny.write_config(tmp_path)
    before = tiny.snapshot(tmp_path)
    code = tiny.call(
        "bench", "train", config, "--dataset", digits / "dataset", "--cache", digits / "cache", "--iterations", 2
    )
    assert not code
    shown = capsys.readouterr().out
    assert "digits on cpu (1 thread): batch 8, float32" in shown
    assert re.search(r"[\d.]+ iterations/s, [\d.]+ images/s", shown)
    shares = re.findall(r"^  (.+?) +([\d.]+) %$", shown, re.M)
    parts = {"discriminator step", "generator step", "data and noise", "averages", "rest"}
    assert parts <= {name for name, _ in shares}
    assert abs(sum(float(share) for _, share in shares) - 100) < 1
    assert "matrix product reaches here" in shown
    assert tiny.snapshot(tmp_path) == before


def test_the_speed_of_preparing_and_feeding_images(quick, tmp_path, capsys):
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


def test_the_speed_of_extracting_features(quick, tmp_path, capsys):
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


def record_of(capsys, *arguments):
    capsys.readouterr()
    assert not tiny.call("bench", *arguments, "--json")
    record = json.loads(capsys.readouterr().out)
    assert_record(record)
    return record


def assert_record(record):
    assert record["format"] == "udpm-bench/1"
    assert set(record["ceilings"]) == {"float32_flops", "bfloat16_flops", "copy_bytes"}
    assert record["device"] == "cpu (1 thread)"
    assert record["provenance"]["versions"]["torch"]
    for row in record["rows"]:
        for key in ("seconds", "images_per_second"):
            assert_spread(row[key])


def assert_spread(value, count=None):
    assert 0 < value["low"] <= value["median"] <= value["high"]
    assert value["count"] == (count or value["count"])


def parts(record):
    return [(row["part"], row["way"]) for row in record["rows"]]


def test_records_of_every_kind(quick, tmp_path, capsys):
    drawn = record_of(capsys, "sample", "digits", "--seconds", 0, "--batch", 2, "--threads", 1)
    kinds = [("noise", "host"), ("noise", "counter")]
    assert parts(drawn) == [("image", "float32"), ("full-side step", "float32"), *kinds]
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


def test_the_work_of_an_extractor_is_counted(quick, tmp_path, capsys):
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


# --- on a GPU, seen from a CPU ---------------------------------------------------------------------------------------


class FakeGpu:
    """A clock that advances only by calls, and the events that read it, in milliseconds."""

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


# --- records ---------------------------------------------------------------------------------------------------------


def single_record():
    """A benchmark of one way."""
    spread = {"median": 1.0, "low": 0.5, "high": 2.0, "count": 3}
    rows = [{"part": "image", "way": "", "seconds": spread, "cpu_seconds": None, "images_per_second": spread}]
    known = {"of": "sampling", "experiment": "digits", "device": "cpu", "batch": 4}
    return {"format": "udpm-bench/1", **known, "ceilings": CEILINGS, "rows": rows}


def test_mistakes(tmp_path, capsys):
    tiny.write_config(tmp_path)
    command = f"bench train {tmp_path}/run.json --dataset {tmp_path}"
    tiny.assert_refused(tmp_path, command, "--dataset and --cache go together", capsys)


def test_the_work_of_an_iteration_is_counted():
    """A step with R1 costs the discriminator nine forward passes: three for generated images, six for real ones."""
    config = tiny.run_config(losses__r1_gamma=[0, 1, 1])
    counter, calls = IterationCounter(config), count_cost(config).calls
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


@pytest.mark.parametrize("weights", [0.5, [0.0, 1.0, 0.0], 0.0])
def test_the_warm_up_ends_once_every_step_was_recorded(weights):
    """No discriminator step is ever taken at a level without a weight."""
    config = tiny.run_config(
        training__cuda_graphs=True,
        training__level_probabilities=None,
        losses__adversarial_weight=weights,
        losses__r1_gamma=0.1,
        losses__r1_every=2,
    )
    by_level = loss_weights(config)

    def steps(iterations):
        for iteration in iterations:
            for player in players_at(config, iteration):
                level = draw_level(config, player, iteration)
                yield player, level, player == "discriminator" and by_level[level - 1].at(iteration).penalised

    count = benchmark.warm_up(config)
    assert count < 100
    assert set(steps(range(count))) == set(steps(range(1000)))


def test_rare_steps_are_counted_as_rare():
    """An iteration is the mean of those with and without a discriminator step, with and without R1."""
    coarsest = {"training__level_probabilities": [0.0, 0.0, 1.0]}
    config = tiny.run_config(losses__r1_gamma=0.5, losses__r1_every=3, training__discriminator_every=2, **coarsest)
    often = tiny.run_config(losses__r1_gamma=0.5, **coarsest)
    never = tiny.run_config(losses__r1_gamma=0.0, **coarsest)
    (found, with_r1, without) = (iteration_cost(each) for each in (config, often, never))
    assert found.generator == with_r1.generator == without.generator
    mean = (with_r1.discriminator + 2 * without.discriminator) / 3 / 2
    assert found.discriminator == pytest.approx(mean, rel=1e-6)


def test_iterations_before_the_adversarial_loss_are_counted():
    """A run whose discriminator starts late costs less than one of the same length whose does not."""
    late, none = tiny.run_config(losses__adversarial_start=9), tiny.run_config(losses__adversarial_weight=0.0)
    before, after = iteration_cost(none).multiply_adds, iteration_cost(late).multiply_adds
    assert after == iteration_cost(tiny.run_config(), iterations=12).multiply_adds > 2 * before
    for length, expected in ((12, 0.75 * before + 0.25 * after), (6, before), (9000, after)):
        found = iteration_cost(late, iterations=length).multiply_adds
        assert found == pytest.approx(expected, rel=1e-3), length
