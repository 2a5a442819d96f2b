"""Look up a data set before any job starts: in its prepared record, else in its source."""

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
    """What planning reads of a prepared data set's record."""

    sha256: str | None = None
    files: dict[str, str] = {}
    splits: SplitRanges = {}
    class_names: list[str] | None = None


@dataclass(frozen=True)
class Known:
    """Facts about a data set.

    Attributes:
        has_test: whether it has a test split; None if unknown.
        class_names: by label; empty if unknown.
    """

    has_test: bool | None
    class_names: list[str]


def look_at(config: DatasetConfig, folder: Path) -> Known:
    """Look at a data set; nothing is downloaded, and no image is read.

    Args:
        config: of the data set.
        folder: of the prepared data set, there or not.

    Raises:
        UserError: the source exists but cannot be used.
    """
    if config.source != "folder":
        return Known(config.source == "cifar10" or bool(config.holdout), OWN_CLASSES[config.source])
    record, is_there = _record(folder / "dataset.json"), expanded(config.path, "path").exists()
    if record and not (is_there and preparation_changes(record, config)):
        return Known("test" in record.get("splits", {}), record.get("class_names") or [])
    if not is_there:
        return Known(bool(config.holdout or config.expected_test_count) or None, [])
    from udpm.data.open import open_source

    source = open_source(config)
    return Known("test" in source.splits, source.class_names)


def read_prepared(path: Path) -> dict[str, Any]:
    """The record of a prepared data set, as far as planning needs it; the commands check it whole.

    Raises:
        UserError: missing, unreadable, or not such a record.
    """
    record = read_json(path, "dataset record")
    validate(Prepared, record, str(path))
    return record


def _record(path: Path) -> dict[str, Any]:
    try:
        return read_prepared(path)
    except UserError:
        return {}
