"""Benchmarks run and say what they measured; how fast anything is, they do not judge."""

import re

import tiny


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
