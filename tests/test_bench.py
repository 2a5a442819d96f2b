"""Benchmarks run and say what they measured; how fast anything is, they do not judge."""

import re

import tiny
from PIL import Image

from udpm.data import feeding


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
