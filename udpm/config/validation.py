"""From values to a validated model; each mistake becomes one line."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Iterator
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from udpm.core.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
SHORT = reprlib.Repr()
SHORT.maxlist, SHORT.maxstring, SHORT.maxlong, SHORT.maxlevel = 16, 120, 40, 3
"""How values are shown in errors; aliases can make a small file's value endless."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of configurations: they become names of files and folders."""
SHOWN = 10
"""Mistakes of a file that are told."""


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Validate `values`; every error becomes one line that names the file, the key and what would be right.

    Raises:
        UserError: invalid; its mistakes are all that were found, ten at most.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(*(f"{where}: {line}" for line in _mistakes(model, error.errors(include_url=False)))) from None


def completed(model: type[BaseModel], values: dict[str, Any], where: str) -> dict[str, Any]:
    """Validate `values` and add the model's defaults where a key is missing, at every depth.

    Returns:
        The values as they were read, unknown keys with them; every key of the model is there.

    Raises:
        UserError: as `validate`.
    """
    return _filled(values, validate(model, values, where).model_dump())


def _filled(values: Any, defaults: Any) -> Any:
    if isinstance(values, dict) and isinstance(defaults, dict):
        common = {key: _filled(values[key], defaults[key]) for key in values if key in defaults}
        return values | defaults | common
    if isinstance(values, list) and isinstance(defaults, list):
        return [_filled(value, default) for value, default in zip(values, defaults, strict=True)]
    return values


def _mistakes(model: type[BaseModel], problems: list[dict[str, Any]]) -> list[str]:
    """One line for each key that is wrong, in their order; of more than ten keys, how many more there are.

    Of a value that may be of several kinds, each kind has a problem; the one that is about a part of the value says
    more than those about the whole.
    """
    by_key: dict[str, list[dict[str, Any]]] = {}
    for problem in problems:
        by_key.setdefault(_key(problem), []).append(problem)
    wholes = {key[: found.start()] for key in by_key for found in re.finditer(r"[\[.]", key)}
    keys = [key for key in by_key if key not in wholes or not key]
    lines = [line for key in keys[:SHOWN] for line in _explain(model, key, by_key[key])]
    lines = list(dict.fromkeys(lines))
    left = len(keys[SHOWN:]) + len(lines[SHOWN:])
    return [*lines[:SHOWN], *([f"and {left} more"] if left else [])]


def _location(problem: dict[str, Any]) -> list[Any]:
    # An unknown key may be called anything.
    *others, last = problem["loc"] or [None]
    own = problem["type"] == "extra_forbidden"
    kept = [part for part in others if not _is_union_tag(part)]
    return [*kept, last] if problem["loc"] and (own or not _is_union_tag(last)) else kept


def _key(problem: dict[str, Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _location(problem)).lstrip(".")


def _explain(model: type[BaseModel], key: str, problems: list[dict[str, Any]]) -> list[str]:
    problem = problems[0]
    if problem["type"] == "extra_forbidden":
        location = _location(problem)
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return [f"{key}: unknown key; {hint}"]
    if problem["type"] == "missing":
        return [f"{key}: is missing"]
    if problem["type"] == "value_error":
        lines = problem["msg"].removeprefix("Value error, ").split("\n")
        return [f"{key}.{line}" if key else line for line in lines]
    got = problem["input"]
    shown = f", got {SHORT.repr(got)}" if isinstance(got, (str, int, float, bool, list)) or got is None else ""
    first, *others = dict.fromkeys(_wanted(problem) for problem in problems)
    more = "".join(f" or {other.removeprefix('input should be ')}" for other in others)
    return [f"{key}: " * bool(key) + f"{first}{more}{shown}"]


def _wanted(problem: dict[str, Any]) -> str:
    if problem["type"] in ("model_type", "model_attributes_type"):
        return "input should be a section, its keys indented below it"
    message = problem["msg"]
    return f"{message[0].lower()}{message[1:]}"


def _is_union_tag(part: Any) -> bool:
    # pydantic adds the tried branch of "number or list" to the location; no key of ours contains brackets, is a type,
    # or begins as a private class does.
    return isinstance(part, str) and (
        "[" in part or part.startswith("_") or part in {"float", "int", "str", "list", "dict", "constrained-float"}
    )


def _known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    for part in location:
        # Names that a user gives, in a mapping, are no fields.
        if part in model.model_fields:
            model = next(sections_in(model.model_fields[part].annotation), model)
    return sorted(model.model_fields)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models that an annotation mentions."""
    return (found for found in types_in(annotation) if issubclass(found, BaseModel))


def types_in(annotation: Any) -> Iterator[type]:
    """The classes that an annotation mentions."""
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from types_in(argument)
