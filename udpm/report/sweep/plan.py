"""What a sweep will try and what that takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch

from udpm.config.experiment import RunConfig
from udpm.config.points import LoadedSweep, Resolved
from udpm.core.errors import UserError
from udpm.diffusion.schedule import Schedule
from udpm.networks.flops import multiply_adds
from udpm.networks.unet import build_generator
from udpm.report.figures.schedule import schedule_table, schedule_warning
from udpm.report.table import Table
from udpm.training.estimate import iteration_cost

GIGA, HOUR = 1e9, 3600
LONGEST = 60
"""Characters of a point's changes that the table to read shows."""
NOTES = [
    "SNR: signal over noise of the state x_l at each level, l = 1 first. KL: upper bound on how far the last state is "
    "from what sampling starts from, in nats per dimension, for any images in [-1, 1].",
    "Image: G (1e9) multiply-adds of the network calls that make one. Iteration: of a discriminator and a generator "
    "step over the batch, forward and backward, in the mean over levels; without LPIPS, Adam and averages.",
]


def plan_table(loaded: LoadedSweep) -> Table:
    """One row for each point.

    Raises:
        UserError: a schedule's squares leave double precision.
    """
    trained = loaded.trained()
    counted: dict[Any, Any] = {}
    rows = []
    for name, resolved in loaded.points.items():
        experiment = resolved.experiment
        run = loaded.runs[name, experiment.seeds[0]]
        own = [seed for seed in experiment.seeds if trained[name, seed] == name]
        rows.append(
            {
                "point": resolved.point.name,
                "changes": resolved.point.changes_text,
                "seeds": " ".join(map(str, experiment.seeds)),
                **_schedule(run, loaded.sweep.base, resolved),
                **_cost(loaded, resolved, run, len(own), counted),
            }
        )
    full = pd.DataFrame(rows)
    return Table(_readable(full), [*NOTES, *_notes(full, loaded)], "Plan", full, words=2)


def _schedule(run: RunConfig, base: str, resolved: Resolved) -> dict[str, Any]:
    try:
        table = schedule_table(Schedule.from_config(run.process), run.dataset.side)
    except UserError as error:
        raise UserError(f"point {resolved.point.name} of base {base}: process.{error}") from None
    last = table.iloc[-1]
    return {
        "levels": run.process.levels,
        "alphas": " ".join(map(str, run.process.alphas)),
        "sigmas": " ".join(map(str, run.process.sigmas)),
        "snr": " ".join(map(str, table["snr"])),
        **{key: last[key] for key in ("prior_std", "divergence", "divergence_standard")},
        "warning": schedule_warning(table) or "",
    }


def _cost(loaded: LoadedSweep, resolved: Resolved, run: RunConfig, trainings: int, counted: dict) -> dict[str, Any]:
    """Multiply-adds, counted once for all points whose networks do the same, and the hours that they take."""
    experiment, key = resolved.experiment, _arithmetic_of(run)
    if key not in counted:
        counted[key] = _image(run), 0 if run.training == "imported" else iteration_cost(run).multiply_adds
    image, iteration = counted[key]
    iterations = 0 if run.training == "imported" else run.training.iterations
    total = trainings * iterations * iteration + len(experiment.seeds) * experiment.sampling.count * image
    return {
        "image_multiply_adds": image,
        "iteration_multiply_adds": iteration,
        "iterations": iterations,
        "trainings": trainings,
        "device_hours": total / loaded.sweep.multiply_adds_per_second / HOUR,
    }


def _arithmetic_of(run: RunConfig) -> str:
    """All that the number of operations depends on: of the process its levels, of weights whether they are zero."""
    used = [[bool(value) for value in run.per_level(f"losses.{key}")] for key in ("adversarial_weight", "r1_gamma")]
    parts = run.model_dump(mode="json", include={"generator", "discriminator", "training"})
    parts["losses"] = run.losses.model_dump(mode="json", include={"upsample_discriminator_input", "r1_every"})
    return json.dumps([parts, used, run.process.levels, run.dataset.side, run.classes])


def _image(run: RunConfig) -> int:
    with torch.device("meta"):
        generator = build_generator(run.model)
    return sum(multiply_adds(generator, run.dataset.side >> level) for level in range(1, run.process.levels + 1))


def _readable(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "point": row.point,
            "changes of the base": row.changes if len(row.changes) <= LONGEST else f"{row.changes[: LONGEST - 1]}…",
            "seeds": str(len(row.seeds.split())),
            "SNR by level": " ".join(f"{float(value):.3g}" for value in row.snr.split()),
            "KL at the start": f"{row.divergence:.2g}",
            "image (G)": f"{row.image_multiply_adds / GIGA:.3g}",
            "iteration (G)": f"{row.iteration_multiply_adds / GIGA:.3g}",
            "iterations": str(row.iterations),
            "trainings": str(row.trainings),
            "device-hours": f"{row.device_hours:.3g}",
        }
        for row in table.itertuples()
    )


def _notes(table: pd.DataFrame, loaded: LoadedSweep) -> Iterator[str]:
    speed = loaded.sweep.multiply_adds_per_second
    yield (
        f"{len(table)} points of {loaded.sweep.base}, {table['trainings'].sum()} trainings: "
        f"{table['device_hours'].sum():.3g} device-hours, if a device does {speed:.2g} multiply-adds per second "
        f"({2 * speed:.2g} FLOP/s), which the sweep assumes (multiply_adds_per_second)."
    )
    if (table["trainings"] < table["seeds"].str.split().str.len()).any():
        yield "Points that differ only in what comes after training share one: it is counted for the first of them."
    for row in table.itertuples():
        if row.warning:
            yield f"{row.point}: {row.warning}."
