"""The set-up tables (the paper's Tables 3 to 5), from resolved configurations: training, generator, discriminator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from udpm.config.experiment import RunConfig, Training
from udpm.config.results import SETUPS
from udpm.reporting.paper import write_readable
from udpm.reporting.render import MISSING

TITLES = {
    "training": "Table 3: training set-up",
    "generator": "Table 4: generator",
    "discriminator": "Table 5: discriminator",
}
Getter = Callable[[RunConfig], Any]


@dataclass(frozen=True)
class Shown:
    """An experiment's configuration and where it was found.

    Attributes:
        config: resolved.
        ran: whether it is that of a run that is there; else of one that would be made.
        parameters: of the generator and, where there is one, the discriminator.
    """

    config: RunConfig
    ran: bool
    parameters: dict[str, int | None]


def _training(value: Callable[[Training], Any]) -> Getter:
    return lambda run: None if run.training == "imported" else value(run.training)


def _trained(value: Getter) -> Getter:
    return lambda run: None if run.training == "imported" else value(run)


def _levels(path: str) -> Getter:
    return _trained(lambda run: run.per_level(path))


def _discriminator(value: Getter) -> Getter:
    return _trained(lambda run: value(run) if run.adversarial else None)


TRAINING: dict[str, Getter] = {
    "data set": lambda run: run.dataset_name,
    "side": lambda run: run.dataset.side,
    "levels L": lambda run: run.process.levels,
    "α, l = 1 first": lambda run: run.process.alphas,
    "σ, l = 1 first": lambda run: run.process.sigmas,
    "box normalised by": lambda run: run.process.normalization,
    "iterations": _training(lambda training: training.iterations),
    "batch": _training(lambda training: training.batch),
    "learning rate, generator": _training(lambda training: training.learning_rate),
    "learning rate, discriminator": _training(
        lambda training: training.discriminator_learning_rate or training.learning_rate
    ),
    "Adam β": _training(lambda training: training.betas),
    "warm-up iterations": _training(lambda training: training.warmup),
    "EMA decay": _training(lambda training: training.ema_decay),
    "level probabilities": _training(lambda training: training.level_probabilities or "uniform"),
    "horizontal flips": _training(lambda training: training.flip),
    "precision": _training(lambda training: training.precision),
    "reconstruction": _trained(lambda run: run.losses.reconstruction),
    "λ1": _levels("losses.reconstruction_weight"),
    "λp (LPIPS)": _levels("losses.lpips_weight"),
    "λa (adversarial)": _levels("losses.adversarial_weight"),
    "R1 γ": _levels("losses.r1_gamma"),
    "discriminator noise": _trained(lambda run: run.losses.discriminator_noise.kind),
    "its standard deviation": _levels("losses.discriminator_noise.std"),
    "its factor per 1000 iterations": _trained(lambda run: run.losses.discriminator_noise.decay_per_1000),
}
GENERATOR: dict[str, Getter] = {
    "family": lambda run: run.generator.family,
    "channels": lambda run: run.generator.channels,
    "channel multipliers": lambda run: run.generator.channel_multipliers,
    "blocks per level": lambda run: run.generator.blocks,
    "attention at sides": lambda run: run.generator.attention,
    "dropout": lambda run: run.generator.dropout,
    "class-conditional": lambda run: run.generator.class_conditional,
    "label dropout": lambda run: run.generator.label_dropout,
}
DISCRIMINATOR: dict[str, Getter] = {
    "channels": _discriminator(lambda run: run.discriminator.channels),
    "dropout": _discriminator(lambda run: run.discriminator.dropout),
    "class-conditional": _discriminator(lambda run: run.discriminator.class_conditional),
    "sees the state x_l": _discriminator(lambda run: run.discriminator.sees_state),
    "sees every level at side N": _discriminator(lambda run: run.losses.upsample_discriminator_input),
}
ROWS = dict(zip(SETUPS, (TRAINING, GENERATOR, DISCRIMINATOR), strict=True))


def setup_table(kind: str, shown: dict[str, Shown]) -> pd.DataFrame:
    """One row for each setting, one column for each experiment, as text.

    Args:
        kind: training, generator or discriminator.
        shown: by experiment.
    """
    rows = [
        {"setting": name, **{experiment: _text(value(found.config)) for experiment, found in shown.items()}}
        for name, value in ROWS[kind].items()
    ]
    if kind != "training":
        counts = {
            experiment: _count(found.parameters[kind] if kind == "generator" or _is_trained(found) else None)
            for experiment, found in shown.items()
        }
        rows.append({"setting": "parameters", **counts})
    return pd.DataFrame(rows)


def write_setup(kind: str, shown: dict[str, Shown], stem: str | Path) -> str:
    """Write ``STEM.csv``, ``STEM.md``, ``STEM.tex`` and ``STEM.html``.

    Returns:
        The markdown.
    """
    frame = setup_table(kind, shown)
    return write_readable(frame, frame, _notes(shown), TITLES[kind], stem, columns=1)


def _notes(shown: dict[str, Shown]) -> list[str]:
    imported = [name for name, found in shown.items() if not _is_trained(found)]
    ran = [name for name, found in shown.items() if found.ran and name not in imported]
    rest = [name for name, found in shown.items() if not found.ran and name not in imported]
    notes = [f"As it ran (resolved configuration of the run): {', '.join(ran)}."] if ran else []
    if rest:
        notes.append(f"Not run; as config/experiments/NAME.yaml would run it: {', '.join(rest)}.")
    if imported:
        notes.append(f"Imported weights, of whose training nothing is known here: {', '.join(imported)}.")
    return [*notes, f"Lists hold one value for each level, l = 1 (finest) first. {MISSING}: there is none."]


def _is_trained(found: Shown) -> bool:
    return found.config.training != "imported"


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(parameters: int | None) -> str:
    return MISSING if parameters is None else f"{parameters / 1e6:.2f} M"
