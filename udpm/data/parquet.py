"""Images in Parquet files, as the Hugging Face Hub stores them, read in bounded batches by pyarrow."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from udpm.config.dataset import DatasetConfig
from udpm.core.containers import check_unpacked
from udpm.core.errors import UserError, first_line
from udpm.core.reading import opened, parse_json
from udpm.data.decode import ImageError
from udpm.data.rows import Rows, rows_source
from udpm.data.source import Source

SUFFIX = ".parquet"
LABELS = ("label", "labels", "fine_label", "class", "target", "y")
"""Names of columns that hold labels."""
AT_ONCE, LABELS_AT_ONCE = 16, 1 << 16
"""Rows to read at a time: images, of up to megabytes each, and labels."""
BUFFER = 1 << 20
_NUMBERED = re.compile(r"(?P<stem>.*?)-?(?P<number>\d{5,9})-of-(?P<total>\d{5,9})(-[0-9a-f]{16})?")
"""Names of numbered files; older ones end in a hash."""


@dataclass(frozen=True)
class Shard:
    """A Parquet file: its path, its name below the root, and the folder that it stands for, such as train."""

    path: Path
    name: str
    folder: str


def open_parquet(config: DatasetConfig, root: Path, names: list[str]) -> Source:
    """Open the images of Parquet files as a source; those called `train-00000-of-00002` are the split train.

    Args:
        root: the folder, or the only file.
        names: names of the files below the folder; empty for the only file.

    Raises:
        UserError: the extra `parquet` is not installed, a numbered file is missing, or one is damaged, without images
            or labels, or of other classes than configured.
    """
    shards = _shards(root, sorted(names)) if names else [Shard(root, "", "")]
    rows = Rows("")
    first: _Columns | None = None
    label: str | None = None
    for number, shard in enumerate(shards):
        with _reading(shard.path):
            file = _open(shard.path)
            found = _columns(shard.path, file, bool(config.classes))
            if first is not None and (found != first if config.classes else found.image != first.image):
                raise UserError(
                    f"{shard.path}: its columns of images and labels ({found}) differ from those of {shards[0].path} "
                    f"({first}); put different sets into different folders"
                )
            first, label = first or found, label or found.label
            labels = _labels(shard.path, file, found.label) if config.classes and found.label else None
            status, count = os.stat(shard.path), file.metadata.num_rows
        name = shard.name.replace("%", "%%")
        rows.add(number, count, shard.folder, f"{name} row %d".strip(), status, labels)
    assert first is not None
    if not rows.paths:
        raise UserError(f"{root}: has no rows")
    rows.origin, rows.class_names = f"column {label}" if label else "", list(first.class_names)
    reader = partial(ParquetReader, tuple(shard.path for shard in shards), first.image, config.max_file_bytes)
    return rows_source(config, root, rows, reader)


@dataclass(frozen=True)
class _Columns:
    """Columns of images and labels, and the class names, of a file."""

    image: str
    label: str | None
    class_names: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.image}, {self.label or 'no label'}, {len(self.class_names)} class names"


@dataclass(frozen=True)
class ParquetReader:
    """Reader of the images in a column of Parquet files, of at most `limit` bytes; fastest in the order of rows."""

    files: tuple[Path, ...]
    column: str
    limit: int
    parallel: bool = True
    identity: str = "parquet"
    _open: list[_Stream] = field(default_factory=list, compare=False, repr=False)

    def load(self, name: bytes, key: np.ndarray) -> bytes:
        """Return the encoded image of row key[1] of file key[0].

        Raises:
            ImageError: missing or too large.
            UserError: the file cannot be read, or was changed.
        """
        path = self.files[key[0]]
        with _reading(path):
            if not self._open or self._open[0].path != path:
                self._open[:] = [_Stream(path, self.column, (int(key[2]), int(key[3])))]
            value = self._open[0].row(int(key[1]))
        if isinstance(value, dict):
            value = value["bytes"]
        if value is None:
            raise ImageError("is null: it has no bytes")
        if len(value) > self.limit:
            raise ImageError(f"has {len(value)} bytes, more than max_file_bytes {self.limit}")
        return value

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": []}


class _Stream:
    """Rows of one column of a file, a few in memory at a time."""

    def __init__(self, path: Path, column: str, status: tuple[int, int]) -> None:
        self.path, self._column = path, column
        now = os.stat(path)
        if (now.st_size, now.st_mtime_ns) != status:
            raise UserError(f"{path}: changes while it is read; run the same command again when it is complete")
        self._file = _open(path)
        groups = self._file.metadata.num_row_groups
        counts = [self._file.metadata.row_group(group).num_rows for group in range(groups)]
        self._starts = np.cumsum([0, *counts])
        self._seek(0)

    def _seek(self, group: int) -> None:
        groups = range(group, len(self._starts) - 1)
        columns = [self._column]
        self._batches = self._file.iter_batches(AT_ONCE, row_groups=groups, columns=columns, use_threads=False)
        self._start, self._values = int(self._starts[group]), None

    def row(self, row: int) -> Any:
        """Return the value of a row."""
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if row < self._start or self._starts[group] > self._start + AT_ONCE:
            self._seek(group)
        while self._values is None or row >= self._start + len(self._values):
            self._start += 0 if self._values is None else len(self._values)
            batch = next(self._batches, None)
            if batch is None:
                raise UserError(f"{self.path}: not a readable Parquet file: it ends before row {row}")
            self._values = batch.column(0)
        return self._values[row - self._start].as_py()


def _shards(root: Path, names: list[str]) -> list[Shard]:
    """Return the files in order.

    Raises:
        UserError: a numbered set of files is not whole, or there twice.
    """
    sets: dict[tuple[str, str], dict[int, str]] = {}
    numbered: dict[str, str] = {}
    plain: dict[str, str] = {}
    shards = []
    for name in names:
        folder, _, base = name.rpartition("/")
        stem = base[: -len(SUFFIX)]
        if found := _NUMBERED.fullmatch(stem):
            stem = found["stem"]
            there = sets.setdefault((f"{folder}/{stem}".strip("/"), found["total"]), {})
            other = there.setdefault(int(found["number"]), name)
            if other != name:
                raise UserError(f"{root}: {other} and {name} are the same part of a set; remove the older one")
        parts = [part for part in (folder, "" if stem.isdigit() else stem) if part]
        shards.append(Shard(root / name, name, "/".join(parts)))
        (numbered if found else plain).setdefault(shards[-1].folder, name)
    for place in sorted(numbered.keys() & plain.keys()):
        raise UserError(
            f"{root}: {numbered[place]}, a part of a numbered set, and {plain[place]} stand for the same images; "
            "remove the older one"
        )
    for (stem, total), there in sets.items():
        missing = next((number for number in range(int(total)) if number not in there), None)
        if missing is not None:
            wanted = f"{stem}-{missing:0{len(total)}d}-of-{total}{SUFFIX}".lstrip("-")
            raise UserError(f"{root}: {wanted} is missing: found {len(there)} of {int(total)} files; download it again")
        if len({other for base, other in sets if base == stem}) > 1:
            raise UserError(f"{root}: has two numbered sets of files {stem}-…; remove the older one")
    return shards


def _open(path: Path) -> Any:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{path}: Parquet files need the parquet extra: pip install 'udpm[parquet]'") from None
    with opened(path, "Parquet file"):
        pass
    return parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER, page_checksum_verification=True)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Report any error of pyarrow with the file's name."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # Damaged bytes make pyarrow raise errors of any type.
        raise UserError(f"{path}: not a readable Parquet file: {first_line(error)}") from None


def _columns(path: Path, file: Any, labelled: bool) -> _Columns:
    """Find the columns of images and labels; check those of labels only if `labelled`.

    Raises:
        UserError: no column or several of images, labels that are not whole numbers, or a bomb.
    """
    from pyarrow import types

    fields = {name: file.schema_arrow.field(name).type for name in file.schema_arrow.names}
    images = [name for name, kind in fields.items() if _holds_images(kind)]
    if len(images) != 1:
        found = ", ".join(f"{name} ({kind})" for name, kind in list(fields.items())[:8])
        what = f"{len(images)} columns of images ({', '.join(images)})" if images else "no column of images"
        raise UserError(f"{path}: has {what}; expected one, of bytes or of a struct of bytes and path; found {found}")
    (image,) = images
    _check_size(path, file.metadata)
    label = next((name for name in LABELS if name in fields), None)
    if not labelled:
        return _Columns(image, label, ())
    features = _features(path, file.schema_arrow.metadata or {})
    if label is not None and not types.is_integer(fields[label]):
        raise UserError(f"{path}: column {label} is {fields[label]}; expected whole numbers, the class of each image")
    names = features.get(label, {}).get("names") if isinstance(features.get(label), dict) else None
    names = names if isinstance(names, list) and all(isinstance(name, str) for name in names) else []
    return _Columns(image, label, tuple(names))


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_images(kind.field(index).type) and not types.is_struct(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind)


def _features(path: Path, metadata: dict[bytes, bytes]) -> dict[Any, Any]:
    """Return what the Hub's `datasets` wrote about the columns; empty without it."""
    text = metadata.get(b"huggingface")
    value = parse_json(text, f"{path}: not a readable Parquet file: its metadata huggingface") if text else {}
    info = value.get("info") if isinstance(value, dict) else None
    features = info.get("features") if isinstance(info, dict) else None
    return features if isinstance(features, dict) else {}


def _check_size(path: Path, metadata: Any) -> None:
    """Refuse a file that claims to unpack to far more than its size, or more rows than bytes."""
    size = path.stat().st_size
    if not 0 <= metadata.num_rows <= size:
        raise UserError(f"{path}: not a readable Parquet file: it claims {metadata.num_rows} rows in {size} bytes")
    # The sizes of single columns are not read: pyarrow ends the process if their statistics are damaged.
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    try:
        check_unpacked(sum(group.total_byte_size for group in groups), size)
    except zipfile.BadZipFile as bomb:
        raise UserError(f"{path}: not a readable Parquet file: {bomb}") from None


def _labels(path: Path, file: Any, column: str) -> np.ndarray:
    """Read the labels of a file, (n,) int64."""
    parts = [np.zeros(0, np.int64)]
    for batch in file.iter_batches(LABELS_AT_ONCE, columns=[column], use_threads=False):
        if batch.column(0).null_count:
            row = sum(map(len, parts)) + batch.column(0).is_null().to_pylist().index(True)
            raise UserError(f"{path}: row {row}: the label ({column}) is null; every image needs one")
        parts.append(batch.column(0).to_numpy().astype(np.int64))
    labels = np.concatenate(parts)
    if len(labels) != file.metadata.num_rows:
        raise UserError(
            f"{path}: {column} has {len(labels)} values for {file.metadata.num_rows} rows; download it again"
        )
    return labels
