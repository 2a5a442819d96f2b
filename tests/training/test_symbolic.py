"""Steps without values: what a GPU would be asked to do. On the meta device, any copy to the host raises."""

from collections import Counter
from dataclasses import replace

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from udpm.config.load import resolve_run
from udpm.training.dryrun import AsOnGPU
from udpm.training.estimate import IterationCounter
from udpm.training.losses import loss_weights
from udpm.training.perceptual import load_lpips

FREE = {
    "detach", "view", "_unsafe_view", "permute", "transpose", "t", "expand", "slice", "select", "unsqueeze", "squeeze",
    "alias", "split", "unbind", "_reshape_alias", "as_strided", "empty", "empty_like", "new_empty_strided",
}  # fmt: skip
"""Operations that launch nothing."""
WIDE = {"generator__channels": 32, "discriminator__channels": 32, "training__precision": "bfloat16"}


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.names = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._overloadpacket.__name__
        if name not in FREE:
            self.names[name] += 1
        return function(*args, **(kwargs or {}))


def step(config, player, level, perceptual=None):
    """A step's loss and its player's parameters, with gradients; and the operations that it took."""
    counter = IterationCounter(config, perceptual)
    weights = loss_weights(config)[level - 1].at(0)
    if perceptual is None:
        weights = replace(weights, lpips=0.0)
    bfloat16 = config.training.precision == "bfloat16"
    with Operations() as operations:
        with AsOnGPU(), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            total = counter.forward(player, level, weights, config.training.batch)
        total.backward()
    return total, counter.parameters(player), operations.names


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("ncsnpp", {}),
        pytest.param("ddpmpp", {}, marks=pytest.mark.slow),
        pytest.param("adm", {}, marks=pytest.mark.slow),
        pytest.param("ncsnpp", tiny.ALL, id="all-options"),
    ],
)
@pytest.mark.parametrize("player", ["discriminator", "generator"])
def test_losses_and_gradients_are_float32(family, player, changes):
    changes = {**WIDE, **changes, "losses__r1_gamma": 0.5, "generator__dropout": 0.1}
    config = tiny.run_config(**changes, generator__family=family)
    for level in (1, 2, 3):
        check_types(*step(config, player, level)[:2])


def test_losses_and_gradients_of_lpips_are_float32():
    config = tiny.run_config(**WIDE, losses__lpips_weight=[4.0, 0.0, 0.0], losses__lpips_network="vgg-random")
    total, parameters, names = step(config, "generator", 1, load_lpips("vgg-random", 2.0, torch.device("cpu")))
    check_types(total, parameters)
    without = step(config, "generator", 1)[2]
    # VGG's 13 convolutions of the output and of the target, LPIPS's five, and the way back to the output.
    assert names["convolution"] - without["convolution"] == 2 * 13 + 5
    assert names["convolution_backward"] - without["convolution_backward"] == 13 + 5


def check_types(total, parameters):
    assert total.dtype == torch.float32
    for parameter in parameters:
        if parameter.grad is not None:
            assert parameter.grad.dtype == torch.float32
            assert _strides(parameter.grad) == _strides(parameter)
    assert any(parameter.grad is not None for parameter in parameters)


def _strides(value):
    """Strides of the dimensions that have any."""
    return [stride for stride, size in zip(value.stride(), value.shape, strict=True) if size > 1]


BUDGETS = {"discriminator": 3120, "generator": 2390}
"""Operations at l = 1 without LPIPS. A change may lower them; more cost time where kernels are launched one by one."""


@pytest.mark.parametrize("player", BUDGETS)
def test_operations_of_a_step_of_the_paper(player):
    _, _, names = step(resolve_run("cifar10", 0, tiny.ROOT / "config"), player, 1)
    assert names.total() <= BUDGETS[player], names.most_common(12)
