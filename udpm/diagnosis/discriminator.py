"""The discriminator of a run: how well it separates, and its share of the generator's gradient."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udpm.config.experiment import RunConfig
from udpm.core.errors import UserError
from udpm.data.levels import block_sums, decode
from udpm.diffusion.schedule import Schedule
from udpm.runs.records import CHECKPOINTS
from udpm.training.batch import TrainingBatch, draw_noise
from udpm.training.checkpoint import resume
from udpm.training.losses import LossWeights, discriminator_losses, generator_losses, loss_weights
from udpm.training.perceptual import Perceptual, load_lpips
from udpm.training.state import State

TERMS = ("reconstruction", "energy", "lpips", "adversarial")
"""Terms of the generator's loss, by the names of their weights."""
MOST_BATCHES = 16


@dataclass(frozen=True)
class Players:
    """Generator and discriminator at the end of training, and held-out images.

    Attributes:
        config: of the run.
        state: loaded from its newest checkpoint.
        images: (n, N, N, 3) uint8.
        labels: (n,) int64.
    """

    config: RunConfig
    state: State
    images: np.ndarray
    labels: np.ndarray
    device: torch.device


def load_state(run: Path, config: RunConfig | None, device: torch.device) -> State | str:
    """Load the state of a run's newest checkpoint, or return the reason for there being no discriminator in it.

    Raises:
        UserError: a checkpoint is damaged or of another run.
    """
    if config is None or config.training == "imported":
        return "the weights are imported"
    if not config.adversarial:
        return "the run was trained without a discriminator"
    state = State.fresh(config, device)
    if resume(run / CHECKPOINTS, state, config.training.iterations, lambda path, description: None) is None:
        return "the run's checkpoints were removed"
    return state


def diagnose_discriminator(players: Players) -> list[dict[str, Any]] | str:
    """Measure the discriminator at every level with an adversarial weight, on batches as in training.

    Returns:
        By level, l = 1 first: "real" and "fake" (its mean outputs), "auc", "loss", "r1" (mean ‖∇D(real)‖²), each a
        mean over batches; "gradients" (of each term of the generator's loss, with its weight, the norm of the mean
        gradient with respect to the generator's parameters), "share" (of the adversarial norm in the sum of norms) and
        "cosine" (of the adversarial gradient and the sum of the others; None without others). Or the reason for having
        nothing.
    """
    config = players.config
    assert config.training != "imported"
    if len(players.images) < config.training.batch:
        return f"fewer held-out images, {len(players.images)}, than training.batch {config.training.batch}"
    perceptual = _perceptual(config, players.device)
    weights = [level.at(players.state.iteration) for level in loss_weights(config)]
    return [
        {"level": level, **_separation(players, level, at), **_gradients(players, level, at, perceptual)}
        for level, at in enumerate(weights, start=1)
        if at.adversarial > 0
    ]


def _perceptual(config: RunConfig, device: torch.device) -> Perceptual | None:
    """Load LPIPS if a level has it; None, too, without its network's weights, whose gradient then is unknown."""
    if not any(config.per_level("losses.lpips_weight")):
        return None
    try:
        return load_lpips(config.losses.lpips_network, config.losses.lpips_exponent, device)
    except UserError:
        return None


def _batches(players: Players, player: str, level: int, std: float) -> Iterator[TrainingBatch]:
    """Yield batches of held-out images with the noise of iterations that no training reaches."""
    config = players.config
    assert config.training != "imported"
    size, scale = config.training.batch, _schedule(players).scale
    for index in range(min(len(players.images) // size, MOST_BATCHES)):
        part = slice(index * size, (index + 1) * size)
        target = decode(block_sums(players.images[part], level - 1), level - 1, scale).transpose(0, 3, 1, 2)
        yield draw_noise(
            config,
            player,
            2**62 + index,
            level,
            torch.from_numpy(np.ascontiguousarray(target)).to(players.device),
            torch.from_numpy(players.labels[part]).to(players.device),
            std,
        )


def _separation(players: Players, level: int, weights: LossWeights) -> dict[str, float]:
    """Return means over batches of what the discriminator's step measures, without dropout."""
    state, schedule = players.state, _schedule(players)
    assert state.discriminator is not None
    generator, discriminator = state.generator.eval(), state.discriminator.eval().requires_grad_(False)
    # R1 needs a weight to be computed; its unweighted value is returned.
    always = replace(weights, r1=weights.r1 or 1.0, dropout=0.0)
    found = [
        discriminator_losses(generator, discriminator, schedule, always, batch)
        for batch in _batches(players, "discriminator", level, weights.noise)
    ]
    names = ("real", "fake", "auc", "loss", "r1")
    return {name: float(np.mean([losses[name].item() for losses in found])) for name in names}


def _gradients(players: Players, level: int, weights: LossWeights, perceptual: Perceptual | None) -> dict[str, Any]:
    """Return norms of the gradients of the generator's terms, the adversarial share, and its cosine with the rest."""
    state = players.state
    state.generator.eval()
    parameters = list(state.generator.parameters())
    found: dict[str, torch.Tensor] = {}
    for term in TERMS:
        others: dict[str, Any] = {other: 0.0 for other in TERMS if other != term}
        alone = replace(weights, **others)
        if getattr(weights, term) == 0 or (term == "lpips" and perceptual is None):
            continue
        mean = [torch.zeros_like(parameter) for parameter in parameters]
        for count, batch in enumerate(_batches(players, "generator", level, weights.noise), start=1):
            networks = state.generator, state.discriminator, perceptual
            total = generator_losses(*networks, _schedule(players), alone, batch)["total"]
            parts = torch.autograd.grad(total, parameters, allow_unused=True)
            mean = [a if b is None else a + (b - a) / count for a, b in zip(mean, parts, strict=True)]
        found[term] = torch.cat([part.flatten() for part in mean])
    norms = {term: gradient.norm().item() for term, gradient in found.items()}
    adversarial = found.pop("adversarial")
    rest = torch.stack(list(found.values())).sum(dim=0) if found else None
    cosine = None if rest is None else torch.cosine_similarity(adversarial, rest, dim=0).item()
    return {"gradients": norms, "share": norms["adversarial"] / (sum(norms.values()) or 1.0), "cosine": cosine}


def _schedule(players: Players) -> Schedule:
    return Schedule.from_config(players.config.process)
