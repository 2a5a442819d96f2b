"""Averages of the weights: half-lives in images, and how they start."""

import pytest
import tiny
import torch

from udpm.core import devices
from udpm.core.errors import UserError
from udpm.training.trainer import Trainer

CPU = torch.device("cpu")
NO_DECAY = {"training__ema_decay": None, "training__warmup": 0}


@pytest.fixture(autouse=True)
def one_thread():
    devices.configure("cpu", 1)


def test_after_a_half_life_a_weight_counts_half():
    training = tiny.run_config(**NO_DECAY, training__ema_halflife=80, training__more_ema_decays=[0.5]).training
    assert training.averages == {"ema": 0.5 ** (8 / 80), "ema-0.5": 0.5}
    assert training.kept_weights == ["ema", "ema-0.5", "raw"]


def test_a_half_life_alone_replaces_the_default_decay():
    values = tiny.run_config().training.model_dump()
    del values["ema_decay"]
    model = type(tiny.run_config().training)
    assert model.model_validate(values).ema_decay == 0.9999
    assert model.model_validate(values | {"ema_halflife": 5.0}).ema_decay is None


def test_an_average_may_ramp_up(levels):
    changes = NO_DECAY | {"training__ema_halflife": 20.0, "training__ema_rampup": 0.5}
    run = Trainer(tiny.run_config(**changes), levels, CPU)
    average = run.state.ema_models["ema"].module
    expected = torch.zeros_like(average.head.weight)
    for iteration in range(8):
        run.iterate()
        # Batches of 8: the half-life reaches its 20 images after 40.
        halflife = min(20, 0.5 * 8 * iteration)
        decay = 0.5 ** (8 / halflife) if halflife else 0
        expected = decay * expected + (1 - decay) * run.state.generator.head.weight.detach()
        torch.testing.assert_close(average.head.weight, expected)
    assert decay == 0.5 ** (8 / 20)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"ema_halflife": 80.0}, "ema_halflife: 80, but ema_decay is 0.99; set ema_decay: null"),
        ({"ema_decay": None}, "ema_decay: null, but ema_halflife gives none; set one of them, or 0 for no average"),
        ({"ema_decay": None, "ema_halflife": 0.0}, "ema_halflife: input should be greater than 0, got 0.0"),
        ({"ema_decay": None, "ema_halflife": 1e-9}, "ema_halflife: 1e-09 images give no decay between 0 and 1"),
        ({"ema_decay": None, "ema_halflife": 1e30}, "ema_halflife: 1e+30 images give no decay between 0 and 1"),
        ({"ema_rampup": 0.0}, "ema_rampup: input should be greater than 0, got 0.0"),
        ({"ema_rampup": 0.05, "ema_warmup": True}, "ema_rampup: starts the averages, and so does ema_warmup"),
        (
            {"ema_decay": None, "ema_halflife": 8.0, "more_ema_decays": [0.5]},
            "more_ema_decays: must be at least 0.0001 and differ from each other and from ema_decay, got [0.5, 0.5]",
        ),
    ],
)
def test_averages_that_cannot_be(changes, expected):
    with pytest.raises(UserError) as caught:
        tiny.run_config(**{f"training__{key}": value for key, value in changes.items()})
    (line,) = str(caught.value).splitlines()
    assert f"training.{expected}" in line
