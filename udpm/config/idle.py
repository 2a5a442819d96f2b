"""Keys that have no effect on a training with its other values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from udpm.config.experiment import RunConfig
from udpm.config.overrides import OPTION, split_key


class _Rule(NamedTuple):
    """Keys or whole sections that have no effect where a condition holds, and the reason."""

    keys: tuple[str, ...]
    holds: Callable[[RunConfig], bool]
    why: str


_DISCRIMINATOR = ("adversarial", "adversarial_start", "upsample_discriminator_input", "augmentation")
_PENALTY = ("r1_every", "r1_decay_per_1000")
_BY_LEVEL = ("losses.r1_gamma", "losses.r2_gamma", "losses.discriminator_noise.std", "discriminator.dropout")
"""Lists by level of the discriminator, which idles at a level without adversarial weight."""


def _losses(*names: str) -> tuple[str, ...]:
    return tuple(f"losses.{name}" for name in names)


def _no_weight(*names: str) -> Callable[[RunConfig], bool]:
    return lambda run: not any(weight for name in names for weight in run.per_level(f"losses.{name}"))


_RULES = (
    _Rule(
        (
            "discriminator",
            *_losses(*_DISCRIMINATOR, *_PENALTY, "r1_gamma", "r2_gamma", "discriminator_noise"),
            "training.discriminator_every",
            "training.discriminator_learning_rate",
        ),
        lambda run: not run.adversarial,
        "losses.adversarial_weight is 0, so no discriminator is trained",
    ),
    _Rule(_losses(*_PENALTY), _no_weight("r1_gamma", "r2_gamma"), "losses.r1_gamma and losses.r2_gamma are 0"),
    _Rule(
        _losses("discriminator_noise.std", "discriminator_noise.decay_per_1000"),
        lambda run: run.losses.discriminator_noise.kind != "noisy",
        "losses.discriminator_noise.kind is not noisy",
    ),
    _Rule(
        _losses("augmentation.probability", "augmentation.ramp"),
        lambda run: not run.losses.augmentation.transforms,
        "losses.augmentation has no transform",
    ),
    _Rule(
        _losses("energy_exponent", "energy_draws", "energy_patch", "energy_redraw"),
        _no_weight("energy_weight"),
        "losses.energy_weight is 0",
    ),
    _Rule(_losses("lpips_network", "lpips_exponent"), _no_weight("lpips_weight"), "losses.lpips_weight is 0"),
    _Rule(
        ("training.ema_warmup", "training.ema_rampup"),
        lambda run: run.training != "imported" and not run.training.averages,
        "training.ema_decay is 0, and there are no training.more_ema_decays",
    ),
    _Rule(
        ("training.cuda_graphs", "training.tf32"),
        lambda run: run.training != "imported" and run.training.device == "cpu",
        "training.device is cpu",
    ),
    _Rule(
        ("training.backend",),
        lambda run: run.training != "imported" and run.training.processes == 1,
        "there is one process",
    ),
)


def idle_notes(run: RunConfig, given: Iterable[str]) -> Iterator[str]:
    """Yield a note for each key of ``--set``, dotted and perhaps with a level, that has no effect on a training."""
    for dotted in given:
        if why := _why_idle(run, dotted):
            yield f"note: {OPTION} {dotted}: has no effect: {why}"


def _why_idle(run: RunConfig, dotted: str) -> str | None:
    parents, last, level = split_key(dotted)
    key = ".".join([*parents, last])
    if run.training == "imported":
        return "training is imported" if key.startswith(("losses.", "discriminator.")) else None
    for rule in _RULES:
        if any(f"{key}.".startswith(f"{name}.") for name in rule.keys) and rule.holds(run):
            return rule.why
    if level and key in _BY_LEVEL and not run.per_level("losses.adversarial_weight")[level - 1]:
        return f"losses.adversarial_weight is 0 at level {level}"
    return None
