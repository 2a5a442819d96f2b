"""Strict configuration: YAML of bounded size to plain values to validated models, with one line per mistake."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, core_schema
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from udpm.config.shipped import shipped_configs
from udpm.core.errors import UserError
from udpm.core.reading import INTEGERS, NO_TEXT, read_json, read_text

YAML_BYTES = 2**20
YAML_DEPTH = 32
YAML_VALUES = 20_000
"""Limit on values; an alias counts as all values of its anchor."""

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {
    # As in YAML 1.1, but 0123 is text, not 83, and so is 1:30, not 90. 1e-4 is a number, as in YAML 1.2.
    "int": re.compile(r"[-+]?(0|[1-9][0-9_]*|0b[01_]+|0o[0-7_]+|0x[0-9a-fA-F_]+)$"),
    "float": re.compile(
        r"([-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """Safe YAML without dates and without tags that build anything but plain values."""

    yaml_implicit_resolvers = {
        first: [(tag, form) for tag, form in found if tag not in {f"{_TAG}{kind}" for kind in (*_NUMBERS, "timestamp")}]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    yaml_constructors = {
        tag: build
        for tag, build in yaml.SafeLoader.yaml_constructors.items()
        if tag in {None, *(f"{_TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map"))}
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._values = 0
        self._weights: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        alias, mark, before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark, self._values
        self._depth += 1
        if self._depth > YAML_DEPTH:
            raise ComposerError(None, None, f"nested more than {YAML_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if alias and node not in self._weights:
            raise ComposerError(None, None, "an alias refers to a node that contains it", mark)
        self._values += self._weights[node] if alias else 1
        self._weights.setdefault(node, self._values - before)
        if self._values > YAML_VALUES:
            raise ComposerError(None, None, f"more than {YAML_VALUES} values", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError):
            # Tagged or matched as a number, but not one.
            kind = node.tag.removeprefix(_TAG)
            reason = f"{str(node.value)[:40]!r} is not of type {kind}"
            raise ConstructorError(None, None, reason, node.start_mark) from None
        if isinstance(value, int) and value not in INTEGERS:
            raise ConstructorError(None, None, "integer does not fit in 64 bits", node.start_mark)
        if isinstance(value, str) and (found := NO_TEXT.search(value)):
            raise ConstructorError(None, None, f"text contains the character U+{ord(found[0]):04X}", node.start_mark)
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, "expected 'key: value' lines", node.start_mark)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == f"{_TAG}merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise ConstructorError(None, None, "a list or mapping cannot be a key", key_node.start_mark)
            if key in seen:
                raise ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


for _kind, _first in (("int", "-+0123456789"), ("float", "-+.0123456789")):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _NUMBERS[_kind], list(_first))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: file missing, not YAML, larger or deeper than the limits, or not a mapping.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file{_nearest_file(path)}")
    value = parse_yaml(read_text(path, "configuration", YAML_BYTES), str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found {type(value).__name__}")
    return value


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML of any kind. A UserError, if it is none or exceeds the limits, begins with `where`."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}{line}") from None


def list_configs(folder: str | Path) -> list[str]:
    """List the names (without .yaml) of the configuration files in a folder and of the shipped ones, sorted."""
    folders = (Path(folder), shipped_configs(Path(folder).name))
    return sorted({path.stem for each in folders for path in each.glob("*.yaml")})


def _nearest_file(path: Path) -> str:
    names = {name.lower(): name for name in list_configs(path.parent)}
    near = difflib.get_close_matches(path.stem.lower().removesuffix(".yaml"), names, n=1)
    if near:
        return f"; did you mean {names[near[0]]}?"
    return f"; found: {', '.join(names.values())}" if names else ""


Model = TypeVar("Model", bound=BaseModel)
SHORT = reprlib.Repr()
SHORT.maxlist, SHORT.maxstring, SHORT.maxlong, SHORT.maxlevel = 16, 120, 40, 3
"""Shortens values in errors; aliases can make a small file's value endless."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
"""Names of configurations, which become names of files and folders."""
SHOWN = 10
"""Largest number of mistakes to report for a file."""


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Validate `values`; every error becomes one line with the file, the key and what is expected.

    Raises:
        UserError: invalid; it lists all mistakes, at most ten.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(*(f"{where}: {line}" for line in _mistakes(model, error.errors(include_url=False)))) from None


def read_record(
    model: type[BaseModel],
    path: str | os.PathLike,
    what: str,
    sealed: tuple[str, ...] | None = None,
    remedy: str = "",
    *,
    fill: bool = False,
) -> dict[str, Any]:
    """Read a record of JSON and check its format, its keys and its digest.

    Args:
        model: required content; its key `format` says which one is expected (`Exactly`).
        what: what the file should be, for errors ("score").
        sealed: keys that its digest covers; None: all.
        remedy: what to do about another format, for the error.
        fill: add the model's defaults where a key is missing, at every depth.

    Returns:
        The record as read, including keys that the model does not have.

    Raises:
        UserError: missing, unreadable, of another format, with an invalid value, or changed since it was written.
    """
    # Numpy takes a tenth of a second to load, which commands that only read a configuration do without.
    from udpm.core.arrays import check_seal

    record = read_json(path, what)
    (expected,) = (part.value for part in model.model_fields["format"].metadata if isinstance(part, Exactly))
    if record.get("format") != expected:
        found = f"format is {record.get('format')!r}, expected {expected!r}"
        raise UserError(f"{path}: {found}; {remedy}" if remedy else f"{path}: {found}")
    known = validate(model, record, str(path))
    check_seal(path, record, sealed)
    return _filled(record, known.model_dump()) if fill else record


def _filled(values: Any, defaults: Any) -> Any:
    if isinstance(values, dict) and isinstance(defaults, dict):
        common = {key: _filled(values[key], defaults[key]) for key in values if key in defaults}
        return values | defaults | common
    if isinstance(values, list) and isinstance(defaults, list):
        return [_filled(value, default) for value, default in zip(values, defaults, strict=True)]
    return values


def _mistakes(model: type[BaseModel], problems: Sequence[Mapping[str, Any]]) -> list[str]:
    """Format one line per wrong key, in order, and count those after the tenth.

    For a value of a union type, pydantic reports one problem per branch; a problem with a part of the value is more
    informative than those with the whole.
    """
    by_key: dict[str, list[Mapping[str, Any]]] = {}
    for problem in problems:
        by_key.setdefault(_key(problem), []).append(problem)
    wholes = {key[: found.start()] for key in by_key for found in re.finditer(r"[\[.]", key)}
    keys = [key for key in by_key if key not in wholes or not key]
    lines = [line for key in keys[:SHOWN] for line in _explain(model, key, by_key[key])]
    lines = list(dict.fromkeys(lines))
    left = len(keys[SHOWN:]) + len(lines[SHOWN:])
    return [*lines[:SHOWN], *([f"and {left} more"] if left else [])]


def _location(problem: Mapping[str, Any]) -> list[Any]:
    # An unknown key may have any name, even that of a union tag.
    *others, last = problem["loc"] or [None]
    own = problem["type"] == "extra_forbidden"
    kept = [part for part in others if not _is_union_tag(part)]
    return [*kept, last] if problem["loc"] and (own or not _is_union_tag(last)) else kept


def _key(problem: Mapping[str, Any]) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _location(problem)).lstrip(".")


def _explain(model: type[BaseModel], key: str, problems: list[Mapping[str, Any]]) -> list[str]:
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


def _wanted(problem: Mapping[str, Any]) -> str:
    if problem["type"] in ("model_type", "model_attributes_type"):
        return "input should be a section, its keys indented below it"
    message = problem["msg"]
    return f"{message[0].lower()}{message[1:]}"


def _is_union_tag(part: Any) -> bool:
    # pydantic adds the tried branch of "number or list" to the location; none of our keys contains brackets, is the
    # name of a type, or begins with an underscore like a private class.
    return isinstance(part, str) and (
        "[" in part or part.startswith("_") or part in {"float", "int", "str", "list", "dict", "constrained-float"}
    )


def _known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    for part in location:
        # User-defined names in a mapping are not fields.
        if part in model.model_fields:
            model = next(sections_in(model.model_fields[part].annotation), model)
    return sorted(model.model_fields)


def sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the models in an annotation."""
    return (found for found in types_in(annotation) if issubclass(found, BaseModel))


def types_in(annotation: Any) -> Iterator[type]:
    """Yield the classes in an annotation."""
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from types_in(argument)


PositiveInt = Annotated[int, Field(gt=0)]
Threads = Annotated[int, Field(gt=0, le=1024)]
Count = Annotated[int, Field(gt=0, le=10_000_000)]
Classes = Annotated[int, Field(ge=0, le=100_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
SplitRanges = dict[str, Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)]]
"""First image of each split, and the one after its last."""
Alpha = Annotated[float, Field(gt=0, le=1)]

_NOT_IN_A_PATH = re.compile(r"[\n\0]")
# Snakemake would read them as wildcards.
_BRACES = re.compile(r"[{}]")


def _a_path(path: str) -> str:
    if not path.strip():
        raise PydanticCustomError("path", "must name a path")
    if found := _NOT_IN_A_PATH.search(path):
        raise PydanticCustomError("path", "a path must not contain {found}", {"found": repr(found[0])})
    return path


def _a_workflow_path(path: str) -> str:
    if found := _BRACES.search(path):
        raise PydanticCustomError(
            "path", "a path must not contain {found}, which Snakemake reads as a wildcard", {"found": found[0]}
        )
    return path


AnyPath = Annotated[str, AfterValidator(_a_path)]
"""A path."""
WorkflowPath = Annotated[AnyPath, AfterValidator(_a_workflow_path)]
"""A path that may be an input or output of a rule."""

Check = TypeVar("Check", bound=Callable[[Any], Any])


def check(function: Check) -> Check:
    """Mark a method of a section as a check across keys, which raises ValueError("key: mistake")."""
    function.is_check = True  # type: ignore[attr-defined]
    return function


class Section(BaseModel):
    """A strict, frozen section: unknown keys and wrong types are refused; field docstrings become descriptions."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _keys_agree(self) -> Section:
        # Run all checks instead of stopping at the first failure, to report all mistakes of a file together.
        problems = []
        for name, method in vars(type(self)).items():
            if getattr(method, "is_check", False):
                try:
                    getattr(self, name)()
                except ValueError as problem:
                    problems.append(str(problem))
        if problems:
            raise ValueError("\n".join(dict.fromkeys(problems)))
        return self


@dataclass(frozen=True)
class Exactly:
    """Annotate a text that must equal a constant. Type checkers refuse a constant's name in ``Literal``."""

    value: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.literal_schema([self.value])


class Record(BaseModel):
    """Required content of a record that this program wrote: strict types, finite numbers; other keys are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True, frozen=True, allow_inf_nan=False)


def is_valid(model: type[Record], values: Any) -> bool:
    """Return whether values are a valid record of this model."""
    try:
        model.model_validate(values)
    except ValidationError:
        return False
    return True
