"""The run-time table: what an image costs against one step at the full side, published and measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from udpm.config.results import STANDINGS, PublishedRuntime
from udpm.core.errors import UserError
from udpm.reporting.benchmarks import read_benchmark
from udpm.reporting.paper import NOT_RUN, write_readable
from udpm.reporting.render import MISSING

if TYPE_CHECKING:
    from udpm.networks.cost import Cost

GIGA, MEGA = 1e9, 1e6
COUNTED = "C"
"""The standing of what is counted on the published code."""


def speed_file(results: str | Path, experiment: str) -> Path:
    """Where the measured speed of an experiment's sampling lies."""
    return Path(results) / "speed" / f"{experiment}.json"


def read_speed(path: str | Path) -> dict[str, Any]:
    """Read what `udpm bench sample` wrote.

    Raises:
        UserError: missing, unreadable, or not such a record.
    """
    record = read_benchmark(path)
    if record["steps_per_second"] is None or record["images_per_second"] is None:
        raise UserError(f"{path}: holds no steps at the full side; udpm bench sample without --baseline measures them")
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
    return write_readable(pd.DataFrame(rows), frame, _notes(published, costs, speeds), published.title, stem)


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


def _notes(published: PublishedRuntime, costs: dict[str, Cost], speeds: dict[str, dict[str, Any]]) -> list[str]:
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
