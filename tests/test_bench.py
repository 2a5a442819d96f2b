"""Benchmarks run and say what they measured; how fast anything is, they do not judge."""

import json
import re

import tiny
import torch
from PIL import Image

from udpm.config import Scoring, to_json
from udpm.core import measure
from udpm.data import feeding
from udpm.data.cache import open_levels
from udpm.process.operator import adjoint, downsample
from udpm.process.plain import adjoint_by_fft, downsample_by_fft
from udpm.scoring import benchmark
from udpm.training.plain import PlainTrainer
from udpm.training.trainer import Trainer


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


def comparison(capsys, *arguments):
    assert not tiny.call("bench", *arguments, "--baseline", "--repetitions", 2, "--threads", 1, "--json")
    record = json.loads(capsys.readouterr().out)
    assert record["format"] == "udpm-comparison/1"
    assert set(record["ceilings"]) == {"float32_flops", "bfloat16_flops", "copy_bytes"}
    return record


def assert_measured(ways):
    for found in ways.values():
        for key in ("seconds", "cpu_seconds", "speedup", "cpu_speedup"):
            assert found[key]["count"] == 2
            assert 0 < found[key]["low"] <= found[key]["median"] <= found[key]["high"]
    assert ways["plain"]["speedup"]["median"] == 1


def test_sampling_against_the_plain_way(capsys, monkeypatch):
    monkeypatch.setattr(measure, "MATRIX", 64)
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 16)
    record = comparison(capsys, "sample", "digits", "--batch", 2)
    assert_measured(record["ways"])
    assert set(record["ways"]) == {"plain", "float32", "bfloat16"}
    assert all(found["of_matrix_product"] > 0 and found["weight_bytes"] > 0 for found in record["ways"].values())


def test_training_against_the_plain_way(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "MATRIX", 64)
    monkeypatch.setattr(measure, "COPIED_BYTES", 1 << 16)
    config = tiny.write_config(tmp_path, training__precision="bfloat16")
    record = comparison(capsys, "train", config, "--batch", 4)
    assert list(record["levels"]) == ["1", "2", "3"]
    for ways in record["levels"].values():
        assert_measured(ways)
    assert set(record["iteration"]) == {"plain", "float32", "as configured"}
    assert record["iteration"]["plain"]["speedup"] == 1


def test_the_plain_way_computes_the_same(digits):
    image = torch.randn(2, 3, 16, 16)
    for scale in (1, 2):
        torch.testing.assert_close(downsample_by_fft(image, scale, 2), downsample(image, scale, 2))
        torch.testing.assert_close(adjoint_by_fft(image, scale), adjoint(image, scale))
    levels = open_levels(digits / "dataset", digits / "cache", 3)
    config = tiny.run_config(training__flip=False)
    plain, ours = (kind(config, levels, torch.device("cpu")) for kind in (PlainTrainer, Trainer))
    for _ in range(3):
        plain.iterate()
        ours.iterate()
    for name in ("generator", "discriminator"):
        one, other = (trainer.state.players()[name].state_dict() for trainer in (plain, ours))
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    one, other = (trainer.state.averages["ema"].module.state_dict() for trainer in (plain, ours))
    torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
