"""Facts about a data set that are known before any job starts, from its prepared record or its source."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udpm.config import DatasetConfig
from udpm.config.dataset import OWN_CLASSES
from udpm.config.validation import Record, SplitRanges, validate
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.core.reading import read_json
from udpm.runs.config_guard import preparation_changes


class Prepared(Record):
    """The part of a prepared data set's record that planning reads."""

    sha256: str | None = None
    files: dict[str, str] = {}
    splits: SplitRanges = {}
    class_names: list[str] | None = None


@dataclass(frozen=True)
class DatasetFacts:
    """Facts about a data set that are known before any job starts.

    Attributes:
        has_test: whether it has a test split; None if unknown.
        class_names: by label; empty if unknown.
    """

    has_test: bool | None
    class_names: list[str]


def look_up(config: DatasetConfig, record_file: Path) -> DatasetFacts:
    """Look up a data set in its prepared record, else in its source, without downloads and without reading images.

    Raises:
        UserError: the source exists but cannot be used.
    """
    if config.source != "folder":
        return DatasetFacts(config.source == "cifar10" or bool(config.holdout), OWN_CLASSES[config.source])
    try:
        record = read_prepared(record_file)
    except UserError:
        record = {}
    exists = expanded(config.path or "", "path").exists()
    if record and not (exists and preparation_changes(record, config)):
        return DatasetFacts("test" in record.get("splits", {}), record.get("class_names") or [])
    if not exists:
        return DatasetFacts(bool(config.holdout or config.expected_test_count) or None, [])
    from udpm.data.open import open_source

    source = open_source(config)
    return DatasetFacts("test" in source.splits, source.class_names)


def read_prepared(path: Path) -> dict[str, Any]:
    """Read the record of a prepared data set; check only the part that planning reads.

    Raises:
        UserError: missing, unreadable, or not such a record.
    """
    record = read_json(path, "dataset record")
    validate(Prepared, record, str(path))
    return record
