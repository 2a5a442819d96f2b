"""Description of images before they are prepared: how many, which splits and classes, and a side to prepare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.data.decode import ImageError, Preprocessing, quiet_decoders, to_rgb
from udpm.data.labels import WrongClasses
from udpm.data.open import open_folder
from udpm.data.source import Source, shown

NAMES_SHOWN = 20
LOOKED_AT = 8
"""Images to decode, from the first to the last."""
USUAL_SIDE, LARGEST_SIDE = 64, 256
"""Side for images of any size, and largest side at which images that are square and of one size stay as they are."""


def describe_images(path: Path, skip: bool = False) -> tuple[dict[str, Any], dict[str, int], list[tuple[int, int]]]:
    """Describe a folder, .zip, .npz, .npy or Parquet files of images.

    Args:
        path: theirs.
        skip: pass over images that cannot be read, unless that is all that are looked at.

    Returns:
        Facts: numbers of images by split, class names, size of images; options of `udpm prepare`: side and classes; and
        width and height of every image that was looked at.

    Raises:
        UserError: it cannot be prepared as it is; or an image that is looked at cannot be read.
    """
    unlabelled = DatasetConfig(source="folder", path=str(path), side=1)
    # An .npz may be unpacked for each opening, so a labelled source is not opened again without labels.
    classes, labelled, why_not = _classes(unlabelled)
    source = labelled or open_folder(unlabelled)
    sizes = _sizes(path, source, skip)
    facts: dict[str, Any] = {"images": len(source.names), "splits": source.splits, "classes": classes}
    if labelled is not None:
        facts |= {"class_names": labelled.class_names[:NAMES_SHOWN], "labels": labelled.notes["labels"]}
    elif why_not:
        facts["labels"] = f"not usable: {why_not}"
    widths, heights = ([size[axis] for size in sizes] for axis in (0, 1))
    facts |= {"width": _range(widths), "height": _range(heights), "left_out": source.notes["left_out"]}
    return facts, {"side": _side(sizes)} | ({"classes": classes} if classes else {}), sizes


def _sizes(path: Path, source: Source, skip: bool) -> list[tuple[int, int]]:
    found, unreadable = [], []
    for number in range(0, len(source.names), max(1, len(source.names) // LOOKED_AT)):
        name = source.names[number]
        try:
            with quiet_decoders():
                found.append(to_rgb(source.reader.load(name, source.keys[number]), Preprocessing(1))[0].size)
        except ImageError as refusal:
            unreadable.append(f"{path}: {shown(name)}: {refusal}; repair or remove it")
    if unreadable and not (skip and found):
        raise UserError(unreadable[0])
    return found


def _classes(unlabelled: DatasetConfig) -> tuple[int, Source | None, str]:
    """Find the number of classes with which the images can be prepared, and open them so.

    Returns:
        Number of classes, 0 without usable labels; the source, None without; and why labels cannot be used, empty if
        they can, or if there are none.
    """
    classes = 2
    for _ in range(2):
        try:
            return classes, open_folder(unlabelled.model_copy(update={"classes": classes})), ""
        except WrongClasses as wrong:
            classes, why_not = wrong.found, str(wrong)
            if classes < 2:
                return 0, None, ""
        except UserError as mistake:
            return 0, None, str(mistake)
    return 0, None, why_not


def _side(sizes: list[tuple[int, int]]) -> int:
    smallest = min(min(size) for size in sizes)
    alike = all(size == (smallest, smallest) for size in sizes)
    if alike and smallest <= LARGEST_SIDE and smallest % 4 == 0:
        return smallest
    return min(USUAL_SIDE, 1 << (smallest.bit_length() - 1))


def _range(values: list[int]) -> int | list[int]:
    return values[0] if min(values) == max(values) else [min(values), max(values)]
