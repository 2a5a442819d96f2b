"""Read labels from a data set's label files: which files count, what they must contain."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from udpm.config.dataset import LABEL_SUFFIXES, DatasetConfig
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.core.reading import parse_json, read_bytes
from udpm.data.columns import Columns
from udpm.data.decode import ImageError
from udpm.data.layout import Layout
from udpm.data.listing import Listing, tidy
from udpm.data.source import shown

USUAL_FILES = (b"dataset.json", b"metadata.jsonl", b"metadata.csv")


FILE_NAME, LABEL = "file_name", "label"


BLOCK = 1000
"""Images that StyleGAN's and FFHQ's tools put into one folder."""


PADDED = 5
"""Digits of their names."""


LABEL_WORDS = ("label", "labels", "annotation", "annotations", "groundtruth")


TABLE_WORDS = ("metadata", "meta")
"""Ends of words in the names of files that may hold labels; the latter in tables only (dataset-metadata.json)."""


TABLE_SUFFIXES = (".tsv", ".parquet")
"""Suffixes of tables that are not read."""


LEGEND_WORDS = {"map", "mapping", "names", "id", "index", "idx"}
"""Words in the names of files that say what the labels mean."""


NAMES_SHOWN = 5


MOST_BYTES = 1 << 27
"""Largest label file that is read: about twice ImageNet's."""


_NO_NAME = re.compile(
    r"\s*|[-+]?[0-9.,]+(e[-+]?[0-9]+)?|[<#]?n/?a>?|n\.a\.?|[-+]?nan|nat|null|none|nil|[-–—]+|\?+|_+", re.IGNORECASE
)
"""Text that is no class's name: nothing, a missing value of a table, a number that is not whole."""


Entry = tuple[str, dict[str, Any]]
"""Position in its file, and values by column: file_name, label and any others."""


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        numbers: (n,) int64; all zero where there are no classes.
        names: of the classes, by label; empty where they have none.
        origin: where the labels come from, in words.
        from_file: whether that is a file.
        used: label files that were read, as the listing names them.
        unused: label files that were not read, as `classes` is 0.
    """

    numbers: np.ndarray
    names: list[str]
    origin: str
    from_file: bool = False
    used: frozenset[bytes] = frozenset()
    unused: tuple[str, ...] = ()


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order of their characters, but with whole numbers in theirs: 2 before 10."""
    names = list(names)
    width = max((len(run) for name in names for run in re.findall(r"[0-9]+", name)), default=0)
    if width > 255:
        return sorted(names)
    return sorted(names, key=lambda name: (re.sub(r"[0-9]+", lambda run: run[0].rjust(width, "0"), name), name))


def usual_files(listing: Listing, layout: Layout) -> list[list[bytes]]:
    """Files of labels with their usual names: one list for each level of folders that has some."""
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


def _may_hold_labels(place: bytes) -> bool:
    base = place.rpartition(b"/")[2].lower()
    stem, _, suffix = os.fsdecode(base).rpartition(".")
    if base in USUAL_FILES or f".{suffix}" not in LABEL_SUFFIXES + TABLE_SUFFIXES:
        return base in USUAL_FILES
    words = re.findall(r"[a-z]+", stem)
    ends = LABEL_WORDS if suffix == "json" else LABEL_WORDS + TABLE_WORDS
    return any(word.endswith(ends) for word in words) and LEGEND_WORDS.isdisjoint(words)


@dataclass(frozen=True)
class _File:
    """A label file.

    Attributes:
        origin: its name or path, for people.
        where: the same with the data set's own, for errors.
        content: its bytes.
        name: as the listing has it; None of a file from elsewhere.
    """

    origin: str
    where: str
    content: bytes
    name: bytes | None = None

    @property
    def bases(self) -> list[bytes]:
        """The folder that its names may start from, first of all: its own."""
        return [] if self.name is None else [tidy(self.name)[: -len(tidy(self.name).rpartition(b"/")[2])]]


def labels_of_files(
    places: list[bytes], order: np.ndarray, layout: Layout, config: DatasetConfig, files: list[_File]
) -> Labels:
    """Label images by label files: every image must be listed once."""
    found = _found(files, places, layout, config)
    bare = [places[i] for i in order if i not in found]
    if bare:
        sources = ", ".join(file.where for file in files)
        more = f" and {len(bare) - 1} more" if bare[1:] else ""
        raise UserError(f"{sources}: has no label for {shown(bare[0])}{more}; add it, or remove the image")
    # Labels of images that are in no split count for nothing.
    numbers, names = _numbered([found[i] for i in order], config.classes)
    used = frozenset(file.name for file in files if file.name is not None)
    return Labels(numbers, names, ", ".join(file.origin for file in files), True, used)


def check_unread(listing: Listing, places: list[bytes], layout: Layout, names: list[bytes]) -> None:
    """Check label files that are not used for columns of splits; what cannot be read of them is skipped."""
    index = {place: number for number, place in enumerate(places)} if names else {}
    for name in names:
        columns = Columns(layout)
        with suppress(UserError):
            file = _member(listing, name)
            for where, values, number in _rows(file, layout, index, (FILE_NAME,)):
                if number is not None:
                    columns.note(where, number, values)
        columns.check()


def chosen_files(listing: Listing, layout: Layout, config: DatasetConfig, nearby: list[list[bytes]]) -> list[_File]:
    """The label files that count.

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
    return [_File(config.labels, str(path), read_bytes(path, "label file", MOST_BYTES))]


def _member(listing: Listing, name: bytes) -> _File:
    where = f"{listing.root}/{shown(name)}"
    try:
        content = listing.reader.load(name, listing.others[name])
    except ImageError as refusal:
        raise UserError(f"{where}: {refusal}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{where}: not a readable label file: it has more than {MOST_BYTES} bytes")
    return _File(shown(name), where, content, name)


def _entries(file: _File, needed: tuple[str, ...]) -> Iterator[Entry]:
    """Read the entries of a label file, each with the columns that are needed.

    Raises:
        UserError: it is not understood.
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
        place = f"labels[{number}]"
        if not isinstance(entry, list) or len(entry) != 2:
            raise UserError(f'{where}: {place} must be ["NAME", 0], found {_shown_value(entry)}')
        yield place, dict(zip((FILE_NAME, LABEL), entry, strict=True))


def _json_lines(where: str, text: str, needed: tuple[str, ...]) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        entry = parse_json(line, f"{where}: {place}: not readable as JSON")
        if not isinstance(entry, dict) or not all(key in entry for key in needed):
            raise UserError(f'{where}: {place} must be {{"{FILE_NAME}": …, "{LABEL}": …}}, found {_shown_value(entry)}')
        yield place, entry


def _csv(where: str, text: str, needed: tuple[str, ...]) -> Iterator[Entry]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        if any(header.count(key) != 1 for key in needed):
            columns = ", ".join(map(_shown_value, header)) or "nothing"
            raise UserError(f"{where}: its first line must name the columns {FILE_NAME} and {LABEL}, found {columns}")
        for row in rows:
            if not row:
                continue
            place = f"line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where}: {place} has {len(row)} values for {len(header)} columns")
            yield place, dict(zip(header, row, strict=True))
    except csv.Error as error:
        raise UserError(f"{where}: line {rows.line_num}: not readable as csv: {error}") from None


def _rows(
    file: _File, layout: Layout, index: dict[bytes, int], needed: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any], int | None]]:
    """Each entry of a file: where it is, its values, and the number of its image; None if there is no such image."""
    # Names start from the file's folder or from one of the roots: from the first that fits.
    bases = file.bases + layout.roots
    base = None
    for entry, values in _entries(file, needed):
        where, name = f"{file.where}: {entry}", values[FILE_NAME]
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: the name must be text, found {_shown_value(name)}")
        path = tidy(name.encode("utf-8", "surrogatepass"))
        if base is None:
            base = next((each for each in bases if each + path in index), bases[0])
        yield where, values, index.get(base + path)


def _found(
    files: list[_File], places: list[bytes], layout: Layout, config: DatasetConfig
) -> dict[int, tuple[str, int | str]]:
    """The label of each image that the files name, and where it is."""
    index = {place: number for number, place in enumerate(places)}
    found: dict[int, tuple[str, int | str]] = {}
    written: dict[int | str, tuple[str, str]] = {}
    for file in files:
        columns = Columns(layout)
        for where, values, number in _rows(file, layout, index, (FILE_NAME, LABEL)):
            if number is None or number in found:
                name = _shown_value(values[FILE_NAME])
                raise UserError(
                    f"{where}: {name} is not among the {len(index)} images that are read"
                    if number is None
                    else f"{where}: {name} has a label already; name each image once"
                )
            label = _checked(values[LABEL], where)
            _check_written(label, str(values[LABEL]).strip(), where, written)
            found[number] = where, label
            columns.note(where, number, values)
        if config.splits is None:
            columns.check()
    return found


def _check_written(label: int | str, text: str, where: str, written: dict[int | str, tuple[str, str]]) -> None:
    """Refuse a number written in two ways, which may be two classes: 01 and 1."""
    other, first = written.setdefault(label, (text, where))
    if text != other:
        raise UserError(f"{where}: the label is {text}, but the same number is {other} in {first}; write it in one way")


def _checked(label: Any, where: str) -> int | str:
    """A label: a number from 0, or a class's name."""
    if isinstance(label, str):
        label = label.strip()
        if re.fullmatch(r"-?[0-9]{1,18}", label):
            # In csv everything is text.
            label = int(label)
    number = isinstance(label, int) and not isinstance(label, bool)
    if not number and (not isinstance(label, str) or _NO_NAME.fullmatch(label)):
        raise UserError(f"{where}: the label must be a whole number or a name, found {_shown_value(label)}")
    if number and label < 0:
        raise UserError(f"{where}: the label is {label}; labels are numbers from 0, or names")
    return label


def _numbered(found: list[tuple[str, int | str]], classes: int) -> tuple[np.ndarray, list[str]]:
    """Labels as numbers 0..classes - 1, and the classes' names where the labels are names."""
    first, example = found[0]
    for where, label in found:
        if isinstance(label, str) != isinstance(example, str):
            raise UserError(
                f"{where}: the label {_shown_value(label)} is of another kind than {_shown_value(example)} in {first}; "
                "write all as numbers or all as names"
            )
    values = {label for _, label in found}
    names = natural(label for label in values if isinstance(label, str))
    last = names[-1] if names else max(values)
    where = next(where for where, label in found if label == last)
    gap = next((number for number in range(len(values)) if number not in values), None)
    if not names and gap is not None:
        raise UserError(
            f"{where}: the label is {_shown_value(last)}, but no image has {gap}; number classes without gaps"
        )
    if len(values) != classes:
        named = f"names {some_of(names)}" if names else f"numbers 0..{last}"
        raise UserError(
            f"{where}: has {len(values)} classes ({named}), but classes is {classes}; set classes: {len(values)}"
        )
    numbers: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[label] if names else label for _, label in found], dtype=np.int64)
    return labels, [shown(name) for name in names]


def some_of(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NAMES_SHOWN]) + more


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), _shown_value(value))


def _shown_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return shown(text if len(text) <= 60 else f"{text[:59]}…")
