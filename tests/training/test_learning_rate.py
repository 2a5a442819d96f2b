"""The decay of the learning rates: its curve, its end, and more iterations."""

import math

import pytest
import tiny
import torch

from udpm.core.errors import UserError
from udpm.training.trainer import Trainer, train

CPU = torch.device("cpu")
DECAY = {"training__learning_rate_end": 0.1, "training__decay_iterations": 10}


def rates(levels, count, player="generator", **changes):
    trainer = Trainer(tiny.run_config(**changes), levels, CPU)
    return [trainer.learning_rate(iteration, player) for iteration in range(count)]


def test_rates_fall_along_half_a_cosine_after_the_warm_up(levels):
    changes = DECAY | {"training__learning_rate": 1e-2, "training__discriminator_learning_rate": 4e-2}
    left = [0.55 + 0.45 * math.cos(math.pi * done / 6) for done in range(7)]
    expected = [0, 0.25, 0.5, 0.75, *left, 0.1, 0.1]
    assert rates(levels, 13, **changes) == pytest.approx([1e-2 * part for part in expected])
    assert rates(levels, 13, "discriminator", **changes) == pytest.approx([4e-2 * part for part in expected])


def test_by_default_the_decay_ends_with_training(levels):
    changes = {"training__learning_rate_end": 0.1, "training__warmup": 0}
    found = rates(levels, 13, **changes)
    assert found[0] == 1e-3
    assert found[6] == pytest.approx(0.55e-3)
    assert found[12] == pytest.approx(1e-4)
    epochs = {"training__epochs": 2, "training__batch": 500}
    assert rates(levels, 6, **changes, **epochs)[5] == pytest.approx(1e-4)


def test_without_a_decay_the_rate_is_what_it_was(levels):
    expected = [1e-3 * min(1.0, iteration / 7) for iteration in range(20)]
    assert rates(levels, 20, training__warmup=7) == expected


def test_a_decay_that_follows_the_iterations_keeps_them(digits, levels, tmp_path, capsys):
    decay = {"training__learning_rate_end": 0.5, "training__iterations": 2, "training__warmup": 0}
    train(tiny.run_config(**decay), levels, tmp_path / "run", False)
    config = tiny.write_config(tmp_path, **decay | {"training__iterations": 3})
    folders = f"--dataset {digits / 'dataset'} --cache {digits / 'cache'} --run {tmp_path / 'run'}"
    expected = "(training.iterations was 2, is 3, which moves the end of the decay; runs with training.decay_iterations"
    tiny.assert_refused(tmp_path / "run", f"train {config} {folders}", expected, capsys)
    # Without the run's configuration, its checkpoint still says what it is of.
    for name in ("config.json", "weights.safetensors", "complete.json"):
        (tmp_path / "run" / name).unlink()
    with pytest.raises(UserError, match=r"is of another run \(training\.iterations was 2, is 3\)"):
        train(tiny.run_config(**decay | {"training__iterations": 3}), levels, tmp_path / "run", False)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate_end": 0.0}, "learning_rate_end: input should be greater than 0, got 0.0"),
        ({"learning_rate_end": 1.5}, "learning_rate_end: input should be less than or equal to 1, got 1.5"),
        ({"decay_iterations": 10}, "decay_iterations: 10, but learning_rate_end is 1, so the rates do not decay"),
        ({"learning_rate_end": 0.1, "decay_iterations": 4}, "decay_iterations: 4, but the rates decay after 4 iterat"),
        (
            {"learning_rate_end": 0.1, "iterations": 3},
            "iterations: 3, but the rates decay after 4 iterations of warmup",
        ),
        ({"learning_rate_end": 0.1, "decay_iterations": 0}, "decay_iterations: input should be greater than 0, got 0"),
    ],
)
def test_decays_that_cannot_be(changes, expected):
    with pytest.raises(UserError) as caught:
        tiny.run_config(**{f"training__{key}": value for key, value in changes.items()})
    (line,) = str(caught.value).splitlines()
    assert f"training.{expected}" in line
