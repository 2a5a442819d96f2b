"""YAML files of bounded size, depth and number of values; nothing but plain values is built from them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from udpm.core.errors import UserError
from udpm.core.reading import INTEGERS, NO_TEXT, read_text

YAML_BYTES = 2**20
YAML_DEPTH = 32
YAML_VALUES = 20_000
"""An alias counts as all that it stands for."""

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
    """Safe YAML without dates, and without the tags that build anything but plain values."""

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

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node:
        alias, mark, before = self.check_event(yaml.AliasEvent), self.peek_event().start_mark, self._values
        self._depth += 1
        if self._depth > YAML_DEPTH:
            raise ComposerError(None, None, f"it is nested more than {YAML_DEPTH} deep", mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if alias and node not in self._weights:
            raise ComposerError(None, None, "an alias stands inside of what it is for", mark)
        self._values += self._weights[node] if alias else 1
        self._weights.setdefault(node, self._values - before)
        if self._values > YAML_VALUES:
            raise ComposerError(None, None, f"it holds more than {YAML_VALUES} values", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            value = super().construct_object(node, deep)
        except (ValueError, KeyError, IndexError, OverflowError):
            # What is tagged as a number, or read as one, and is none.
            kind = node.tag.removeprefix(_TAG)
            raise ConstructorError(None, None, f"{str(node.value)[:40]!r} is no {kind}", node.start_mark) from None
        if isinstance(value, int) and value not in INTEGERS:
            raise ConstructorError(None, None, "an integer that 64 bits do not hold", node.start_mark)
        if isinstance(value, str) and (found := NO_TEXT.search(value)):
            raise ConstructorError(None, None, f"a text holds the character U+{ord(found[0]):04X}", node.start_mark)
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
                raise ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


for _kind, _first in (("int", "-+0123456789"), ("float", "-+.0123456789")):
    _Loader.add_implicit_resolver(f"{_TAG}{_kind}", _NUMBERS[_kind], list(_first))


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: missing, not YAML, larger or deeper than the limits, or not a mapping.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file{_nearest_file(path)}")
    text = read_text(path, "configuration", YAML_BYTES)
    try:
        value = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{path}: not valid YAML: {getattr(error, 'problem', None) or error}{line}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found {type(value).__name__}")
    return value


def names_in(folder: str | Path) -> list[str]:
    """Names (without .yaml) of the configuration files in a folder, sorted."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def _nearest_file(path: Path) -> str:
    names = names_in(path.parent)
    near = difflib.get_close_matches(path.stem, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are: {', '.join(names)}" if names else ""
