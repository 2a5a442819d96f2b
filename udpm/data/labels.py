"""Labels of a folder's images: from a label file, else from the class folders that contain them."""

from __future__ import annotations

import os
import re
from itertools import chain, pairwise
from pathlib import Path

import numpy as np

from udpm.config.dataset import LABELLED_FOLDERS, DatasetConfig
from udpm.core.errors import UserError
from udpm.data.label_files import (
    BLOCK,
    PADDED,
    Labels,
    check_unread,
    chosen_files,
    labels_of_files,
    natural,
    refuse_files_elsewhere,
    some_of,
    usual_files,
)
from udpm.data.layout import Layout, unwrapped
from udpm.data.listing import OTHER_PICTURES, Listing, tidy
from udpm.data.source import shown


def label_images(listing: Listing, places: list[bytes], layout: Layout, config: DatasetConfig) -> Labels:
    """Labels of all images in the order of the splits.

    Args:
        listing: of all files.
        places: the images' names, folders separated by slashes.
        layout: their splits.
        config: of the data set.

    Raises:
        UserError: a label file that is not understood or does not fit the images, several of them, one in
            another folder, one with a column of splits, or classes other than those that are configured.
    """
    order = np.concatenate(list(layout.splits.values()))
    nearby = usual_files(listing, layout)
    if not config.classes:
        unused = tuple(shown(name) for names in nearby for name in names)
        labels = Labels(np.zeros(len(order), np.int64), [], "none", unused=unused)
    elif config.labels == LABELLED_FOLDERS or (config.labels is None and not nearby):
        if config.labels is None:
            refuse_files_elsewhere(listing)
        labels = _of_folders(listing, places, order, layout, config)
    else:
        files = chosen_files(listing, layout, config, nearby)
        labels = labels_of_files(places, order, layout, config, files)
    # A .json has no columns.
    unread = [name for name in chain(*nearby) if name not in labels.used and not name.lower().endswith(b".json")]
    if config.splits is None:
        check_unread(listing, places, layout, unread)
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
            f"{root}: its folders ({some_of(found)}) look like numbered blocks of images, not classes, and "
            "no dataset.json was found; set classes: 0, labels: FILE, or labels: folders if they are classes"
        )
    if len(found) != config.classes:
        raise UserError(
            f"{root}: has {len(found)} class folders, but classes is {config.classes}; these are {some_of(found)}: "
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
    """Detect folders numbered as by StyleGAN (image 1234 in 00001) or FFHQ (image 1234 in 01000), or in another way."""
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
    # Shorter names are those of blocks only if padded with zeros, and one image per folder is no evidence.
    filled = len({len(top) for top in tops}) == 1 and tops[0].startswith(b"0") and len(tops[0]) > 1
    if not padded and not (filled and len(names) > len(tops)):
        return False
    runs = {top: [re.findall(rb"[0-9]+", image) for image in images] for top, images in blocks.items()}
    if not all(run for found in runs.values() for run in found):
        return False
    numbers = {top: [int(run[0]) for run in found] for top, found in runs.items()}
    if len(names) > len(tops) and all(set(numbers[top]) == {int(top)} for top in tops):
        # Images that bear the number of their class: 07/07_0001.png.
        return False
    # A tool that cuts blocks of another size numbers on from folder to folder all the same.
    return all(max(numbers[one]) < min(numbers[other]) for one, other in pairwise(tops))


# --- label files
