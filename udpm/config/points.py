"""From a sweep to its points: named experiments, each validated as any other."""

from __future__ import annotations

import copy
import difflib
import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pydantic import BaseModel

from udpm.config.experiment import Experiment, RunConfig
from udpm.config.sweep import Sweep
from udpm.config.validation import NAME, sections_in, validate
from udpm.core.errors import UserError

BUDGET = "budget"
"""Key of a point that is none of an experiment's."""
Run = tuple[str, int]
"""Experiment and training seed."""
ELEMENT = re.compile(r"(?P<key>[^\[\]]+)\[(?P<level>\d+)\]")


@dataclass(frozen=True)
class Point:
    """One point of a sweep.

    Attributes:
        sweep: name of the sweep.
        name: of the point.
        changes: of the base, by dotted key; without the budget.
        budget: what makes its runs short, by dotted key.
        grid: the grid it belongs to, or none.
        labels: its values' names on that grid's axes, in their order.
    """

    sweep: str
    name: str
    changes: dict[str, Any]
    budget: dict[str, Any]
    grid: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def experiment(self) -> str:
        """Its name as an experiment: that of its folders."""
        return f"{self.sweep}.{self.name}"

    @property
    def changes_text(self) -> str:
        """Its changes of the base, in a line, but for its seeds."""
        return "; ".join(f"{key} = {json.dumps(value)}" for key, value in self.changes.items() if key != "seeds")


@dataclass(frozen=True)
class Resolved:
    """A point whose experiment was built and is valid.

    Attributes:
        point: the point.
        experiment: what runs.
        overrides: what an experiment that extends the base must say to be this point at the base's length.
    """

    point: Point
    experiment: Experiment
    overrides: dict[str, Any]


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep with all its points.

    Attributes:
        name: of the sweep.
        sweep: its file.
        base: the base experiment.
        points: by name as an experiment.
        runs: of all points and seeds.
    """

    name: str
    sweep: Sweep
    base: Experiment
    points: dict[str, Resolved]
    runs: dict[Run, RunConfig]

    @property
    def scored(self) -> dict[str, str]:
        """By point, the experiment whose scoring and reference it has: the base, unless it says something else."""
        wanted = (self.base.dataset, self.base.scoring)
        return {
            name: self.sweep.base if (point.experiment.dataset, point.experiment.scoring) == wanted else name
            for name, point in self.points.items()
        }

    def trained(self, missing: Callable[[Run], int] | None = None) -> dict[Run, str]:
        """The point whose run each uses: those that differ only in what comes after training share one.

        Of several, one that has this very run already, else the first: so a point that is added before them changes
        nothing.

        Args:
            missing: returns 0 for a run that has begun, more for others; the first of the least is taken.
        """
        alike: dict[str, list[Run]] = {}
        for key, run in self.runs.items():
            alike.setdefault(run.model_copy(update={"experiment": ""}).model_dump_json(), []).append(key)
        owners: dict[Run, str] = {}
        for keys in alike.values():
            first = keys[0]
            # The disk is asked only where there is a choice.
            if missing is not None and len(keys) > 1:
                first = min(keys, key=missing)
            owners |= dict.fromkeys(keys, first[0])
        return owners


def points_of(name: str, sweep: Sweep, where: str) -> dict[str, Point]:
    """All points by name: explicit ones, then those of the grids.

    Args:
        name: of the sweep.
        sweep: the sweep.
        where: names its file in errors.

    Raises:
        UserError: a name stands for two points, or a key is none of an experiment's.
    """
    budget, found = _flat(sweep.budget, f"{where}: budget"), {}
    for point in itertools.chain(_explicit(name, sweep, where), _of_grids(name, sweep, where)):
        if point.name in found:
            kind = f"grids.{point.grid}"
            raise UserError(f"{where}: point {point.name}: is there twice, the second time in {kind}; rename one")
        for key in point.changes:
            if key in budget:
                raise UserError(
                    f"{where}: point {point.name}: {key}: is part of the sweep's budget; give the point its own value "
                    "under budget:, or take the key out of the sweep's"
                )
        found[point.name] = replace(point, budget=budget | point.budget)
    return found


def resolve_point(point: Point, base: dict[str, Any], seeds: list[int] | None, where: str) -> Resolved:
    """Build a point's experiment, and see that it is valid at the base's length, too.

    Args:
        point: the point.
        base: values of the base experiment.
        seeds: of the sweep; None for the base's.
        where: names the sweep's file in errors.

    Raises:
        UserError: an invalid value.
    """
    where = f"{where}: point {point.name}"
    described = {"extends": None, "description": f"point {point.name} of sweep {point.sweep}"}
    own = base | described | ({} if seeds is None else {"seeds": seeds})
    experiment = validate(Experiment, _changed(own, point.budget | point.changes, where), where)
    whole = _changed(base, point.changes, where)
    validate(Experiment, whole, f"{where}, without its budget")
    return Resolved(point, experiment, _overrides(whole, point))


def check_differ(points: list[Resolved], where: str) -> None:
    """No configuration may stand under two names.

    Raises:
        UserError: one does.
    """
    seen: dict[str, str] = {}
    for resolved in points:
        content = resolved.experiment.model_dump_json(exclude={"description", "seeds", "latents", "resources"})
        name = resolved.point.name
        if content in seen:
            raise UserError(f"{where}: point {name}: is the same as point {seen[content]}; leave one of them out")
        seen[content] = name


def _explicit(name: str, sweep: Sweep, where: str) -> Iterator[Point]:
    for point, values in sweep.points.items():
        own = dict(values)
        at = f"{where}: point {point}"
        budget = own.pop(BUDGET, None) or {}
        if not isinstance(budget, dict):
            raise UserError(f"{at}: {BUDGET}: must be keys and values, got {budget!r}")
        yield Point(name, point, _flat(own, at), _flat(budget, f"{at}: {BUDGET}"))


def _of_grids(name: str, sweep: Sweep, where: str) -> Iterator[Point]:
    for grid, axes in sweep.grids.items():
        at = f"{where}: grids.{grid}"
        # Every value's keys once, not again at every point.
        changes = {
            axis: [_flat(values.changes(index), f"{at}.{axis}") for index in range(len(values.labels))]
            for axis, values in axes.items()
        }
        for indices in itertools.product(*(range(len(values.labels)) for values in axes.values())):
            labels = tuple(values.labels[index] for values, index in zip(axes.values(), indices, strict=True))
            merged: dict[str, Any] = {}
            for axis, index in zip(axes, indices, strict=True):
                twice = merged.keys() & changes[axis][index].keys()
                if twice:
                    raise UserError(f"{at}.{axis}: {min(twice)}: another axis of the grid changes it, too")
                merged |= changes[axis][index]
            # Made of values, not of their numbers: a point keeps its name when a value is added.
            parts = [f"{axis}-{label}" for axis, label in zip(axes, labels, strict=True)]
            yield Point(name, "_".join(parts), merged, {}, grid, labels)


def _flat(values: dict[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Values by dotted key, from any mixture of dotted and nested keys, which are looked up."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        _check_key(dotted, where)
        inner = _flat(value, where, f"{dotted}.") if isinstance(value, dict) else {dotted: value}
        twice = found.keys() & inner.keys()
        if twice:
            raise UserError(f"{where}: {min(twice)}: is there twice")
        found |= inner
    return found


def _check_key(dotted: str, where: str) -> None:
    element = ELEMENT.fullmatch(dotted)
    key, known = element["key"] if element else dotted, _keys()
    if key in known and key != "extends":
        return
    last = key.rpartition(".")[2]
    ends = {known_key.rpartition(".")[2]: known_key for known_key in reversed(known)}
    near = [ends[last]] if last in ends else difflib.get_close_matches(key, known, n=1)
    near = near or [ends[end] for end in difflib.get_close_matches(last, ends, n=1)]
    hint = f"did you mean {near[0]}?" if near else "`udpm resolve` prints all keys of an experiment"
    raise UserError(f"{where}: {dotted}: is no key of an experiment; {hint}")


@cache
def _keys() -> list[str]:
    return list(_keys_of(Experiment, ""))


def _keys_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for section in sections_in(field.annotation):
            yield from _keys_of(section, f"{prefix}{name}.")


def _changed(base: dict[str, Any], changes: dict[str, Any], where: str) -> dict[str, Any]:
    """The base's values with changes by dotted key; those of one level after those of whole lists."""
    values = copy.deepcopy(base)
    for dotted, value in sorted(changes.items(), key=lambda item: ELEMENT.fullmatch(item[0]) is not None):
        element = ELEMENT.fullmatch(dotted)
        *parents, last = (element["key"] if element else dotted).split(".")
        section = values
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        if element:
            value = _with_level(section.get(last), int(element["level"]), value, f"{where}: {dotted}")
        section[last] = value
    return values


def _with_level(values: Any, level: int, value: Any, where: str) -> list[Any]:
    if not isinstance(values, list):
        raise UserError(f"{where}: the base has no list there, but {values!r}; give the whole list")
    if not 1 <= level <= len(values):
        raise UserError(f"{where}: has levels 1 to {len(values)}")
    return [*values[: level - 1], value, *values[level:]]


def _overrides(whole: dict[str, Any], point: Point) -> dict[str, Any]:
    """The point's changes as an experiment's file holds them: nested, lists whole, without seeds."""
    found: dict[str, Any] = {}
    for dotted in point.changes:
        element = ELEMENT.fullmatch(dotted)
        *parents, last = (element["key"] if element else dotted).split(".")
        source, section = whole, found
        for parent in parents:
            source, section = source[parent], section.setdefault(parent, {})
        section[last] = source[last]
    return {key: value for key, value in found.items() if key not in ("seeds", "description")}


def split_name(experiment: str) -> tuple[str, str] | None:
    """Sweep and point of an experiment's name, if it has the form of a point's."""
    sweep, dot, point = experiment.partition(".")
    return (sweep, point) if dot and NAME.fullmatch(point) else None
