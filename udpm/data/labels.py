"""Labels of a folder's images, from label files or class folders."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from udpm.config.dataset import LABELLED_FOLDERS, DatasetConfig
from udpm.core.errors import UserError
from udpm.data.label_files import (
    FILE_NAME,
    LABEL,
    Columns,
    LabelFile,
    check_unread,
    chosen_files,
    read_rows,
    refuse_files_elsewhere,
    shown_value,
    some_of,
    usual_files,
)
from udpm.data.layout import Layout, unwrapped
from udpm.data.source import OTHER_PICTURES, Listing, shown, tidy

BLOCK = 1000
"""Number of images that StyleGAN's and FFHQ's tools put into one folder."""
PADDED = 5
"""Number of digits in the names of those folders."""
_NO_NAME = re.compile(
    r"\s*|[-+]?[0-9.,]+(e[-+]?[0-9]+)?|[<#]?n/?a>?|n\.a\.?|[-+]?nan|nat|null|none|nil|[-–—]+|\?+|_+", re.IGNORECASE
)
"""Text that is not a class name: empty, a missing value of a table, or a number that is not whole."""


class WrongClasses(UserError):
    """Other classes than configured; `found` is their number."""

    def __init__(self, mistake: str, found: int) -> None:
        super().__init__(mistake)
        self.found = found


@dataclass(frozen=True)
class Labels:
    """Labels of images.

    Attributes:
        numbers: (n,) int64; all zero without classes.
        names: class names by label; empty if classes have none.
        origin: description of the labels' origin.
        from_file: True if they come from a file.
        used: names of label files that were read, as in the listing.
        unused: label files, columns or arrays that were not read because `classes` is 0.
    """

    numbers: np.ndarray
    names: list[str]
    origin: str
    from_file: bool = False
    used: frozenset[bytes] = frozenset()
    unused: tuple[str, ...] = ()


def label_images(listing: Listing, paths: list[bytes], layout: Layout, config: DatasetConfig) -> Labels:
    """Label all images, in the order of the splits; in their `paths`, slashes separate folders.

    Raises:
        UserError: a label file that is invalid, does not match the images, is in another folder, or has a column of
            splits; several label files; or other classes than configured.
    """
    order = np.concatenate(list(layout.splits.values()))
    nearby = usual_files(listing, layout)
    if not config.classes:
        unused = tuple(shown(name) for names in nearby for name in names)
        labels = Labels(np.zeros(len(order), np.int64), [], "none", unused=unused)
    elif config.labels == LABELLED_FOLDERS or (config.labels is None and not nearby):
        if config.labels is None:
            refuse_files_elsewhere(listing)
        labels = _of_folders(listing, paths, order, layout, config)
    else:
        files = chosen_files(listing, layout, config, nearby)
        labels = labels_of_files(paths, order, layout, config, files)
    # A .json has no columns.
    unread = [name for name in chain(*nearby) if name not in labels.used and not name.lower().endswith(b".json")]
    if config.splits is None:
        check_unread(listing, paths, layout, unread)
    if config.classes:
        _check_classes(listing.root, layout, config, labels)
    return labels


def _check_classes(root: Path, layout: Layout, config: DatasetConfig, labels: Labels) -> None:
    count = len(layout.splits["train"])
    absent = set(range(config.classes)) - set(np.unique(labels.numbers[:count]).tolist())
    if absent:
        number = min(absent)
        named = labels.names[number] if labels.names else number
        raise UserError(f"{root}: class {named} has no training image ({labels.origin}); leave it out or add some")


def _of_folders(
    listing: Listing, paths: list[bytes], order: np.ndarray, layout: Layout, config: DatasetConfig
) -> Labels:
    """Label each image by the first folder below its split, or below the folder around all images."""
    root, names = listing.root, [_below(paths[i], layout.below) for i in order]
    around = unwrapped(names) if config.classes > 1 else b""
    names = [name[len(around) :] for name in names]
    outside = [paths[i] for i, name in zip(order, names, strict=True) if b"/" not in name]
    if outside:
        where = f"{shown(outside[0])} and {len(outside) - 1} more are" if outside[1:] else f"{shown(outside[0])} is"
        mistake = (
            f"{root}: {where} not in a class folder, but classes is {config.classes}; set classes: 0, or name a label "
            "file (labels: FILE)"
        )
        raise UserError(mistake) if len(outside) < len(names) else WrongClasses(mistake, 0)
    tops = [os.fsdecode(name.partition(b"/")[0]) for name in names]
    found = natural(set(tops))
    if config.labels is None and _are_blocks(names):
        raise UserError(
            f"{root}: its folders ({some_of(found)}) look like numbered blocks of images, not classes, and "
            "no dataset.json was found; set classes: 0, labels: FILE, or labels: folders if they are classes"
        )
    if len(found) != config.classes:
        raise WrongClasses(
            f"{root}: has {len(found)} class folders, but classes is {config.classes}; these are {some_of(found)}: "
            f"set classes: {len(found)}, or splits, if some of them are splits",
            len(found),
        )
    if config.classes > 1:
        _check_others(listing, [folder + around for folder in layout.below], set(found))
    numbers = {name: number for number, name in enumerate(found)}
    labels = np.fromiter((numbers[top] for top in tops), np.int64, len(tops))
    return Labels(labels, [shown(os.fsencode(name)) for name in found], "class folders")


def _below(path: bytes, folders: list[bytes]) -> bytes:
    return next(path[len(folder) :] for folder in folders if path.startswith(folder))


def _check_others(listing: Listing, folders: list[bytes], found: set[str]) -> None:
    """Check that no class has only images of kinds that are not read."""
    for name in listing.others:
        path = tidy(name)
        if path.lower().endswith(OTHER_PICTURES) and path.startswith(tuple(folders)):
            top, slash, _ = _below(path, folders).partition(b"/")
            if slash and os.fsdecode(top) not in found:
                raise UserError(
                    f"{listing.root}: {shown(name)} is of a kind that is not read, and its folder {shown(top)}/ has no "
                    "other images; convert them, or remove the folder"
                )


def _are_blocks(names: list[bytes]) -> bool:
    """Detect folders of numbered blocks, as by StyleGAN (image 1234 in 00001) or FFHQ (image 1234 in 01000)."""
    blocks: dict[bytes, list[bytes]] = {}
    for name in names:
        top, _, rest = name.partition(b"/")
        blocks.setdefault(top, []).append(rest.rpartition(b"/")[2])
    if len(blocks) < 2 or not all(top.isdigit() for top in blocks):
        return False
    tops = sorted(blocks, key=int)
    padded = all(len(top) >= PADDED for top in tops)
    if padded and all(len(blocks[top]) == BLOCK for top in tops[:-1]) and len(blocks[tops[-1]]) <= BLOCK:
        return True
    # Shorter names indicate blocks only if padded with zeros, and one image per folder is no evidence.
    filled = len({len(top) for top in tops}) == 1 and tops[0].startswith(b"0") and len(tops[0]) > 1
    if not padded and not (filled and len(names) > len(tops)):
        return False
    runs = {top: [re.findall(rb"[0-9]+", image) for image in images] for top, images in blocks.items()}
    if not all(run for found in runs.values() for run in found):
        return False
    numbers = {top: [int(run[0]) for run in found] for top, found in runs.items()}
    if len(names) > len(tops) and all(set(numbers[top]) == {int(top)} for top in tops):
        # Names begin with the class's number: 07/07_0001.png.
        return False
    # Blocks of any size continue the numbers of the previous folder.
    return all(max(numbers[one]) < min(numbers[other]) for one, other in pairwise(tops))


def natural(names: Iterable[str]) -> list[str]:
    """Sort names by characters, and whole numbers in them by value: 2 before 10."""
    names = list(names)
    width = max((len(run) for name in names for run in re.findall(r"[0-9]+", name)), default=0)
    if width > 255:
        return sorted(names)
    return sorted(names, key=lambda name: (re.sub(r"[0-9]+", lambda run: run[0].rjust(width, "0"), name), name))


def labels_of_files(
    paths: list[bytes], order: np.ndarray, layout: Layout, config: DatasetConfig, files: list[LabelFile]
) -> Labels:
    """Label images by label files, which must list every image once."""
    found = _found(files, paths, layout, config)
    bare = [paths[i] for i in order if i not in found]
    if bare:
        sources = ", ".join(file.where for file in files)
        more = f" and {len(bare) - 1} more" if bare[1:] else ""
        raise UserError(f"{sources}: has no label for {shown(bare[0])}{more}; add it, or remove the image")
    # Ignore labels of images outside the splits.
    numbers, names = _numbered([found[i] for i in order], config.classes)
    used = frozenset(file.name for file in files if file.name is not None)
    return Labels(numbers, names, ", ".join(file.origin for file in files), True, used)


def _found(
    files: list[LabelFile], paths: list[bytes], layout: Layout, config: DatasetConfig
) -> dict[int, tuple[str, int | str]]:
    """Read the label of each image in the files, and its position."""
    index = {path: number for number, path in enumerate(paths)}
    found: dict[int, tuple[str, int | str]] = {}
    written: dict[int | str, tuple[str, str]] = {}
    for file in files:
        columns = Columns(layout)
        for where, values, number in read_rows(file, layout, index, (FILE_NAME, LABEL)):
            if number is None or number in found:
                name = shown_value(values[FILE_NAME])
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
    """Check and convert a label: a number from 0, or a class name."""
    if isinstance(label, str):
        label = label.strip()
        if re.fullmatch(r"-?[0-9]{1,18}", label):
            # CSV contains only text.
            label = int(label)
    number = isinstance(label, int) and not isinstance(label, bool)
    if not number and (not isinstance(label, str) or _NO_NAME.fullmatch(label)):
        raise UserError(f"{where}: the label must be a whole number or a name, found {shown_value(label)}")
    if number and label < 0:
        raise UserError(f"{where}: the label is {label}; labels are numbers from 0, or names")
    return label


def _numbered(found: Sequence[tuple[str, int | str]], classes: int) -> tuple[np.ndarray, list[str]]:
    """Convert labels to numbers 0..classes - 1; also return the class names if the labels are names."""
    first, example = found[0]
    for where, label in found:
        if isinstance(label, str) != isinstance(example, str):
            raise UserError(
                f"{where}: the label {shown_value(label)} is of another kind than {shown_value(example)} in {first}; "
                "write all as numbers or all as names"
            )
    values = {label for _, label in found}
    names = natural(label for label in values if isinstance(label, str))
    last = names[-1] if names else max(values)
    where = next(where for where, label in found if label == last)
    gap = next((number for number in range(len(values)) if number not in values), None)
    if not names and gap is not None:
        raise UserError(
            f"{where}: the label is {shown_value(last)}, but no image has {gap}; number classes without gaps"
        )
    if len(values) != classes:
        named = f"names {some_of(names)}" if names else f"numbers 0..{last}"
        raise WrongClasses(
            f"{where}: has {len(values)} classes ({named}), but classes is {classes}; set classes: {len(values)}",
            len(values),
        )
    numbers: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    labels = np.array([numbers[label] if names else label for _, label in found], dtype=np.int64)
    return labels, [shown(name) for name in names]


def label_rows(
    root: Path,
    names: list[bytes],
    values: np.ndarray,
    class_names: list[str],
    layout: Layout,
    config: DatasetConfig,
    origin: str,
) -> Labels:
    """Label images by numbers that are stored with them.

    Args:
        names: (n,) names of the images in the order of the splits, for errors.
        values: (n,) int64.
        class_names: by number; empty if unknown.

    Raises:
        UserError: a number out of range, or other classes than configured.
    """
    distinct, first, where = np.unique(values, return_index=True, return_inverse=True)
    found = [(f"{root}: {shown(names[i])}", int(value)) for value, i in zip(distinct, first, strict=True)]
    for place, value in found:
        _checked(value, place)
        if class_names and value >= len(class_names):
            raise UserError(f"{place}: the label is {value}, but there are {len(class_names)} class names")
    if class_names and len(class_names) != config.classes:
        raise WrongClasses(
            f"{root}: has {len(class_names)} classes (names {some_of(class_names)}), but classes is {config.classes}; "
            f"set classes: {len(class_names)}",
            len(class_names),
        )
    numbers = values if class_names else _numbered(found, config.classes)[0][where]
    labels = Labels(numbers, [shown(name) for name in class_names], origin, True)
    _check_classes(root, layout, config, labels)
    return labels


def list_warnings(config: DatasetConfig, layout: Layout, labels: Labels) -> list[str]:
    """List what a configuration asks for or a source holds that is not used, for the user."""
    found = []
    test = [shown(name) for name in layout.folders.get("test", [])]
    if config.holdout and test:
        found.append(f"holdout: {config.holdout} is not used: {' and '.join(test)} is the test split")
    if labels.unused:
        found.append(f"{', '.join(labels.unused)} is not used, since classes is 0 (unlabelled)")
    return found
