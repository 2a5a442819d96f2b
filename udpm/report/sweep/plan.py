"""What a sweep will try, what that takes, and which points are done.

Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved, to_json
from udpm.config.points import LoadedSweep, Resolved, run_folder
from udpm.config.validation import Model, Section
from udpm.core.errors import UserError
from udpm.core.reading import JSON_BYTES, read_text
from udpm.diffusion.schedule import Schedule
from udpm.networks.build import build_generator
from udpm.networks.flops import multiply_adds
from udpm.report.figures.schedule import schedule_table, schedule_warning
from udpm.report.table import markdown, write_table
from udpm.runs.config_guard import INCIDENTAL, differences, other_run
from udpm.runs.records import is_run
from udpm.runs.status import read_standing
from udpm.training.needs import count_arithmetic

Compare = Callable[[Any, Any, set[str]], dict[str, str]]
SHOWN_NAMES = 4
"""Points that a summary names of each state."""


@dataclass(frozen=True)
class PointStanding:
    """Where a point's run of one seed stands.

    Attributes:
        point: name of the point.
        seed: training seed.
        state: new; changed: the folder holds a run of another configuration, which is refused; longer: its training
            goes on to more iterations; resample and rescore: the run stays, what follows is done again; trained: not
            scored yet; complete; or what `udpm status` says of a run under way.
        note: which keys, and what they were.
    """

    point: str
    seed: int
    state: str
    note: str = ""


def point_standings(loaded: LoadedSweep, results: Path) -> list[PointStanding]:
    """Where all points stand, from what lies in the folder of results.

    Raises:
        UserError: a record there cannot be read.
    """
    trained, scored = loaded.trained(results), loaded.scored
    return [_standing_or_reason(loaded, results, key, trained[key], scored[key[0]]) for key in loaded.runs]


def render_points(standings: list[PointStanding]) -> str:
    """A table to read, a row for each point and seed."""
    rows = [("point", "seed", "state", "note")]
    rows += [(standing.point, str(standing.seed), standing.state, standing.note) for standing in standings]
    widths = [max(len(row[column]) for row in rows) for column in range(3)] + [0]
    return "".join(
        "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() + "\n" for row in rows
    )


def summary(name: str, standings: list[PointStanding]) -> str:
    """How many points and seeds are in each state, in a line; those that something is to be done for are named."""
    states: dict[str, list[PointStanding]] = {}
    for standing in standings:
        states.setdefault(standing.state, []).append(standing)
    told = [
        f"{len(found)} {state}" + ("" if state == "complete" else f" ({_names(found)})")
        for state, found in states.items()
    ]
    return f"sweep {name}: {len({one.point for one in standings})} points, {len(standings)} runs: {', '.join(told)}"


def _names(standings: list[PointStanding]) -> str:
    names = list(dict.fromkeys(f"{one.point}: {one.note}" if one.note else one.point for one in standings))
    return ", ".join([*names[:SHOWN_NAMES], *(["…"] if len(names) > SHOWN_NAMES else [])])


def _standing_or_reason(
    loaded: LoadedSweep, results: Path, key: tuple[str, int], trained: str, scored: str
) -> PointStanding:
    """A point's standing; of one whose files cannot be read, which file it is."""
    try:
        return _standing(loaded, results, key, trained, scored)
    except UserError as error:
        return PointStanding(loaded.points[key[0]].point.name, key[1], "unreadable", " ".join(str(error).split()))


def _standing(loaded: LoadedSweep, results: Path, key: tuple[str, int], trained: str, scored: str) -> PointStanding:
    experiment, seed = key
    resolved, run = loaded.points[experiment], loaded.runs[trained, seed]
    folder, point = run_folder(results, trained, seed), resolved.point.name
    shares = "" if trained == experiment else f"uses the run of {loaded.points[trained].point.name}"
    if not is_run(folder):
        return PointStanding(point, seed, "new", shares)
    changed = _differences(RunConfig, folder / "config.json", run, other_run)
    if changed:
        return PointStanding(point, seed, "changed", changed)
    standing = read_standing(folder)
    if standing.state != "complete":
        at = "" if standing.checkpoint is None else f"checkpoint {standing.checkpoint} of {standing.iterations}"
        return PointStanding(point, seed, standing.state, "; ".join(filter(None, (shares, at, standing.note))))
    configs, own = results / "configs", resolved.experiment
    redone = {
        "longer": _differences(RunConfig, folder / "config.json", run, differences),
        "resample": _section_differences(own.sampling, configs / experiment / "sampling.json"),
        "rescore": _section_differences(own.scoring, configs / scored / "scoring.json"),
    }
    for state, why in redone.items():
        if why:
            return PointStanding(point, seed, state, why)
    there = (results / "scores" / experiment / f"seed{seed}.json").is_file()
    return PointStanding(point, seed, "complete" if there else "trained", shares)


def _section_differences(now: Section, path: Path) -> str:
    """How a section of an experiment differs from the one in a file called after it."""
    found = _differences(type(now), path, now)
    return "; ".join(f"{path.stem}.{change}" for change in found.split("; ")) if found else ""


def _differences(model: type[Model], path: Path, now: Model, compare: Compare = differences) -> str:
    """How a configuration differs from the one in a file, if that is there, in words."""
    if not path.exists() or read_text(path, "resolved configuration", JSON_BYTES) == to_json(now):
        return ""
    return "; ".join(compare(read_resolved(model, path), now, INCIDENTAL).values())


GIGA, HOUR = 1e9, 3600
WORDS = 2
"""Leading columns of the table to read that hold words."""
LONGEST = 60
"""Characters of a point's changes that the table to read shows."""
NOTES = [
    "SNR: signal over noise of the state x_l at each level, l = 1 first. KL: upper bound on how far the last state is "
    "from what sampling starts from, in nats per dimension, for any images in [-1, 1].",
    "Image: G (1e9) multiply-adds of the network calls that make one. Iteration: of a discriminator and a generator "
    "step over the batch, forward and backward, in the mean over levels; without LPIPS, Adam and averages.",
]


def plan_table(loaded: LoadedSweep) -> pd.DataFrame:
    """One row for each point, in full precision.

    Raises:
        UserError: a schedule's squares leave double precision.
    """
    trained, counted = loaded.trained(None), {}
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
    return pd.DataFrame(rows)


def render_plan(loaded: LoadedSweep) -> str:
    """The table to read, as markdown."""
    table = plan_table(loaded)
    return markdown(_readable(table), [*NOTES, *_notes(table, loaded)])


def write_plan(loaded: LoadedSweep, stem: str | Path) -> str:
    """Write ``STEM.csv`` (everything), ``STEM.md``, ``STEM.tex`` and ``STEM.html`` (to read).

    Returns:
        The markdown.
    """
    table = plan_table(loaded)
    shown, notes = _readable(table), [*NOTES, *_notes(table, loaded)]
    return write_table(stem, table, shown, notes, WORDS, "Plan")


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
        counted[key] = _image(run), 0.0 if run.training == "imported" else count_arithmetic(run)
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
    parts["losses"] = run.losses.model_dump(mode="json", include={"upsample_discriminator_input"})
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
