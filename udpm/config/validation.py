"""From values to a validated model; a mistake becomes one line."""

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


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Validate `values`; every error becomes one line that names the file, the key and what would be right.

    Raises:
        UserError: invalid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors(include_url=False)]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{where}: {problems[0]}{more}") from None


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    unknown = problem["type"] == "extra_forbidden"
    # An unknown key may be called anything.
    own = problem["loc"][-1:] if unknown else ()
    location = [part for part in problem["loc"][: len(problem["loc"]) - len(own)] if not _is_union_tag(part)] + [*own]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if unknown:
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{path}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}.{message}" if path else message
    got = problem["input"]
    shown = f", got {SHORT.repr(got)}" if isinstance(got, (str, int, float, bool, list)) or got is None else ""
    return f"{path}: " * bool(path) + f"{message[0].lower()}{message[1:]}{shown}"


def _is_union_tag(part: Any) -> bool:
    # pydantic adds the tried branch of "number or list" to the location; no key of ours contains brackets or is a type.
    return isinstance(part, str) and (
        "[" in part or part in {"float", "int", "str", "list", "dict", "constrained-float"}
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
