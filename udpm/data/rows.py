"""Sources of images that are rows of a few large files, with their labels in them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.data.labels import Labels, WrongClasses, label_rows, list_warnings
from udpm.data.layout import arrange
from udpm.data.source import Reader, Source, shown


@dataclass
class Rows:
    """Rows of files, with about 200 bytes of memory for each.

    Attributes:
        origin: description of the labels' origin; empty if there are none.
        class_names: by label; empty if unknown.
        paths: name of each row in a tree whose folders are the splits.
        names: name of each row for messages.
        keys: (n, 4) int64 in parts: number of the file or array, row in it, size and time of change of the file.
        labels: (n,) int64 in parts; None for a part without.
    """

    origin: str
    class_names: list[str] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    names: list[bytes] = field(default_factory=list)
    keys: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray | None] = field(default_factory=list)

    def add(
        self, number: int, count: int, folder: str, name: str, status: os.stat_result, labels: np.ndarray | None
    ) -> None:
        """Add all rows of file or array `number`; `name` has %d for the row."""
        inside = f"{folder}/" if folder else ""
        start = len(self.paths)
        self.paths += [f"{inside}{start + row}".encode("utf-8", "surrogateescape") for row in range(count)]
        self.names += [(name % row).encode("utf-8", "surrogateescape") for row in range(count)]
        keys = np.empty((count, 4), np.int64)
        keys[:, 0], keys[:, 1], keys[:, 2:] = number, np.arange(count), (status.st_size, status.st_mtime_ns)
        self.keys.append(keys)
        self.labels.append(labels)


def rows_source(config: DatasetConfig, root: Path, rows: Rows, reader: Callable[[], Reader]) -> Source:
    """Arrange rows as splits, and label them.

    Args:
        reader: function that opens their reader; called last, since it may unpack a large file.

    Raises:
        UserError: ambiguous splits, no labels, or other classes than configured.
    """
    if config.labels is not None:
        raise UserError(f"labels: {config.labels}: is for folders and .zip files; the labels of {root} are inside it")
    layout = arrange(rows.paths, [], config, root)
    # Held-out rows are chosen at random; in order, files are read from the beginning to the end.
    layout.splits.update({split: np.sort(indices) for split, indices in layout.splits.items()})
    order = np.concatenate(list(layout.splits.values()))
    names = [rows.names[i] for i in order]
    unused = (rows.origin,) if rows.origin else ()
    labels = Labels(np.zeros(len(order), np.int64), [], "none", unused=unused)
    if config.classes:
        known = [part for part in rows.labels if part is not None]
        if not known:
            raise WrongClasses(f"{root}: has no labels, but classes is {config.classes}; set classes: 0", 0)
        if len(known) < len(rows.labels):
            raise UserError(f"{root}: has no labels for some of its splits; set classes: 0")
        labels = label_rows(root, names, np.concatenate(known)[order], rows.class_names, layout, config, rows.origin)
    return Source(
        splits={name: len(indices) for name, indices in layout.splits.items()},
        names=names,
        keys=np.concatenate(rows.keys)[order],
        labels=labels.numbers,
        class_names=labels.names,
        reader=reader(),
        notes={
            "splits": {split: [shown(name) for name in folders] for split, folders in layout.folders.items()},
            "labels": labels.origin,
            "left_out": layout.left_out,
        },
        warnings=list_warnings(config, layout, labels),
        label_file=True,
    )
