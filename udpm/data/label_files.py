"""Label files of a data set: choosing and reading them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from udpm.config.dataset import LABEL_SUFFIXES, DatasetConfig
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.core.reading import parse_json, read_bytes
from udpm.data.decode import ImageError
from udpm.data.layout import Layout, split_word
from udpm.data.source import Listing, shown, tidy

USUAL_FILES = (b"dataset.json", b"metadata.jsonl", b"metadata.csv")
FILE_NAME, LABEL = "file_name", "label"
LABEL_WORDS = ("label", "labels", "annotation", "annotations", "groundtruth")
TABLE_WORDS = ("metadata", "meta")
"""Ends of words in the names of files that may hold labels; the latter in tables only (dataset-metadata.json)."""
TABLE_SUFFIXES = (".tsv", ".parquet")
"""Suffixes of tables that cannot be read."""
LEGEND_WORDS = {"map", "mapping", "names", "id", "index", "idx"}
"""Words in the names of files that explain the labels."""
NAMES_SHOWN = 5
MOST_BYTES = 1 << 27
"""Largest label file to read in bytes, about twice ImageNet's."""
Entry = tuple[str, dict[str, Any]]
"""Position in its file, and values by column: file_name, label and any others."""
MOST_VALUES = 8
"""A column of more distinct values does not hold splits."""
SPLIT_WORDS = ("split", "partition")
"""Ends of words in the names of columns that hold splits under any values, such as 0, 1 and 2 in CelebA's."""
TRUTH = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "t", "f", "y", "n", ""}


def usual_files(listing: Listing, layout: Layout) -> list[list[bytes]]:
    """Find label files with usual names, one list for each level of folders that has any."""
    splits = [folder for folders in layout.folders.values() for folder in folders]
    levels = [[root] for root in layout.roots] + [splits]
    found: dict[bytes, list[bytes]] = {}
    for name in listing.others:
        folder, slash, base = tidy(name).rpartition(b"/")
        if base.lower() in USUAL_FILES:
            found.setdefault(folder + slash, []).append(name)
    for names in found.values():
        names.sort(key=lambda name: (USUAL_FILES.index(tidy(name).rpartition(b"/")[2].lower()), name))
    return [there for level in levels if (there := [name for folder in level for name in found.get(folder, [])])]


def refuse_files_elsewhere(listing: Listing) -> None:
    """Refuse files that may hold labels under other names or in other folders, before class folders are used."""
    found = [shown(tidy(name)) for name in listing.others if _may_hold_labels(tidy(name))]
    if found:
        raise UserError(
            f"{listing.root}: {some_of(found)} may hold the labels; choose one with labels: FILE "
            f"({', '.join(LABEL_SUFFIXES)}; of all images), or set labels: folders to take class folders"
        )


def _may_hold_labels(path: bytes) -> bool:
    base = path.rpartition(b"/")[2].lower()
    stem, _, suffix = os.fsdecode(base).rpartition(".")
    if base in USUAL_FILES or f".{suffix}" not in LABEL_SUFFIXES + TABLE_SUFFIXES:
        return base in USUAL_FILES
    words = re.findall(r"[a-z]+", stem)
    ends = LABEL_WORDS if suffix == "json" else LABEL_WORDS + TABLE_WORDS
    return any(word.endswith(ends) for word in words) and LEGEND_WORDS.isdisjoint(words)


@dataclass(frozen=True)
class LabelFile:
    """A label file.

    Attributes:
        origin: its name or path, for the record.
        where: the same including the data set's path, for errors.
        content: its bytes.
        name: name in the listing; None for a file outside it.
    """

    origin: str
    where: str
    content: bytes
    name: bytes | None = None

    @property
    def bases(self) -> list[bytes]:
        """The file's folder, to which its names may be relative; empty for a file outside the listing."""
        return [] if self.name is None else [tidy(self.name)[: -len(tidy(self.name).rpartition(b"/")[2])]]


def check_unread(listing: Listing, paths: list[bytes], layout: Layout, names: list[bytes]) -> None:
    """Check unused label files for columns of splits; ignore what cannot be read."""
    index = {path: number for number, path in enumerate(paths)} if names else {}
    for name in names:
        columns = Columns(layout)
        with suppress(UserError):
            file = _member(listing, name)
            for where, values, number in read_rows(file, layout, index, (FILE_NAME,)):
                if number is not None:
                    columns.note(where, number, values)
        columns.check()


def chosen_files(listing: Listing, layout: Layout, config: DatasetConfig, nearby: list[list[bytes]]) -> list[LabelFile]:
    """Choose the label files to use.

    Raises:
        UserError: there are several, or the one in the configuration does not exist.
    """
    root = listing.root
    if config.labels is None:
        folders = [name.rpartition(b"/")[0] for name in nearby[0]]
        if len(nearby) > 1 or len(set(folders)) < len(folders):
            several = ", ".join(shown(name) for names in nearby for name in names)
            raise UserError(f"{root}: has several label files ({several}); choose one with labels: FILE")
        return [_member(listing, name) for name in nearby[0]]
    known = {tidy(name): name for name in listing.others}
    for folder in layout.roots:
        name = known.get(folder + tidy(config.labels.encode()))
        if name is not None:
            return [_member(listing, name)]
    path = expanded(config.labels, "labels")
    if not path.exists():
        raise UserError(f"labels: {config.labels}: not found, neither in {root} nor as a path")
    return [LabelFile(config.labels, str(path), read_bytes(path, "label file", MOST_BYTES))]


def _member(listing: Listing, name: bytes) -> LabelFile:
    where = f"{listing.root}/{shown(name)}"
    try:
        content = listing.reader.load(name, listing.others[name])
    except ImageError as refusal:
        raise UserError(f"{where}: {refusal}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{where}: not a readable label file: it has more than {MOST_BYTES} bytes")
    return LabelFile(shown(name), where, content, name)


def _entries(file: LabelFile, needed: tuple[str, ...]) -> Iterator[Entry]:
    """Read the entries of a label file, each with at least the columns in `needed`.

    Raises:
        UserError: the file is invalid.
    """
    try:
        text = file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}; save it as UTF-8"
        raise UserError(f"{file.where}: not a readable label file: {reason}") from None
    read = {"json": _json, "jsonl": _json_lines, "csv": _csv}[file.origin.lower().rpartition(".")[2]]
    return read(file.where, text, needed)


def _json(where: str, text: str, needed: tuple[str, ...]) -> Iterator[Entry]:
    content = parse_json(text, f"{where}: not readable as JSON", MOST_BYTES)
    if not isinstance(content, dict):
        raise UserError(f'{where}: expected {{"labels": [["NAME", 0], …]}}, found {_kind(content)}')
    labels = content.get("labels")
    if labels is None:
        raise UserError(
            f"{where}: has no labels (labels: null), so the images are unlabelled; set classes: 0, labels: FILE, or "
            "labels: folders to take class folders"
        )
    if not isinstance(labels, list):
        raise UserError(f'{where}: labels must be a list of ["NAME", 0] or null, found {_kind(labels)}')
    for number, entry in enumerate(labels):
        position = f"labels[{number}]"
        if not isinstance(entry, list) or len(entry) != 2:
            raise UserError(f'{where}: {position} must be ["NAME", 0], found {shown_value(entry)}')
        yield position, dict(zip((FILE_NAME, LABEL), entry, strict=True))


def _json_lines(where: str, text: str, needed: tuple[str, ...]) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        position = f"line {number}"
        entry = parse_json(line, f"{where}: {position}: not readable as JSON")
        if not isinstance(entry, dict) or not all(key in entry for key in needed):
            raise UserError(
                f'{where}: {position} must be {{"{FILE_NAME}": …, "{LABEL}": …}}, found {shown_value(entry)}'
            )
        yield position, entry


def _csv(where: str, text: str, needed: tuple[str, ...]) -> Iterator[Entry]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        if any(header.count(key) != 1 for key in needed):
            columns = ", ".join(map(shown_value, header)) or "nothing"
            raise UserError(f"{where}: its first line must name the columns {FILE_NAME} and {LABEL}, found {columns}")
        for row in rows:
            if not row:
                continue
            position = f"line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where}: {position} has {len(row)} values for {len(header)} columns")
            yield position, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{where}: line {rows.line_num}: not readable as csv: {error}") from None


def read_rows(
    file: LabelFile, layout: Layout, index: dict[bytes, int], needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Read the entries of a file: position, values, and number of the image, or None if no such image exists."""
    # Names are relative to the file's folder or one of the roots, the first that matches.
    bases = file.bases + layout.roots
    base = None
    for entry, values in _entries(file, needed):
        where, name = f"{file.where}: {entry}", values[FILE_NAME]
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: the name must be text, found {shown_value(name)}")
        path = tidy(name.encode("utf-8", "surrogatepass"))
        if base is None:
            base = next((each for each in bases if each + path in index), bases[0])
        yield where, values, index.get(base + path)


def some_of(names: list[str]) -> str:
    """List the first names, and the number of others."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NAMES_SHOWN]) + more


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), shown_value(value))


def shown_value(value: Any) -> str:
    """Format a value as JSON for a message, on one line of at most 60 characters."""
    text = json.dumps(value, ensure_ascii=False)
    return shown(text if len(text) <= 60 else f"{text[:59]}…")


class Columns:
    """Distinct values in the columns of one label file, for training images only, to find columns of splits."""

    def __init__(self, layout: Layout):
        # Images held out at random may come from anywhere.
        self._trains = set(layout.splits["train"].tolist()) if layout.folders else None
        self._passed = {FILE_NAME, LABEL}
        self._rows = 0
        self._counts: dict[str, int] = {}
        self._found: dict[str, dict[str, str]] = {}

    def note(self, where: str, number: int, values: dict[str, Any]) -> None:
        """Record the values by column of image `number`; `where` is its file and line, for errors."""
        if self._trains is not None and number not in self._trains:
            return
        self._rows += 1
        for column, value in values.items():
            if column in self._passed:
                continue
            self._counts[column] = self._counts.get(column, 0) + 1
            found = self._found.setdefault(column, {})
            found.setdefault(_text(value), where)
            if len(found) > MOST_VALUES:
                self._passed.add(column)
                del self._found[column]

    def check(self) -> None:
        """Check that no column assigns training images to several splits.

        Raises:
            UserError: a column does.
        """
        for column, found in sorted(self._found.items()):
            absent = {"": "other rows"} if self._counts[column] < self._rows else {}
            values = absent | found
            if 2 <= len(values) <= MOST_VALUES and _is_split_column(column, set(values)):
                (one, first), (other, second) = list(values.items())[:2]
                ignore = "{train: …, test: …} to go by these folders" if self._trains else "none to train on all"
                raise UserError(
                    f"{second}: {shown(column)} is {shown_value(other)}, but {shown_value(one)} in "
                    f"{first.rpartition(': ')[2]}; columns make no splits, so both would be trained on: sort the "
                    f"images into train/ and test/, or set splits: {ignore}"
                )


def _is_split_column(column: str, values: set[str]) -> bool:
    if any(word.endswith(SPLIT_WORDS) for word in re.findall(r"[a-z]+", column.lower())):
        return True
    word = split_word(column)
    if word and word.rest in ("", "is") and not word.short and values <= TRUTH:
        return True
    read = [split_word(value) for value in values if value]
    return all(found and not found.rest for found in read) and len({found.split for found in read if found}) > 1


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()[:60]
