"""Labels of a folder's images: from a label file, else from the class folders that contain them."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from udpm.config.dataset import LABELLED_FOLDERS, DatasetConfig
from udpm.core.errors import UserError
from udpm.core.paths import expanded
from udpm.core.reading import parse_json, read_bytes
from udpm.data.layout import Layout, unwrapped
from udpm.data.listing import OTHER_PICTURES, Listing, tidy
from udpm.data.picture import Refused
from udpm.data.source import shown

USUAL_FILES = (b"dataset.json", b"metadata.jsonl", b"metadata.csv")
FILE_NAME, LABEL = "file_name", "label"
BLOCK = 1000
"""Images that StyleGAN's and FFHQ's tools put into one folder."""
PADDED = 5
"""Digits of their names."""
NAMES_SHOWN = 5
MOST_BYTES = 1 << 27
"""Largest label file that is read: about twice ImageNet's."""

_NO_NAME = re.compile(r"\s*|nan|null|[-+]?[0-9.]+(e[-+]?[0-9]+)?", re.IGNORECASE)
"""Text that is no class's name: nothing, a missing value of a table, a number that is not whole."""

Entry = tuple[str, Any, Any]
"""Position in its file, name, label."""


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


def label_images(listing: Listing, places: list[bytes], layout: Layout, config: DatasetConfig) -> Labels:
    """Labels of all images in the order of the splits.

    Args:
        listing: of all files.
        places: the images' names, folders separated by slashes.
        layout: their splits.
        config: of the data set.

    Raises:
        UserError: a label file that is not understood or does not fit the images, several of them, or classes
            other than those that are configured.
    """
    order = np.concatenate(list(layout.splits.values()))
    nearby = _usual_files(listing, layout)
    if not config.classes:
        unused = tuple(shown(name) for names in nearby for name in names)
        return Labels(np.zeros(len(order), np.int64), [], "none", unused=unused)
    if config.labels == LABELLED_FOLDERS or (config.labels is None and not nearby):
        labels = _of_folders(listing, places, order, layout, config)
    else:
        labels = _of_files(listing, places, order, layout, config, _chosen(listing, layout, config, nearby))
    count = len(layout.splits["train"])
    absent = set(range(config.classes)) - set(np.unique(labels.numbers[:count]).tolist())
    if absent:
        number = min(absent)
        named = labels.names[number] if labels.names else number
        raise UserError(
            f"{listing.root}: class {named} has no training image ({labels.origin}); leave it out or add some"
        )
    return labels


def natural(names: Iterable[str]) -> list[str]:
    """Names in the order of their characters, but with whole numbers in theirs: 2 before 10."""
    names = list(names)
    width = max((len(run) for name in names for run in re.findall(r"[0-9]+", name)), default=0)
    if width > 255:
        return sorted(names)
    return sorted(names, key=lambda name: (re.sub(r"[0-9]+", lambda run: run[0].rjust(width, "0"), name), name))


# --- class folders


def _of_folders(
    listing: Listing, places: list[bytes], order: np.ndarray, layout: Layout, config: DatasetConfig
) -> Labels:
    """The class of an image is the first folder below its split, or below what is around all of them."""
    root, names = listing.root, [_below(places[i], layout.below) for i in order]
    around = unwrapped(names) if config.classes > 1 else b""
    names = [name[len(around) :] for name in names]
    outside = [places[i] for i, name in zip(order, names, strict=True) if b"/" not in name]
    if outside:
        where = f"{shown(outside[0])} and {len(outside) - 1} more are" if outside[1:] else f"{shown(outside[0])} is"
        raise UserError(
            f"{root}: {where} not in a class folder, but classes is {config.classes}; set classes: 0, or name a label "
            "file (labels: FILE)"
        )
    tops = [os.fsdecode(name.partition(b"/")[0]) for name in names]
    found = natural(set(tops))
    if config.labels is None and _are_blocks(names):
        raise UserError(
            f"{root}: its folders ({_some(found)}) look like blocks of {BLOCK} images, not classes, and no "
            "dataset.json was found; set classes: 0, labels: FILE, or labels: folders if they are classes"
        )
    if len(found) != config.classes:
        raise UserError(
            f"{root}: has {len(found)} class folders, but classes is {config.classes}; these are {_some(found)}: "
            f"set classes: {len(found)}, or splits, if some of them are splits"
        )
    if config.classes > 1:
        _check_others(listing, [folder + around for folder in layout.below], set(found))
    numbers = {name: number for number, name in enumerate(found)}
    labels = np.fromiter((numbers[top] for top in tops), np.int64, len(tops))
    return Labels(labels, [shown(os.fsencode(name)) for name in found], "class folders")


def _below(place: bytes, folders: list[bytes]) -> bytes:
    return next(place[len(folder) :] for folder in folders if place.startswith(folder))


def _check_others(listing: Listing, folders: list[bytes], found: set[str]) -> None:
    """A class whose images are all of a kind that is not read would be dropped as a whole."""
    for name in listing.others:
        place = tidy(name)
        if place.lower().endswith(OTHER_PICTURES) and place.startswith(tuple(folders)):
            top, slash, _ = _below(place, folders).partition(b"/")
            if slash and os.fsdecode(top) not in found:
                raise UserError(
                    f"{listing.root}: {shown(name)} is of a kind that is not read, and its folder {shown(top)}/ holds "
                    "no other images; convert them, or take the folder out"
                )


def _are_blocks(names: list[bytes]) -> bool:
    """Detect folders numbered as by StyleGAN (image 1234 in 00001) or FFHQ (image 1234 in 01000)."""
    blocks: dict[bytes, list[bytes]] = {}
    for name in names:
        top, _, rest = name.partition(b"/")
        blocks.setdefault(top, []).append(rest.rpartition(b"/")[2])
    if len(blocks) < 2 or not all(top.isdigit() and len(top) >= PADDED for top in blocks):
        return False
    tops = sorted(blocks, key=int)
    if all(len(blocks[top]) == BLOCK for top in tops[:-1]) and len(blocks[tops[-1]]) <= BLOCK:
        return True
    runs = {top: [re.findall(rb"[0-9]+", image) for image in images] for top, images in blocks.items()}
    if not all(run for found in runs.values() for run in found):
        return False
    numbers = {top: [int(run[0]) for run in found] for top, found in runs.items()}
    # A tool that cuts blocks of another size numbers on from folder to folder all the same.
    return all(max(numbers[one]) < min(numbers[other]) for one, other in pairwise(tops))


# --- label files


def _usual_files(listing: Listing, layout: Layout) -> list[list[bytes]]:
    """Files of labels with their usual names: one list for each level of folders that has some."""
    splits = [folder for folders in layout.folders.values() for folder in folders]
    levels = [[root] for root in layout.roots] + [splits]
    found = {tidy(name): name for name in listing.others}
    names = [[found.get(folder + name) for folder in level for name in USUAL_FILES] for level in levels]
    return [there for level in names if (there := [name for name in level if name is not None])]


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


def _of_files(
    listing: Listing, places: list[bytes], order: np.ndarray, layout: Layout, config: DatasetConfig, files: list[_File]
) -> Labels:
    index = {place: number for number, place in enumerate(places)}
    found: dict[int, tuple[str, int | str]] = {}
    for file in files:
        _add(found, file, file.bases + layout.roots, index)
    sources = ", ".join(file.where for file in files)
    bare = [places[i] for i in order if i not in found]
    if bare:
        more = f" and {len(bare) - 1} more" if bare[1:] else ""
        raise UserError(f"{sources}: has no label for {shown(bare[0])}{more}; add it, or remove the image")
    # Labels of images that are in no split count for nothing.
    numbers, names = _numbered([found[i] for i in order], config.classes)
    used = frozenset(file.name for file in files if file.name is not None)
    return Labels(numbers, names, ", ".join(file.origin for file in files), True, used)


def _chosen(listing: Listing, layout: Layout, config: DatasetConfig, nearby: list[list[bytes]]) -> list[_File]:
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
    except Refused as refusal:
        raise UserError(f"{where}: {refusal}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{where}: not a readable label file: it has more than {MOST_BYTES} bytes")
    return _File(shown(name), where, content, name)


def _entries(file: _File) -> Iterator[Entry]:
    """Read the entries of a label file.

    Raises:
        UserError: it is not understood.
    """
    try:
        text = file.content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        reason = f"{error.reason} at byte {error.start}; save it as UTF-8"
        raise UserError(f"{file.where}: not a readable label file: {reason}") from None
    read = {"json": _json, "jsonl": _json_lines, "csv": _csv}[file.origin.lower().rpartition(".")[2]]
    return read(file.where, text)


def _json(where: str, text: str) -> Iterator[Entry]:
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
        yield place, *entry


def _json_lines(where: str, text: str) -> Iterator[Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        entry = parse_json(line, f"{where}: {place}: not readable as JSON")
        if not isinstance(entry, dict) or FILE_NAME not in entry or LABEL not in entry:
            raise UserError(f'{where}: {place} must be {{"{FILE_NAME}": …, "{LABEL}": …}}, found {_shown_value(entry)}')
        yield place, entry[FILE_NAME], entry[LABEL]


def _csv(where: str, text: str) -> Iterator[Entry]:
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = [column.strip() for column in next(rows, [])]
        if header.count(FILE_NAME) != 1 or header.count(LABEL) != 1:
            columns = ", ".join(map(_shown_value, header)) or "nothing"
            raise UserError(f"{where}: its first line must name the columns {FILE_NAME} and {LABEL}, found {columns}")
        name, label = header.index(FILE_NAME), header.index(LABEL)
        for row in rows:
            if not row:
                continue
            place = f"line {rows.line_num}"
            if len(row) != len(header):
                raise UserError(f"{where}: {place} has {len(row)} values for {len(header)} columns")
            yield place, row[name], row[label].strip()
    except csv.Error as error:
        raise UserError(f"{where}: line {rows.line_num}: not readable as csv: {error}") from None


def _add(found: dict[int, tuple[str, int | str]], file: _File, bases: list[bytes], index: dict[bytes, int]) -> None:
    """Note the label of each image that a file names; its names start from the first of `bases` that fits."""
    base = None
    for entry, name, label in _entries(file):
        where = f"{file.where}: {entry}"
        if not isinstance(name, str) or not name:
            raise UserError(f"{where}: the name must be text, found {_shown_value(name)}")
        path = tidy(name.encode("utf-8", "surrogatepass"))
        if base is None:
            base = next((each for each in bases if each + path in index), bases[0])
        number = index.get(base + path)
        if number is None:
            raise UserError(f"{where}: {_shown_value(name)} is not among the {len(index)} images that are read")
        if number in found:
            raise UserError(f"{where}: {_shown_value(name)} has a label already; name each image once")
        found[number] = where, _checked(label, where)


def _checked(label: Any, where: str) -> int | str:
    """A label: a number from 0, or a class's name."""
    if isinstance(label, str) and re.fullmatch(r"-?[0-9]{1,18}", label):
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
    names = natural(values) if isinstance(example, str) else []
    last = names[-1] if names else max(values)
    where = next(where for where, label in found if label == last)
    gap = next((number for number in range(len(values)) if number not in values), None)
    if not names and gap is not None:
        raise UserError(
            f"{where}: the label is {_shown_value(last)}, but no image has {gap}; number classes without gaps"
        )
    if len(values) != classes:
        named = f"names {_some(names)}" if names else f"numbers 0..{last}"
        raise UserError(
            f"{where}: has {len(values)} classes ({named}), but classes is {classes}; set classes: {len(values)}"
        )
    numbers = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[label] if names else label for _, label in found], dtype=np.int64)
    return labels, [shown(name) for name in names]


def _some(names: list[str]) -> str:
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return ", ".join(shown(name) for name in names[:NAMES_SHOWN]) + more


def _kind(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "text", bool: "true or false"}.get(type(value), _shown_value(value))


def _shown_value(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return shown(text if len(text) <= 60 else f"{text[:59]}…")
