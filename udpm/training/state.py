"""The training state: networks, averages, optimizers and the iteration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from udpm.config.experiment import RunConfig
from udpm.core.arrays import derive_seed
from udpm.core.devices import is_device_failure
from udpm.core.errors import UserError
from udpm.interop.convert import load_pretrained
from udpm.networks.discriminator import Discriminator, build_discriminator
from udpm.networks.unet import UNet, build_generator
from udpm.networks.weights import tensors_under
from udpm.training.posthoc import power_decay


@dataclass
class State:
    """Networks, averages and optimizers after `iteration` iterations.

    It has no random state: every draw is a function of seed and iteration.
    """

    generator: UNet
    ema_models: dict[str, AveragedModel]
    power_models: dict[str, AveragedModel]
    discriminator: Discriminator | None
    optimizers: dict[str, torch.optim.Adam]
    decays: dict[str, float]
    widths: dict[str, float]
    ema_warmup: bool
    ema_rampup: float | None
    iteration: int = 0

    @classmethod
    def fresh(cls, config: RunConfig, device: torch.device) -> State:
        """Return the state before the first iteration, a function of the configuration alone."""
        # Set before averages and moments are created, which inherit the weights' layout.
        layout = torch.channels_last if config.training.channels_last else torch.preserve_format
        torch.manual_seed(derive_seed(config.seed, "weights", "generator"))
        options: dict[str, Any] = {"device": device, "memory_format": layout}
        generator = build_generator(config.model).to(**options)
        discriminator = None
        if config.adversarial:
            torch.manual_seed(derive_seed(config.seed, "weights", "discriminator"))
            discriminator = build_discriminator(config).to(**options)
        decays, widths = config.training.averages, config.training.power_averages
        ema_models, power_models = ({name: make_ema(generator) for name in names} for names in (decays, widths))
        betas = tuple(config.training.betas)
        networks = {"generator": generator, "discriminator": discriminator}
        optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=0.0, betas=betas, fused=True)
            for name, network in networks.items()
            if network is not None
        }
        start = config.training.ema_warmup, config.training.ema_rampup
        return cls(generator, ema_models, power_models, discriminator, optimizers, decays, widths, *start)

    def update_ema(self) -> None:
        """Update every average, a ← d·a + (1 - d)·θ, with the generator of this iteration."""
        largest = self._largest_decay()
        decays = {name: min(decay, largest) for name, decay in self.decays.items()}
        decays |= {name: power_decay(width, self.iteration + 1) for name, width in self.widths.items()}
        for name, ema in self.averages.items():
            # AveragedModel.update_parameters would read its counter, which synchronizes the device.
            get_ema_multi_avg_fn(decays[name])(_values(ema.module), _values(self.generator), None)
            ema.n_averaged += 1

    def _largest_decay(self) -> float:
        """Return the bound on the decays of averages that have just begun."""
        if self.ema_warmup:
            return (1 + self.iteration) / (10 + self.iteration)
        if self.ema_rampup is None:
            return 1.0
        # Images per iteration cancel.
        return 0.5 ** (1 / (self.ema_rampup * self.iteration)) if self.iteration else 0.0

    def fingerprint(self) -> int:
        """Return a checksum of the bits of networks and averages."""
        networks = [*self.networks.values(), *(ema.module for ema in self.averages.values())]
        bits = [
            value.contiguous().view(torch.int32).sum(dtype=torch.int64)
            for network in networks
            for value in network.state_dict().values()
        ]
        return int(torch.stack(bits).sum())

    def start_from(self, config: RunConfig) -> dict[str, Any]:
        """Load the configured initial weights and return their origin, for the record.

        Raises:
            UserError: they are missing, damaged or of another network.
        """
        given, origin = load_pretrained(config)
        self.generator.load_state_dict(given["raw"])
        for name, ema in self.ema_models.items():
            ema.module.load_state_dict(given.get(name, given.get("ema", given["raw"])))
        if self.discriminator is not None and "discriminator" in given:
            try:
                self.discriminator.load_state_dict(given["discriminator"])
            except RuntimeError as error:
                if is_device_failure(error):
                    raise
                reason = str(error).splitlines()[-1].strip()
                raise UserError(f"{config.weights}: its discriminator is not this experiment's: {reason}") from None
        return origin

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained networks, by player."""
        return {name: getattr(self, name) for name in self.optimizers}

    @property
    def averages(self) -> dict[str, AveragedModel]:
        """All averages, by name."""
        return self.ema_models | self.power_models

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the whole state as named tensors."""
        found: dict[str, torch.Tensor] = {}
        for kind, ema in self.averages.items():
            found |= {f"{kind}/{name}": value for name, value in ema.state_dict().items()}
        for player, network in self.networks.items():
            found |= {f"{player}/{name}": value for name, value in network.state_dict().items()}
            for name, parameter in network.named_parameters():
                moments = self.optimizers[player].state.get(parameter, {})
                found |= {f"adam/{player}/{kind}/{name}": value for kind, value in moments.items()}
        return found

    def load(self, tensors: dict[str, torch.Tensor], iteration: int) -> None:
        """Load what `tensors` returned.

        Raises:
            RuntimeError: names or shapes do not fit.
        """
        for kind, ema in self.averages.items():
            ema.load_state_dict(tensors_under(tensors, f"{kind}/"))
        for player, network in self.networks.items():
            network.load_state_dict(tensors_under(tensors, f"{player}/"))
            optimizer = self.optimizers[player]
            for name, parameter in network.named_parameters():
                keys = {kind: f"adam/{player}/{kind}/{name}" for kind in ("step", "exp_avg", "exp_avg_sq")}
                if keys["step"] in tensors:
                    # A fused Adam keeps the step on the weights' device, too.
                    step = tensors[keys["step"]].clone().to(parameter.device)
                    moments = {kind: _like(parameter, tensors[keys[kind]]) for kind in ("exp_avg", "exp_avg_sq")}
                    optimizer.state[parameter] = {"step": step, **moments}
        self.iteration = iteration


def _like(parameter: nn.Parameter, value: torch.Tensor) -> torch.Tensor:
    """Return a value in its parameter's memory layout, as a fused Adam requires.

    Raises:
        RuntimeError: the value has another shape.
    """
    if value.shape != parameter.shape:
        raise RuntimeError(f"a moment is {tuple(value.shape)}, its weight {tuple(parameter.shape)}")
    return torch.empty_like(parameter, requires_grad=False).copy_(value)


def _values(network: nn.Module) -> list[torch.Tensor]:
    """Return parameters and buffers, detached."""
    return [value.detach() for value in (*network.parameters(), *network.buffers())]


def make_ema(generator: UNet) -> AveragedModel:
    """Return an average of the generator's weights and buffers, initialized with their values."""
    averaged = AveragedModel(generator, use_buffers=True)
    # The initial values count as averaged: the first update then averages instead of copying.
    averaged.n_averaged.fill_(1)
    return averaged.requires_grad_(False).eval()
