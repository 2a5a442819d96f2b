"""Averages of any width after training (EDM2: Karras et al. 2024, arXiv 2312.02696), from snapshots of tracked ones.

The average of width σ after t iterations weighs the network after each iteration τ by p(τ) ∝ τ^γ, where γ is such that
the standard deviation of τ is σ t. Averages of two widths are tracked during training; a combination of their snapshots
whose weights of iterations are closest to those of another width is an average of that width.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved
from udpm.config.training import POWER_WIDTHS
from udpm.config.validation import Exactly, PositiveInt, Record, Sha256, read_record, validate
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json
from udpm.networks.weights import check_generator, read_tensors, save_weights, tensors_under, write_tensors
from udpm.runs.config_guard import state_changes
from udpm.runs.layout import snapshot
from udpm.runs.records import iteration_of, numbered

FORMAT = "udpm-snapshot/1"
WIDEST = 0.25
"""Largest width to reconstruct, about the largest for which p(τ) increases with τ."""
LARGEST_ERROR = 0.1
"""Largest distance of a reconstruction's weights of iterations from the wanted ones, relative to their norm."""
DO_WITHOUT = "remove it and its .json to do without it"
COPIED = (
    "experiment",
    "run_seed",
    "dataset",
    "dataset_sha256",
    "class_names",
    "iteration",
    "processes",
    "origin",
    "run",
)
"""Parts of a snapshot's description that also describe an average."""


class Manifest(Record):
    """A snapshot's manifest, written after it."""

    format: Annotated[str, Exactly(FORMAT)]
    iteration: PositiveInt
    sha256: Sha256


class SnapshotRecord(Record):
    """Required content of a snapshot's description."""

    iteration: PositiveInt
    dataset_sha256: Sha256
    run: dict[str, Any]


@cache
def exponent(width: float) -> float:
    """Return γ of a width: the root of σ² = (γ + 1) / ((γ + 2)² (γ + 3)), the same on every machine."""
    low, high = 0.0, 1e9
    for _ in range(200):
        middle = (low + high) / 2
        if (middle + 1) / ((middle + 2) ** 2 * (middle + 3)) > width**2:
            low = middle
        else:
            high = middle
    return low


def power_decay(width: float, iteration: int) -> float:
    """Return the factor on a tracked average before a network is added; iterations count from 1."""
    return (1 - 1 / iteration) ** (exponent(width) + 1)


def save_snapshot(
    run: Path, iteration: int, averages: dict[str, dict[str, torch.Tensor]], description: dict[str, Any]
) -> None:
    """Write the tracked averages of an iteration, then a manifest with the file's SHA-256.

    Args:
        averages: state dicts by name.

    Raises:
        UserError: the disk is full or cannot be written.
    """
    path = snapshot(run, iteration)
    path.with_suffix(".json").unlink(missing_ok=True)
    tensors = {f"{kind}/{name}": value for kind, state in averages.items() for name, value in state.items()}
    write_tensors(path, tensors, {"format": FORMAT, **description})
    write_json(path.with_suffix(".json"), {"format": FORMAT, "iteration": iteration, "sha256": sha256(path)})


def average_run(run: Path, width: float, output: Path, at: int | None = None) -> str:
    """Reconstruct a run's average of a width and write it as a weight file, whose weights are called "ema".

    Args:
        at: iteration of the snapshot at which the average ends; default: the last.

    Returns:
        A line that describes what was written.

    Raises:
        UserError: no snapshot is kept (of this iteration), one is missing, damaged or of another run, or the width
            cannot be reconstructed.
    """
    if not 0 < width <= WIDEST:
        raise UserError(f"--width: must be above 0 and at most {WIDEST:g}, got {width:g}")
    if not (run / "config.json").is_file():
        raise UserError(f"{run}: is not the folder of a training: it has no config.json")
    config = read_resolved(RunConfig, run / "config.json")
    iterations, at = _snapshots(run, config, at)
    weights, error = combine(iterations, width)
    if error > LARGEST_ERROR:
        fitting = [each for each in np.arange(5, 251, 5) / 1000 if combine(iterations, each)[1] <= LARGEST_ERROR]
        raise UserError(
            f"--width: {width:g} cannot be reconstructed from the {len(iterations)} snapshots of {run} up to iteration "
            f"{at}: the error is {error:.0%}, must be at most {LARGEST_ERROR:.0%}; widths from {fitting[0]:g} to "
            f"{fitting[-1]:g} can, and more if training.keep_every is lower"
        )
    total: dict[str, torch.Tensor] = {}
    used: list[dict[str, Any]] = []
    description: dict[str, Any] = {}
    for iteration, row in zip(iterations, weights, strict=True):
        tensors, description, digest = _read_snapshot(run, config, iteration)
        used.append({"iteration": iteration, "sha256": digest})
        for kind, weight in zip(tensors, row, strict=True):
            for name, value in tensors[kind].items():
                # An average that does not count leaves the others' bits alone.
                if weight:
                    total[name] = total.get(name, 0) + float(weight) * value.double()
    average = {"width": width, "error": error, "snapshots": used}
    about = {key: description[key] for key in COPIED if key in description}
    state = {name: value.float() for name, value in total.items()}
    save_weights(output, config.model, {"ema": state}, {**about, "average": average})
    return f"{output}: average of width {width:g} at iteration {at}, from {len(used)} snapshots, error {error:.2%}"


def combine(iterations: list[int], width: float) -> tuple[np.ndarray, float]:
    """Return the weight of every snapshot in the average of a width that ends with the last one, and the error.

    The weights sum to 1, so that a constant is its own average. The error is the distance between the wanted weights of
    iterations and the combination's, relative to the norm of the wanted ones.

    Args:
        iterations: of the snapshots, ascending.

    Returns:
        An array with a row for each snapshot and a column for each tracked width.
    """
    count, tracked = len(iterations), len(POWER_WIDTHS)
    if width in POWER_WIDTHS:
        exact = np.zeros((count, tracked))
        exact[-1, POWER_WIDTHS.index(width)] = 1
        return exact, 0.0
    times = np.repeat(np.array(iterations, np.float64) / iterations[-1], tracked)
    exponents = np.tile([exponent(each) for each in POWER_WIDTHS], count)
    products = _inner(times[:, None], exponents[:, None], times, exponents)
    wanted = exponent(width)
    toward = _inner(times, exponents, 1.0, wanted)
    # Lagrange's multiplier of the sum is the last unknown.
    system = np.block([[products, np.ones((len(times), 1))], [np.ones(len(times)), np.zeros(1)]])
    weights = np.linalg.solve(system, np.append(toward, 1))[:-1]
    norm = _inner(1.0, wanted, 1.0, wanted)
    distance = norm - 2 * weights @ toward + weights @ products @ weights
    return weights.reshape(count, tracked), float(np.sqrt(max(0.0, distance) / norm))


def _inner(time: Any, exponent: Any, other_time: Any, other: Any) -> Any:
    """Return ∫ p p' of two averages' weights of iterations."""
    power = np.where(time < other_time, other, -exponent)
    latest = np.maximum(time, other_time)
    return (exponent + 1) * (other + 1) * (time / other_time) ** power / ((exponent + other + 1) * latest)


def _snapshots(run: Path, config: RunConfig, at: int | None) -> tuple[list[int], int]:
    """Return the iterations of the snapshots up to `at`, and `at`.

    Raises:
        UserError: there are none, or none of this iteration.
    """
    if config.training == "imported" or not config.training.posthoc_average:
        raise UserError(f"{run}: keeps no snapshots of averages; train a run with training.posthoc_average: true")
    kept = [iteration_of(path) for path in numbered(snapshot(run, 0).parent, ".json")]
    if not kept:
        raise UserError(
            f"{run}: has no snapshots of averages so far; one is saved every {config.training.keep_every} iterations "
            "(training.keep_every) and at the end"
        )
    at = kept[-1] if at is None else at
    if at not in kept:
        shown = ", ".join(map(str, kept[:8])) + (f", …, {kept[-1]}" if len(kept) > 8 else "")
        raise UserError(f"--at: {run} has no snapshot of iteration {at}; kept are {shown}")
    return [iteration for iteration in kept if iteration <= at], at


def _read_snapshot(
    run: Path, config: RunConfig, iteration: int
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, Any], str]:
    """Read the averages of a snapshot by name, its description, and the file's SHA-256.

    Raises:
        UserError: missing, damaged, or of another run.
    """
    path = snapshot(run, iteration)
    manifest = read_record(Manifest, path.with_suffix(".json"), "snapshot's manifest")
    if path.exists() and manifest["sha256"] != sha256(path):
        raise UserError(f"{path}: its bytes are not those that were written (SHA-256); restore it, or {DO_WITHOUT}")
    tensors, description = read_tensors(path, FORMAT)
    validate(SnapshotRecord, description, str(path))
    if not iteration == manifest["iteration"] == description["iteration"]:
        raise UserError(f"{path}: is of iteration {description['iteration']}, not of the one in its name; {DO_WITHOUT}")
    changed = state_changes(validate(RunConfig, description["run"], str(path)), config)
    if changed:
        raise UserError(f"{path}: is of another run ({'; '.join(changed.values())}); {DO_WITHOUT}")
    averages = {name: tensors_under(tensors, f"{name}/") for name in config.training.power_averages}
    for state in averages.values():
        check_generator(path, config.model, state)
    return averages, description, manifest["sha256"]
