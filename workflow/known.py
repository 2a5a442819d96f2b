"""What is known of a data set before any job starts: from its prepared record, else from its source's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from udpm.config import DatasetConfig
from udpm.config.dataset import OWN_CLASSES
from udpm.core.errors import UserError
from udpm.core.paths import expanded
from udpm.core.reading import read_json
from udpm.training.claim import differences, incidental

LIMITS = ("max_pixels", "max_file_bytes")
"""Keys that bound what is read of a source."""


@dataclass(frozen=True)
class Known:
    """What is known of a data set.

    Attributes:
        has_test: whether it has a test split; None where that is not known.
        class_names: by label; empty where they are not known.
    """

    has_test: bool | None
    class_names: list[str]


def look_at(config: DatasetConfig, folder: Path) -> Known:
    """Look at a data set; nothing is downloaded, and no image is read.

    Args:
        config: of the data set.
        folder: of the prepared data set, there or not.

    Raises:
        UserError: the source is there, but cannot be used.
    """
    if config.source != "folder":
        return Known(config.source == "cifar10" or bool(config.holdout), OWN_CLASSES[config.source])
    record = _record(folder / "dataset.json")
    if record and not changes(record, config):
        return Known("test" in record.get("splits", {}), record.get("class_names") or [])
    planned = bool(config.holdout or config.expected_test_count) or None
    if not expanded(config.path, "path").exists():
        return Known(planned, [])
    from udpm.data.sources import open_source

    source = open_source(config)
    return Known("test" in source.splits, source.class_names)


def changes(record: dict[str, Any], config: DatasetConfig) -> dict[str, str]:
    """By key, how a configuration differs from the one that a data set was prepared by, in what its images are."""
    try:
        earlier = DatasetConfig.model_validate({**record["config"], "workers": None})
    except (KeyError, TypeError, ValueError):
        # Of a version whose keys were others: what was made of them is there, and runs compare their own.
        return {}
    free = incidental("dataset")
    # Limits matter where images were left out.
    return differences(earlier, config, free - set(LIMITS) if record.get("skipped") else free)


def _record(path: Path) -> dict:
    try:
        return read_json(path, "dataset record")
    except UserError:
        return {}
