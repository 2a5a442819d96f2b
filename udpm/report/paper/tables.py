"""Tables on networks: their cost, their run time, and the paper's Tables 3 to 5 of settings."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from udpm.bench.measure import read_benchmark
from udpm.config.experiment import RunConfig
from udpm.config.published_scores import GRADES, SETUPS, PublishedRuntime
from udpm.core.errors import UserError
from udpm.core.provenance import versions
from udpm.report.paper.entries import NOT_RUN
from udpm.report.table import MISSING, Table, cell

if TYPE_CHECKING:
    from udpm.networks.inference import Cost

GIGA, MEGA = 1e9, 1e6
COUNTED = "C"
"""Standing of numbers counted on the published code."""
COLUMNS = ("network", "calls", "level", "input_side", "multiply_adds", "parameters")
"""Columns of the csv; all but the first are whole numbers."""
FRACTION = "multiply_adds_over_full_side_network"
COUNTING = ("udpm", "torch")
"""Packages that count; their versions are written to the csv."""
COST_NOTES = [
    "G: 1e9 multiply-adds for one image, half of PyTorch's FLOPs. Counted: convolutions with their resampling filters, "
    "linear layers, the two products of attention. Not counted: normalization, activations, softmax, and the average "
    "pooling and nearest-neighbour upsampling of the families with a box filter.",
    "Image: one call of the generator at each level l, with an input of side N/2^l; classifier-free guidance makes it "
    "twice that. Posterior and noise, a few operations for each value, are not counted.",
    "Full-side network: the generator's architecture built for inputs of side N, 3 channels in and out, without "
    "doubling; its attention is at those sides listed for the generator that its own levels have. One call of it is "
    "one step of a diffusion model that works at full side.",
    "Generator fed side N: one call of the generator itself. M: 1e6 parameters.",
]


def cost_table(costs: dict[str, Cost]) -> Table:
    """Return the cost of an image, by experiment, next to one call of a network at the full side."""
    rows = [{"experiment": name, **row} for name, cost in costs.items() for row in _cost_rows(cost)]
    known = {f"version_{package}": version for package, version in versions().items() if package in COUNTING}
    full = pd.DataFrame(rows).astype(dict.fromkeys(COLUMNS[1:], "Int64")).assign(**known)
    shown = pd.DataFrame(
        {
            "experiment": name,
            "calls, l = 1..L (G)": " + ".join(_number(call / GIGA) for call in cost.calls),
            "image (G)": _number(cost.total / GIGA),
            "full-side network (G)": _number(cost.full_side / GIGA),
            "image / full-side network": f"{cost.ratio:.3f}",
            "generator fed side N (G)": _number(cost.generator_at_full_side / GIGA),
            "image / generator fed side N": f"{cost.own_ratio:.3f}",
            "generator (M)": _number(cost.generator_parameters / MEGA),
            "full-side network (M)": _number(cost.full_side_parameters / MEGA),
            "discriminator (M)": _number(cost.discriminator_parameters and cost.discriminator_parameters / MEGA),
        }
        for name, cost in costs.items()
    )
    return Table(shown, COST_NOTES, "Cost", full)


def _cost_rows(cost: Cost) -> list[dict[str, Any]]:
    """Return one row per network call and network; None where a row has no such value."""
    own, side = cost.generator_parameters, cost.side
    rows: list[tuple[Any, ...]] = []
    rows += [("generator", 1, level, side >> level, count, own) for level, count in enumerate(cost.calls, start=1)]
    rows.append(("generator", len(cost.calls), None, None, cost.total, own))
    rows.append(("generator", 1, None, side, cost.generator_at_full_side, own))
    rows.append(("full-side network", 1, None, side, cost.full_side, cost.full_side_parameters))
    if cost.discriminator_parameters is not None:
        rows.append(("discriminator", None, None, None, None, cost.discriminator_parameters))
    return [dict(zip(COLUMNS, row, strict=True)) | {FRACTION: row[4] and row[4] / cost.full_side} for row in rows]


def read_speed(path: str | Path) -> dict[str, Any]:
    """Read a record of `udpm bench sample`.

    Raises:
        UserError: missing, unreadable, or not such a record.
    """
    record = read_benchmark(path)
    if record["steps_per_second"] is None or record["images_per_second"] is None:
        raise UserError(f"{path}: contains no full-side steps; `udpm bench sample` measures them")
    return record


RUNTIME_COLUMNS = (
    *("what", "dataset", "image_giga_multiply_adds", "step_giga_multiply_adds", "ratio", "generator_mega_parameters"),
    *("images_per_second", "steps_per_second", "speed_ratio", "device", "batch", "precision"),
    *("standing", "source", "state"),
)


def runtime_table(
    published: PublishedRuntime, costs: dict[str, Cost], datasets: dict[str, str], speeds: dict[str, dict[str, Any]]
) -> Table:
    """Return the run-time table: published rows, then counted and measured ones, by experiment.

    `speeds` has only the experiments that were measured.
    """
    rows = _runtime_rows(published, costs, datasets, speeds)
    shown = pd.DataFrame([_readable(row) for row in rows])
    notes = _runtime_notes(published, costs, speeds)
    return Table(shown, notes, published.title, pd.DataFrame(rows, columns=RUNTIME_COLUMNS), titled=True)


def _runtime_rows(
    published: PublishedRuntime, costs: dict[str, Cost], datasets: dict[str, str], speeds: dict[str, dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows in full precision."""
    rows: list[dict[str, Any]] = []
    for quoted in published.costs:
        counted = quoted.standing == COUNTED
        what = f"published{' code' if counted else ''}, {quoted.side}×{quoted.side}"
        # Published nowhere, so counted, too.
        parameters = published.parameters.get(quoted.dataset, 0) / MEGA or None if counted else None
        row = _row(what, quoted.dataset, quoted.image, quoted.step, parameters)
        rows.append(row | {"standing": quoted.standing, "source": quoted.source, "state": "published"})
    for speed in published.speeds:
        row = _row("published speed", speed.dataset) | _speed(speed.udpm, speed.step, speed.device)
        rows.append(row | {"standing": speed.standing, "source": speed.source, "state": "published"})
    for name, cost in costs.items():
        row = _row(name, datasets[name], cost.total / GIGA, cost.full_side / GIGA, cost.generator_parameters / MEGA)
        found = speeds.get(name)
        if found:
            row |= _speed(found["images_per_second"], found["steps_per_second"], found["device"])
            row |= {"batch": found["batch"], "precision": found["precision"]}
        rows.append(row | {"state": "measured" if found else NOT_RUN})
    return rows


def _row(
    what: str, dataset: str, image: float | None = None, step: float | None = None, parameters: float | None = None
) -> dict[str, Any]:
    return {
        "what": what,
        "dataset": dataset,
        "image_giga_multiply_adds": image,
        "step_giga_multiply_adds": step,
        "ratio": image / step if image is not None and step is not None else None,
        "generator_mega_parameters": parameters,
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
        "images/s": _number(row.get("images_per_second"), missing=missing),
        "steps/s": _number(row.get("steps_per_second"), missing=missing),
        "images per step": _number(row.get("speed_ratio"), missing=missing),
        "device": row.get("device") or missing,
        "standing": row.get("standing") or MISSING,
    }


def _number(value: float | None, pattern: str = "{:.2f}", missing: str = MISSING) -> str:
    if value is None:
        return missing
    return pattern.format(value) if value >= 0.1 else f"{value:.2g}"


def _runtime_notes(published: PublishedRuntime, costs: dict[str, Cost], speeds: dict[str, dict[str, Any]]) -> list[str]:
    grades = {cost.standing for cost in published.costs} | {speed.standing for speed in published.speeds}
    sources = dict.fromkeys([cost.source for cost in published.costs] + [speed.source for speed in published.speeds])
    notes = [
        "G: 1e9 multiply-adds (what the paper calls FLOPs); M: 1e6 parameters. Image: all calls for one image. One "
        "full-side step: one call of a network built for the full side. Images per step: how many images are drawn in "
        "the time that one such step of one image takes.",
        "Counted here as `udpm cost` does, for lines named after an experiment.",
        *([published.description] if published.description else []),
        "Standing: " + "; ".join(f"{name} {GRADES[name]}" for name in sorted(grades)) + ".",
        "Sources: " + "; ".join(sources) + ".",
    ]
    notes += [
        f"{name}: measured with batches of {found['batch']} in {found['precision']} on {found['device']}, freshly "
        f"initialized networks, torch {found['provenance']['versions'].get('torch', '?')}."
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
TRAINING = {
    "data set": "dataset_name",
    "side": "dataset.side",
    "levels L": "process.levels",
    "α, l = 1 first": "process.alphas",
    "σ, l = 1 first": "process.sigmas",
    "box normalized by": "process.normalization",
    "iterations": "training.iterations",
    "batch": "training.batch",
    "learning rate, generator": "training.learning_rate",
    "learning rate, discriminator": "training.discriminator_learning_rate or training.learning_rate",
    "Adam β": "training.betas",
    "warm-up iterations": "training.warmup",
    "EMA decay": "training.average_decay",
    "level probabilities": "training.level_probabilities",
    "horizontal flips": "training.flip",
    "precision": "training.precision",
    "reconstruction": "losses.reconstruction",
    "λ1": "losses.reconstruction_weight by level",
    "λp (LPIPS)": "losses.lpips_weight by level",
    "λa (adversarial)": "losses.adversarial_weight by level",
    "R1 γ": "losses.r1_gamma by level",
    "discriminator noise": "losses.discriminator_noise.kind",
    "its standard deviation": "losses.discriminator_noise.std by level",
    "its factor per 1000 iterations": "losses.discriminator_noise.decay_per_1000",
}
GENERATOR = {
    "family": "generator.family",
    "channels": "generator.channels",
    "channel multipliers": "generator.channel_multipliers",
    "blocks per level": "generator.blocks",
    "attention at sides": "generator.attention",
    "dropout": "generator.dropout",
    "class-conditional": "generator.class_conditional",
    "label dropout": "generator.label_dropout",
}
DISCRIMINATOR = {
    "channels": "discriminator.channels",
    "dropout": "discriminator.dropout",
    "class-conditional": "discriminator.class_conditional",
    "sees the state x_l": "discriminator.sees_state",
    "sees every level at side N": "losses.upsample_discriminator_input",
}
ROWS = dict(zip(SETUPS, (TRAINING, GENERATOR, DISCRIMINATOR), strict=True))
"""Rows of Tables 3 to 5 and their keys; of several keys, the first that is set."""
UNSET = {"training.level_probabilities": "uniform"}
"""Meaning of keys that are not set."""


@dataclass(frozen=True)
class Setup:
    """An experiment's configuration and the cost of its networks.

    Attributes:
        ran: whether a run has this configuration; otherwise, one would be started with it.
    """

    config: RunConfig
    ran: bool
    cost: Cost

    @property
    def trained(self) -> bool:
        """False for imported weights, whose training is unknown."""
        return self.config.training != "imported"


def setup_table(kind: str, setups: dict[str, Setup]) -> Table:
    """Return a table of settings, one of `TITLES`: one row per setting, one column per experiment."""
    rows = [
        {"setting": name, **{experiment: _setting(kind, keys, setup) for experiment, setup in setups.items()}}
        for name, keys in ROWS[kind].items()
    ]
    if kind != "training":
        rows.append({"setting": "parameters", **{name: _parameters(kind, setup) for name, setup in setups.items()}})
    return Table(pd.DataFrame(rows), _setup_notes(setups), TITLES[kind], titled=True)


def _setting(kind: str, keys: str, setup: Setup) -> str:
    """Format the first of several keys that is set; settings of imported weights' training are unknown."""
    unknown = not setup.trained and keys.startswith(("training.", "losses."))
    if unknown or (kind == "discriminator" and not (setup.trained and setup.config.adversarial)):
        return MISSING
    for key in keys.split(" or "):
        path, _, by_level = key.partition(" by ")
        value = setup.config.per_level(path) if by_level else reduce(getattr, path.split("."), setup.config)
        if value is not None:
            return _text(value)
    return UNSET.get(keys, MISSING)


def _parameters(kind: str, setup: Setup) -> str:
    discriminator = setup.cost.discriminator_parameters if setup.trained else None
    count = setup.cost.generator_parameters if kind == "generator" else discriminator
    return cell(count and count / MEGA, "{:.2f} M")


def _setup_notes(setups: dict[str, Setup]) -> list[str]:
    ran = [name for name, setup in setups.items() if setup.ran and setup.trained]
    rest = [name for name, setup in setups.items() if not setup.ran and setup.trained]
    imported = [name for name, setup in setups.items() if not setup.trained]
    notes = [f"As it ran (resolved configuration of the run): {', '.join(ran)}."] if ran else []
    if rest:
        notes.append(f"Not run; as config/experiments/NAME.yaml would run it: {', '.join(rest)}.")
    if imported:
        notes.append(f"Imported weights, of whose training nothing is known here: {', '.join(imported)}.")
    return [*notes, f"Lists hold one value for each level, l = 1 (finest) first. {MISSING}: there is none."]


def _text(value: Any) -> str:
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or MISSING
    return f"{value:g}" if isinstance(value, float) else str(value)
