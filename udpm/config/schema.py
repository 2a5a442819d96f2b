"""JSON schemas and the key reference of the manual, generated from the models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from udpm.config.dataset import DatasetConfig
from udpm.config.experiment import Experiment
from udpm.config.published_scores import PublishedRuntime, PublishedTable
from udpm.config.study import ClusterConfig, Study, Sweep
from udpm.core.errors import UserError

FILES: dict[str, type[BaseModel]] = {
    "experiment": Experiment,
    "dataset": DatasetConfig,
    "sweep": Sweep,
    "study": Study,
    "cluster": ClusterConfig,
    "published": PublishedTable,
    "runtime": PublishedRuntime,
}
"""Kinds of configuration files and their models."""
MODELS = {model.__name__: model for model in FILES.values()}
DRAFT = "https://json-schema.org/draft/2020-12/schema"

KEYS, FLAGS = "keys", "flags"
"""Names of the generated parts of documents, each between two markers."""


def json_schema(kind: str) -> dict[str, Any]:
    """Return the JSON schema (2020-12) of a kind of configuration file, for editors that complete and check keys.

    All keys of an experiment are optional in it, since a file may inherit any of them by `extends`.
    """
    schema = FILES[kind].model_json_schema()
    if kind == "experiment":
        for section in (schema, *schema.get("$defs", {}).values()):
            section.pop("required", None)
    return {"$schema": DRAFT, **schema}


def is_schema(text: bytes) -> bool:
    """Detect a schema written by any version of this program: its title and most of its keys are those of a model."""
    try:
        schema = json.loads(text)
        model, keys = MODELS[schema["title"]], schema["properties"].keys()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False
    return schema.get("$schema") == DRAFT and 2 * len(keys & model.model_fields.keys()) > len(keys)


def key_reference() -> str:
    """Return markdown tables of every key, one for each section of a file: type, default, meaning."""
    parts = []
    titles = {
        "study": "config.yaml",
        "dataset": "datasets/NAME.yaml",
        "experiment": "experiments/NAME.yaml",
        "sweep": "sweeps/NAME.yaml",
        "cluster": "cluster.yaml",
    }
    for kind, title in titles.items():
        schema = json_schema(kind)
        tables: dict[str, list[str]] = {"": []}
        for row in _rows(schema, schema, ""):
            section, dot, _ = row.split("`")[1].partition(".")
            tables.setdefault(section if dot else "", []).append(row)
        for section, rows in tables.items():
            heading = f"#### {section}" if section else f"### {title}"
            parts.append("\n".join([heading, "", "| key | type | default | meaning |", "|---|---|---|---|", *rows]))
    return "\n\n".join(parts)


def insert(path: Path, document: str, name: str, text: str) -> str:
    """Replace the text between the markers of `name` in a document.

    Raises:
        UserError: the markers are missing.
    """
    begin, end = f"<!-- {name}: made by `udpm schema` -->", f"<!-- /{name} -->"
    before, marker, rest = document.partition(begin)
    _, closing, after = rest.partition(end)
    if not (marker and closing):
        raise UserError(f"{path}: expected the markers {begin} and {end} around the part that `udpm schema` writes")
    return f"{before}{begin}\n\n{text}\n\n{end}{after}"


def _rows(schema: dict[str, Any], whole: dict[str, Any], prefix: str):
    for name, field in schema["properties"].items():
        section = _section(field, whole)
        meaning = " ".join(field.get("description", "").split()).replace("|", "\\|")
        if section is None:
            yield f"| `{prefix}{name}` | {_type(field)} | {_default(field)} | {meaning} |"
        else:
            yield from _rows(section, whole, f"{prefix}{name}.")


def _section(field: dict[str, Any], whole: dict[str, Any]) -> dict[str, Any] | None:
    """Return the schema of a nested section, or None for a plain value."""
    options = [field, *field.get("allOf", []), *field.get("anyOf", []), *field.get("oneOf", [])]
    reference = next((option["$ref"] for option in options if "$ref" in option), None)
    return whole["$defs"][reference.removeprefix("#/$defs/")] if reference else None


def _type(field: dict[str, Any]) -> str:
    if options := field.get("anyOf") or field.get("oneOf"):
        return " or ".join(_type(option) for option in options if option.get("type") != "null")
    if "$ref" in field:
        return "mapping"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list of {_type(field['items'])}"
    limits = {"exclusiveMinimum": ">", "minimum": "≥", "exclusiveMaximum": "<", "maximum": "≤"}
    bounds = " ".join(f"{sign} {field[key]:g}" for key, sign in limits.items() if key in field)
    return f"{field['type']} {bounds}".strip()


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "required"
    value = field["default"]
    return "–" if value is None or value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"
