"""How a generator's weights start, by family."""

from __future__ import annotations

import math

import torch
from torch import nn

from udpm.networks.block import ResidualBlock

NEAR_ZERO = 1e-5


@torch.no_grad()
def initialize(network: nn.Module, family: str) -> None:
    """Initialise a `UNet`; last layers start at (nearly) zero, so that every block starts as its skip.

    NCSN++ and DDPM++: Xavier-uniform weights (fans count the kernel's positions), zero biases, last layers times 1e-5,
    qkv times √0.2. ADM: weights and biases U(-1, 1)/√fan_in, last layers zero, the label's N(0, 1/fan_in)·√K.
    """
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    if family == "adm":
        for module in layers:
            _uniform_by_fan_in(module)
        if network.embedding.label is not None:
            # fan_in is K, so that the factor √K leaves N(0, 1).
            nn.init.normal_(network.embedding.label.weight)
        for module in _last_layers(network):
            nn.init.zeros_(module.weight)
            nn.init.zeros_(module.bias)
        return
    for module in layers:
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
    for module in _last_layers(network):
        module.weight.mul_(NEAR_ZERO)
    for block in _blocks(network):
        if block.attention is not None:
            block.attention.qkv.weight.mul_(math.sqrt(0.2))


def _uniform_by_fan_in(module: nn.Conv2d | nn.Linear) -> None:
    bound = module.weight[0].numel() ** -0.5
    nn.init.uniform_(module.weight, -bound, bound)
    if module.bias is not None:
        nn.init.uniform_(module.bias, -bound, bound)


def _blocks(network: nn.Module) -> list[ResidualBlock]:
    return [module for module in network.modules() if isinstance(module, ResidualBlock)]


def _last_layers(network: nn.Module) -> list[nn.Conv2d]:
    found = [network.head]
    for block in _blocks(network):
        found += [block.conv_out] if block.attention is None else [block.conv_out, block.attention.proj]
    return found
