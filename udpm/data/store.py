"""Prepared data sets: ``images.npy``, ``labels.npy`` and ``dataset.json`` in one folder."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.lib import format as npy
from pydantic import model_validator

from udpm.config.validation import Classes, Exactly, PositiveInt, Record, Sha256, SplitRanges, read_record
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.data.npz import map_npy

FORMAT = "udpm-dataset/1"
RECORD, IMAGES, LABELS = "dataset.json", "images.npy", "labels.npy"
SEALED = ("format", "count", "side", "classes", "class_names", "splits", "sha256", "files")
"""Keys of the record that are used; the record contains their digest."""

HEADER_BYTES = 128
"""Offset of the images in ``images.npy``."""

EXAMPLES = 10
"""Groups of duplicates that the record lists, and names in a group."""

BLOCK_BYTES = 1 << 24
"""Bytes to read at a time in a pass over all images."""


class DatasetRecord(Record):
    """Required content of ``dataset.json``."""

    format: Annotated[str, Exactly(FORMAT)]
    count: PositiveInt
    side: PositiveInt
    classes: Classes
    class_names: list[str] = []
    splits: SplitRanges
    sha256: Sha256
    files: dict[str, Sha256] = {}
    source: dict[str, Any] = {}

    @model_validator(mode="after")
    def _splits_are_parts(self) -> DatasetRecord:
        expected = 0
        for name, (start, stop) in sorted(self.splits.items(), key=lambda split: split[1]):
            if start != expected or stop < start:
                raise ValueError(
                    f"splits: {name} is [{start}, {stop}], expected [{expected}, …]: splits are ranges of the "
                    f"{self.count} images without gaps or overlaps"
                )
            expected = stop
        if expected != self.count:
            raise ValueError(f"splits: end at {expected}, but there are {self.count} images")
        return self

    @model_validator(mode="after")
    def _a_name_for_each_class(self) -> DatasetRecord:
        if len(self.class_names) not in (0, self.classes):
            raise ValueError(f"class_names: {len(self.class_names)} names for {self.classes} classes")
        return self


@dataclass(frozen=True)
class Store:
    """A prepared data set, memory-mapped.

    Attributes:
        folder: its folder.
        images: (N, side, side, 3) uint8, RGB, read-only memory map.
        labels: (N,) int64; all zero for a data set without classes.
        record: contents of ``dataset.json``.
    """

    folder: Path
    images: np.ndarray
    labels: np.ndarray
    record: dict[str, Any]

    @property
    def side(self) -> int:
        """Side of the images in pixels."""
        return self.record["side"]

    @property
    def classes(self) -> int:
        """Number of classes; 0 if unlabelled."""
        return self.record["classes"]

    @property
    def class_names(self) -> list[str]:
        """Names of the classes, by label; empty if unknown or without classes."""
        return self.record.get("class_names") or []

    @property
    def digest(self) -> str:
        """SHA-256 of images and labels, the data set's identity."""
        return self.record["sha256"]

    def split(self, name: str) -> slice:
        """Return the contiguous range of images of a split ("train" or "test").

        Raises:
            UserError: the data set has no such split, or it is empty.
        """
        start, stop = self.record["splits"].get(name, (0, 0))
        if start == stop:
            raise UserError(f"{self.folder}: has no {name} split; its splits are {', '.join(self.record['splits'])}")
        return slice(start, stop)

    @property
    def identity(self) -> dict[str, Any]:
        """Entries of a result's record that identify the images it was made from, for `difference`."""
        return {"dataset_sha256": self.digest, "dataset_splits": self.record["splits"]}

    def difference(self, record: Mapping[str, Any]) -> str:
        """Describe for an error how the images that a result was made from differ from these; empty if they do not.

        Args:
            record: the result's record with the keys of `identity`, and `split`, `n` and `flips` for a reference. Keys
                missing from an older record count as equal.
        """
        if record.get("dataset_sha256") not in (None, self.digest):
            return f"other images than those in {self.folder}"
        now = self.record["splits"]
        for name, (start, stop) in now.items():
            first, last = (record.get("dataset_splits") or now).get(name, (0, 0))
            if last - first != stop - start or (first != start and stop > start):
                return f"other splits than {self.folder} has: {name} had {last - first} images, has {stop - start}"
        start, stop = now.get(record.get("split"), (0, 0))
        count = (stop - start) * (2 if record.get("flips") else 1)
        if record.get("dataset_sha256") is not None and count and record.get("n") not in (None, count):
            return f"other splits than {self.folder} has: {record['split']} gave {record['n']} images, gives {count}"
        return ""

    def verify(self) -> None:
        """Read all images and labels, about 2 GB per second, and compare their SHA-256 with the record.

        Raises:
            UserError: they are not what was prepared.
        """
        digest = hashlib.sha256()
        for images in self.blocks():
            digest.update(images)
        self.check_digest(digest)

    def check_digest(self, digest: Any) -> None:
        """Add the labels to the SHA-256 of all images, and compare it with the record.

        Raises:
            UserError: they are not what was prepared.
        """
        digest.update(self.labels.astype("<i8").tobytes())
        if digest.hexdigest() != self.digest:
            raise UserError(
                f"{self.folder}: its bytes were changed since it was prepared: SHA-256 of images and labels is "
                f"{digest.hexdigest()}, expected {self.digest}; delete the folder and run `udpm prepare`"
            )

    def blocks(self) -> Iterator[np.ndarray]:
        """Read all images in order, some megabytes at a time; a memory map would accumulate them in memory.

        Raises:
            UserError: the file cannot be read.
        """
        size = self.side * self.side * 3
        count = max(1, BLOCK_BYTES // size)
        assert isinstance(self.images, np.memmap)
        try:
            with open(self.folder / IMAGES, "rb") as file:
                file.seek(self.images.offset)
                for start in range(0, len(self.images), count):
                    data = file.read(min(count, len(self.images) - start) * size)
                    yield np.frombuffer(data, dtype=np.uint8).reshape(-1, self.side, self.side, 3)
        except OSError as error:
            raise UserError(f"{self.folder / IMAGES}: cannot be read: {error.strerror or error}") from None


def open_store(folder: str | Path) -> Store:
    """Open a data set written by `udpm prepare`; only `Store.verify` checks its bytes.

    Raises:
        UserError: missing, incomplete, changed since it was prepared, or not a data set.
    """
    folder = Path(folder)
    what = "dataset record (run `udpm prepare` first)"
    record = read_record(DatasetRecord, folder / RECORD, what, SEALED, "prepare it again")
    images = open_array(folder / IMAGES, (record["count"], record["side"], record["side"], 3), np.uint8)
    labels = np.array(open_array(folder / LABELS, (record["count"],), np.int64))
    most = max(record["classes"], 1) - 1
    if labels.min() < 0 or labels.max() > most:
        found = f"{labels.min()}..{labels.max()}"
        raise UserError(f"{folder / LABELS}: labels are {found}, but the record requires 0..{most}")
    return Store(folder, images, labels, record)


def open_array(path: Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Memory-map a .npy file, and check its shape and type against the record.

    Raises:
        UserError: missing, unreadable, or of another shape or type.
    """
    if not path.exists():
        raise UserError(f"{path}: not found, but its record exists; delete the folder and make it again")
    array = map_npy(path, "array")
    if array.shape != shape or array.dtype != dtype:
        raise UserError(
            f"{path}: {array.dtype} {array.shape}, expected {np.dtype(dtype)} {shape} by its record; make it again"
        )
    return array


def array_header(shape: tuple[int, ...], dtype: type) -> bytes:
    """Build the header of a .npy, `HEADER_BYTES` bytes."""
    header = io.BytesIO()
    values = {"descr": npy.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    npy.write_array_header_1_0(header, values)
    if header.tell() != HEADER_BYTES:
        raise ValueError(f"the header of shape {shape} takes {header.tell()} bytes")
    return header.getvalue()


def check_files(folder: Path, record: dict[str, Any], names: list[str] | None = None) -> list[str]:
    """List files (default: all) that are missing, or whose SHA-256 is not that under "files" in the record."""
    sums = record.get("files", {})
    wanted = list(sums) if names is None else names
    return [name for name in wanted if not (folder / name).exists() or sha256(folder / name) != sums.get(name)]


def content_hash(images: np.ndarray) -> np.ndarray:
    """Hash each image's bytes to 128 bits (BLAKE2b).

    Args:
        images: (n, bytes) uint8.

    Returns:
        (n, 2) uint64.
    """
    sums = b"".join(hashlib.blake2b(image, digest_size=16).digest() for image in images)
    return np.frombuffer(sums, dtype="<u8").reshape(-1, 2)


def find_duplicates(
    hashes: np.ndarray, labels: np.ndarray, splits: np.ndarray, name: Callable[[int], str]
) -> dict[str, Any]:
    """Find groups of images with equal content.

    Args:
        hashes: (n, 2) uint64, from `content_hash`.
        labels: (n,).
        splits: (n,), number of each image's split.
        name: returns the name of the image in a row.

    Returns:
        images: number of images that repeat an earlier one; groups: number of groups of equal images; label_conflicts,
        across_splits: numbers of groups with several labels, and in several splits; examples: names by group.
    """
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))
    same = (hashes[order][1:] == hashes[order][:-1]).all(axis=1)
    starts = np.flatnonzero(np.concatenate([[True], ~same]))
    sizes = np.diff(np.append(starts, len(order)))
    runs = zip(starts[sizes > 1], sizes[sizes > 1], strict=True)
    groups = sorted(np.sort(order[start : start + size]).tolist() for start, size in runs)
    return {
        "images": int(same.sum()),
        "groups": len(groups),
        "label_conflicts": sum(len(set(labels[group].tolist())) > 1 for group in groups),
        "across_splits": sum(len(set(splits[group].tolist())) > 1 for group in groups),
        "examples": [[name(row) for row in group[:EXAMPLES]] for group in groups[:EXAMPLES]],
    }


def split_ranges(splits: dict[str, int], kept: np.ndarray) -> tuple[np.ndarray, dict[str, list[int]]]:
    """Return each kept image's split number, and the ranges [start, stop) of splits that kept any image."""
    numbers = np.repeat(np.arange(len(splits)), list(splits.values()))[kept]
    ranges = {}
    for number, name in enumerate(splits):
        start, stop = np.searchsorted(numbers, [number, number + 1])
        if start < stop:
            ranges[name] = [int(start), int(stop)]
    return numbers, ranges


def class_counts(labels: np.ndarray, ranges: dict[str, list[int]], classes: int) -> dict[str, list[int]]:
    """Count the images of each class in each split; without classes, all images."""
    return {
        name: np.bincount(labels[start:stop], minlength=max(classes, 1)).tolist()
        for name, (start, stop) in ranges.items()
    }
