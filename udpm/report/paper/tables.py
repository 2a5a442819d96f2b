"""The run-time table and the set-up tables (the paper's Tables 3 to 5), published and measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from udpm.config.experiment import RunConfig
from udpm.config.published_scores import SETUPS, STANDINGS, PublishedRuntime
from udpm.config.training import Training
from udpm.core.errors import UserError
from udpm.report.benchmarks import read_benchmark
from udpm.report.paper.comparison import write_readable
from udpm.report.paper.entries import NOT_RUN
from udpm.report.table import MISSING

if TYPE_CHECKING:
    from udpm.networks.flops import Cost


GIGA, MEGA = 1e9, 1e6
COUNTED = "C"
"""The standing of what is counted on the published code."""


def read_speed(path: str | Path) -> dict[str, Any]:
    """Read what `udpm bench sample` wrote.

    Raises:
        UserError: missing, unreadable, or not such a record.
    """
    record = read_benchmark(path)
    if record["steps_per_second"] is None or record["images_per_second"] is None:
        raise UserError(f"{path}: holds no steps at the full side; udpm bench sample measures them")
    return record


def runtime_rows(
    published: PublishedRuntime, costs: dict[str, Cost], datasets: dict[str, str], speeds: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Published lines, then counted and measured ones, in full precision.

    Args:
        published: what others say.
        costs: counted here, by experiment.
        datasets: of these experiments.
        speeds: measured here, by experiment; those not measured are left out.
    """
    quoted = [
        _row(
            f"published{' code' if cost.standing == COUNTED else ''}, {cost.side}×{cost.side}",
            cost.dataset,
            cost.image,
            cost.step,
            # Nobody publishes them: they are counted as well.
            published.parameters.get(cost.dataset, 0) / MEGA or None if cost.standing == COUNTED else None,
            standing=cost.standing,
            source=cost.source,
        )
        for cost in published.costs
    ]
    for speed in published.speeds:
        line = _row("published speed", speed.dataset, None, None, None, standing=speed.standing, source=speed.source)
        quoted.append(line | _speed(speed.udpm, speed.step, speed.device))
    own = []
    for name, cost in costs.items():
        line = _row(name, datasets[name], cost.total / GIGA, cost.full_side / GIGA, cost.generator_parameters / MEGA)
        found = speeds.get(name)
        if found:
            line |= _speed(found["images_per_second"], found["steps_per_second"], found["device"])
            line |= {"batch": found["batch"], "precision": found["precision"]}
        own.append(line | {"state": "measured" if found else NOT_RUN})
    return quoted + own


def write_runtime(
    published: PublishedRuntime,
    costs: dict[str, Cost],
    datasets: dict[str, str],
    speeds: dict[str, dict[str, Any]],
    stem: str | Path,
) -> str:
    """Write ``STEM.csv`` (full precision), ``STEM.md``, ``STEM.tex`` and ``STEM.html``.

    Returns:
        The markdown.
    """
    rows = runtime_rows(published, costs, datasets, speeds)
    frame = pd.DataFrame([_readable(row) for row in rows])
    return write_readable(pd.DataFrame(rows), frame, _runtime_notes(published, costs, speeds), published.title, stem)


def _row(
    what: str, dataset: str, image: float | None, step: float | None, parameters: float | None, **more: Any
) -> dict[str, Any]:
    known = image is not None and step is not None
    return {
        "what": what,
        "dataset": dataset,
        "image_giga_multiply_adds": image,
        "step_giga_multiply_adds": step,
        "ratio": image / step if known else None,
        "generator_mega_parameters": parameters,
        "images_per_second": None,
        "steps_per_second": None,
        "speed_ratio": None,
        "device": None,
        "batch": None,
        "precision": None,
        "standing": None,
        "source": None,
        "state": "published",
        **more,
    }


def _speed(images: float, steps: float, device: str) -> dict[str, Any]:
    return {"images_per_second": images, "steps_per_second": steps, "speed_ratio": images / steps, "device": device}


def _readable(row: dict[str, Any]) -> dict[str, str]:
    missing = NOT_RUN if row["state"] == NOT_RUN else MISSING
    return {
        "what": row["what"],
        "data set": row["dataset"],
        "image (G)": _number(row["image_giga_multiply_adds"]),
        "one full-side step (G)": _number(row["step_giga_multiply_adds"]),
        "ratio": _number(row["ratio"], "{:.3f}"),
        "generator (M)": _number(row["generator_mega_parameters"]),
        "images/s": _number(row["images_per_second"], missing=missing),
        "steps/s": _number(row["steps_per_second"], missing=missing),
        "images per step": _number(row["speed_ratio"], missing=missing),
        "device": row["device"] or missing,
        "standing": row["standing"] or MISSING,
    }


def _number(value: float | None, pattern: str = "{:.2f}", missing: str = MISSING) -> str:
    if value is None:
        return missing
    return pattern.format(value) if value >= 0.1 else f"{value:.2g}"


def _runtime_notes(published: PublishedRuntime, costs: dict[str, Cost], speeds: dict[str, dict[str, Any]]) -> list[str]:
    standings = {cost.standing for cost in published.costs} | {speed.standing for speed in published.speeds}
    sources = dict.fromkeys([cost.source for cost in published.costs] + [speed.source for speed in published.speeds])
    notes = [
        "G: 1e9 multiply-adds (what the paper calls FLOPs); M: 1e6 parameters. Image: all calls for one image. One "
        "full-side step: one call of a network built for the full side. Images per step: how many images are drawn in "
        "the time that one such step of one image takes.",
        "Counted here as `udpm cost` does, for lines named after an experiment.",
        *([published.description] if published.description else []),
        "Standing: " + "; ".join(f"{name} {STANDINGS[name]}" for name in sorted(standings)) + ".",
        "Sources: " + "; ".join(sources) + ".",
    ]
    notes += [
        f"{name}: measured with batches of {found['batch']} in {found['precision']} on {found['device']}, freshly "
        f"initialised networks, torch {found['provenance']['versions'].get('torch', '?')}."
        for name, found in speeds.items()
    ]
    left = [name for name in costs if name not in speeds]
    if left:
        commands = "; ".join(f"`udpm bench sample {name} --output results/speed/{name}.json`" for name in left)
        notes.append(f"Not run; to fill: {commands}; then `snakemake paper_tables`.")
    return notes


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
    return write_readable(frame, frame, _setup_notes(shown), TITLES[kind], stem, columns=1)


def _setup_notes(shown: dict[str, Shown]) -> list[str]:
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
