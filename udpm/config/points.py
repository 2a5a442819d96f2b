"""Expand a sweep into its points: named experiments, each validated like any other."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from udpm.config.experiment import Experiment, RunConfig
from udpm.config.overrides import changed, flatten, split_key
from udpm.config.study import Sweep
from udpm.config.validation import NAME, validate
from udpm.core.errors import UserError

BUDGET = "budget"
"""Key of a point that is not a key of an experiment."""
Run = tuple[str, int]
"""Experiment and training seed."""


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        sweep: name of the sweep.
        name: name of the point.
        changes: changed values of the base by dotted key, without the budget.
        budget: values that make its runs short, by dotted key.
        grid: name of its grid, or None.
        labels: names of its values, one for each axis of the grid.
    """

    sweep: str
    name: str
    changes: dict[str, Any]
    budget: dict[str, Any]
    grid: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        """Name as an experiment, also used for its folders."""
        return f"{self.sweep}.{self.name}"

    @property
    def changes_text(self) -> str:
        """Changes to the base as one line, without seeds."""
        return "; ".join(f"{key} = {json.dumps(value)}" for key, value in self.changes.items() if key != "seeds")


@dataclass(frozen=True)
class Resolved:
    """A point with its validated experiment, which includes the budget.

    An experiment that extends the base needs the values in `overrides` to be this point without the budget.
    """

    point: Point
    experiment: Experiment
    overrides: dict[str, Any]


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep with all its points, by experiment name, and the runs of all points and seeds."""

    name: str
    sweep: Sweep
    base: Experiment
    points: dict[str, Resolved]
    runs: dict[Run, RunConfig]

    @property
    def scored(self) -> dict[str, str]:
        """Experiment whose reference scores a point, by point: the base, unless the point's data or scoring differs."""
        wanted = (self.base.dataset, self.base.scoring)
        return {
            name: self.sweep.base if (point.experiment.dataset, point.experiment.scoring) == wanted else name
            for name, point in self.points.items()
        }

    def trained(self, missing: Callable[[Run], int] | None = None) -> dict[Run, str]:
        """Map every run to the point that trains it; points that differ only after training share a run.

        Prefer a point whose run already exists, else the first: adding a point before them then changes nothing.
        `missing` returns 0 for a run that has begun, more for others; the first minimum is used.
        """
        alike: dict[str, list[Run]] = {}
        for key, run in self.runs.items():
            alike.setdefault(run.model_copy(update={"experiment": ""}).model_dump_json(), []).append(key)
        owners: dict[Run, str] = {}
        for keys in alike.values():
            first = keys[0]
            # Only access the disk if there is a choice.
            if missing is not None and len(keys) > 1:
                first = min(keys, key=missing)
            owners |= dict.fromkeys(keys, first[0])
        return owners


def points_of(name: str, sweep: Sweep, where: str) -> dict[str, Point]:
    """Return all points by name: explicit ones, then those of the grids.

    Raises:
        UserError: a duplicate name, or an unknown key.
    """
    budget, found = flatten(Experiment, sweep.budget, f"{where}: budget"), {}
    for point in itertools.chain(_explicit(name, sweep, where), _of_grids(name, sweep, where)):
        if point.name in found:
            raise UserError(f"{where}: point {point.name}: duplicate, also in grids.{point.grid}; rename one")
        for key in point.changes:
            if key in budget:
                raise UserError(
                    f"{where}: point {point.name}: {key}: also in the sweep's budget; move the point's value under its "
                    "budget:, or remove the key from the sweep's budget"
                )
        found[point.name] = replace(point, budget=budget | point.budget)
    return found


def resolve_point(point: Point, base: dict[str, Any], seeds: list[int] | None, where: str) -> Resolved:
    """Build a point's experiment from the base's values, and check that it is also valid at the base's length.

    Raises:
        UserError: an invalid value.
    """
    where = f"{where}: point {point.name}"
    described = {"extends": None, "description": f"point {point.name} of sweep {point.sweep}"}
    own = base | described | ({} if seeds is None else {"seeds": seeds})
    experiment = validate(Experiment, changed(own, point.budget | point.changes, where), where)
    whole = changed(base, point.changes, where)
    validate(Experiment, whole, f"{where}, without its budget")
    return Resolved(point, experiment, _overrides(whole, point))


def check_differ(points: list[Resolved], where: str) -> None:
    """Check that no two points have the same configuration.

    Raises:
        UserError: two points do.
    """
    seen: dict[str, str] = {}
    for resolved in points:
        content = resolved.experiment.model_dump_json(exclude={"description", "seeds", "latents", "resources"})
        name = resolved.point.name
        if content in seen:
            raise UserError(f"{where}: point {name}: same configuration as point {seen[content]}; leave one out")
        seen[content] = name


def _explicit(name: str, sweep: Sweep, where: str) -> Iterator[Point]:
    for point, values in sweep.points.items():
        own = dict(values)
        at = f"{where}: point {point}"
        budget = own.pop(BUDGET, None) or {}
        if not isinstance(budget, dict):
            raise UserError(f"{at}: {BUDGET}: must be keys and values, got {budget!r}")
        yield Point(name, point, flatten(Experiment, own, at), flatten(Experiment, budget, f"{at}: {BUDGET}"))


def _of_grids(name: str, sweep: Sweep, where: str) -> Iterator[Point]:
    for grid, axes in sweep.grids.items():
        at = f"{where}: grids.{grid}"
        # Flatten every value once, not again at every point.
        changes = {
            axis: [flatten(Experiment, values.changes(index), f"{at}.{axis}") for index in range(len(values.labels))]
            for axis, values in axes.items()
        }
        for indices in itertools.product(*(range(len(values.labels)) for values in axes.values())):
            labels = tuple(values.labels[index] for values, index in zip(axes.values(), indices, strict=True))
            merged: dict[str, Any] = {}
            for axis, index in zip(axes, indices, strict=True):
                twice = merged.keys() & changes[axis][index].keys()
                if twice:
                    raise UserError(f"{at}.{axis}: {min(twice)}: already changed by another axis of the grid")
                merged |= changes[axis][index]
            # Values, not their indices: a point keeps its name when a value is added.
            parts = [f"{axis}-{label}" for axis, label in zip(axes, labels, strict=True)]
            yield Point(name, "_".join(parts), merged, {}, grid, labels)


def _overrides(whole: dict[str, Any], point: Point) -> dict[str, Any]:
    """Return the point's changes as in an experiment's file: nested, with whole lists, without seeds."""
    found: dict[str, Any] = {}
    for dotted in point.changes:
        parents, last, _ = split_key(dotted)
        source, section = whole, found
        for parent in parents:
            source, section = source[parent], section.setdefault(parent, {})
        section[last] = source[last]
    return {key: value for key, value in found.items() if key not in ("seeds", "description")}


def split_name(experiment: str) -> tuple[str, str] | None:
    """Split an experiment's name into sweep and point, if it has the form SWEEP.POINT."""
    sweep, dot, point = experiment.partition(".")
    return (sweep, point) if dot and NAME.fullmatch(point) else None
