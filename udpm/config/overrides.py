"""Other values of single keys, named by dotted keys: those of a sweep's points, and those of ``--set``."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

from pydantic import BaseModel

from udpm.config.validation import Model, parse_yaml, sections_in, validate
from udpm.core.errors import UserError

OPTION = "--set"
ELEMENT = re.compile(r"(?P<key>[^\[\]]+)\[(?P<level>\d+)\]")
WHOLE = {"DatasetConfig": "a data set", "RunConfig": "a run"}
"""Names in errors of what has the keys, by model; the others are of an experiment."""
LIKE = 0.75
"""Smallest similarity of a mistyped name and the one to suggest."""
SAME_SECTION = 0.85
"""Smallest similarity of a key in a mistyped section and the one to suggest."""
SECTIONS = ("process", "generator", "discriminator", "losses", "training", "sampling", "scoring", "latents")
ELSEWHERE = {
    "Experiment": {
        "seed": "--seed sets it",
        "dataset": "`udpm resolve --dataset NAME` takes the keys of a data set",
        "dataset_name": "its key is dataset",
        "experiment": "`udpm train` takes it",
    },
    "RunConfig": {
        part: f"`udpm resolve EXPERIMENT --part {part}` takes it" for part in ("sampling", "scoring", "latents")
    }
    | dict.fromkeys(
        ("description", "diagnosis", "extends", "resources", "selection"), "it is of the experiment, not of its runs"
    )
    | {"seeds": "its key is seed"},
    "DatasetConfig": dict.fromkeys(SECTIONS, "`udpm resolve EXPERIMENT` takes it, without --dataset"),
}
"""Hints on first names of keys that another model has, by model."""


EARLIER_KEYS = {
    "training.tensorboard": "TensorBoard is one of training.trackers, a list",
    "losses.feature_matching_weight": "it gained nothing, and was removed (docs/recipe.md)",
}
"""Hints on keys that earlier versions had."""


def read_settings(model: type[BaseModel], texts: Sequence[str]) -> dict[str, Any]:
    """Parse the values of ``--set``, each KEY=VALUE with a value in YAML.

    Returns:
        Values by dotted key.

    Raises:
        UserError: no KEY=VALUE, not YAML, an empty section, not a key of the model, or a key twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not key or not equals:
            raise UserError(f"{OPTION}: {text!r} is not KEY=VALUE, such as training.batch=32")
        given = flatten(model, {key: parse_yaml(value, f"{OPTION}: {key}")}, OPTION)
        if not given:
            raise UserError(
                f"{OPTION}: {key}: an empty section changes nothing; give a key in it, such as {key}.KEY=VALUE"
            )
        if twice := found.keys() & given.keys():
            raise UserError(f"{OPTION}: {min(twice)}: duplicate key")
        found |= given
    return found


def without_effect(
    resolve: Callable[[Sequence[str]], BaseModel], settings: Sequence[str], resolved: BaseModel
) -> list[str]:
    """Return the settings, each KEY=VALUE, without which the result is the same.

    Args:
        resolve: makes the result of settings.
        resolved: the result of all of them.
    """
    found = []
    for index, text in enumerate(settings):
        # The others may be invalid without this one.
        with suppress(UserError):
            if resolve([*settings[:index], *settings[index + 1 :]]) == resolved:
                found.append(text)
    return found


def override(model: type[Model], values: dict[str, Any], changes: Mapping[str, Any], where: str) -> Model:
    """Validate values, and then with other values of some keys, so that an error names the file or the option.

    Args:
        changes: values by dotted key, from `read_settings`.
        where: names the file in errors.

    Raises:
        UserError: invalid, without or with the changes.
    """
    config = validate(model, values, where)
    if not changes:
        return config
    where = f"{where}, with {OPTION}"
    return validate(model, changed(values, changes, where), where)


def flatten(model: type[BaseModel], values: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Flatten dotted and nested keys to values by dotted key, checking that each is a key of the model.

    Raises:
        UserError: an unknown key, or a key twice.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        dotted = f"{prefix}{key}"
        _check_key(model, dotted, where)
        inner = flatten(model, value, where, f"{dotted}.") if isinstance(value, dict) else {dotted: value}
        twice = found.keys() & inner.keys()
        if twice:
            raise UserError(f"{where}: {min(twice)}: duplicate key")
        found |= inner
    return found


def _check_key(model: type[BaseModel], dotted: str, where: str) -> None:
    parents, last, _ = split_key(dotted)
    key, known = ".".join([*parents, last]), _keys(model)
    if key in known and key != "extends":
        return
    hint = EARLIER_KEYS.get(key)
    if hint is None and where == OPTION:
        hint = ELSEWHERE[model.__name__].get(dotted.partition(".")[0])
    if hint is None:
        near = _near(parents, last, known)
        hint = f"did you mean {near}?" if near else "`udpm resolve` prints the keys"
    raise UserError(f"{where}: {dotted}: not a key of {WHOLE.get(model.__name__, 'an experiment')}; {hint}")


def _near(parents: list[str], last: str, known: list[str]) -> str | None:
    """Return the key that was probably meant: of the same section, or else of another; several for a bare name."""
    section = "".join(f"{parent}." for parent in parents)
    ends: dict[str, list[str]] = {}
    for key in known:
        ends.setdefault(key.rpartition(".")[2], []).append(key)
    if last not in ends:
        siblings = [end for end in ends if f"{section}{end}" in known]
        if near := difflib.get_close_matches(last, siblings, n=1, cutoff=LIKE):
            return f"{section}{near[0]}"
    near = [last] if last in ends else difflib.get_close_matches(last, ends, n=1, cutoff=LIKE)
    meant = ends[near[0]] if near else []
    if len(meant) > 1 and parents:
        meant = difflib.get_close_matches(f"{section}{near[0]}", meant, n=1, cutoff=SAME_SECTION)
    return " or ".join(meant) or None


@cache
def _keys(model: type[BaseModel]) -> list[str]:
    return list(_keys_of(model, ""))


def _keys_of(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        for section in sections_in(field.annotation):
            yield from _keys_of(section, f"{prefix}{name}.")


def split_key(dotted: str) -> tuple[list[str], str, int | None]:
    """Split a dotted key into the names of its sections, its last name, and the level in brackets, or None."""
    element = ELEMENT.fullmatch(dotted)
    *parents, last = (element["key"] if element else dotted).split(".")
    return parents, last, int(element["level"]) if element else None


def changed(base: dict[str, Any], changes: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return values with changes by dotted key: whole lists first, then single levels.

    Raises:
        UserError: a level of a key that is not a list, or one that does not exist.
    """
    values = copy.deepcopy(base)
    for dotted, value in sorted(changes.items(), key=lambda item: split_key(item[0])[2] is not None):
        parents, last, level = split_key(dotted)
        section = values
        for parent in parents:
            if not isinstance(section.get(parent), dict):
                section[parent] = {}
            section = section[parent]
        section[last] = value if level is None else _with_level(section.get(last), level, value, f"{where}: {dotted}")
    return values


def _with_level(values: Any, level: int, value: Any, where: str) -> list[Any]:
    if not isinstance(values, list):
        raise UserError(f"{where}: not a list, but {values!r}; give the whole list")
    if not 1 <= level <= len(values):
        raise UserError(f"{where}: no such level; levels are 1 to {len(values)}")
    return [*values[: level - 1], value, *values[level:]]
