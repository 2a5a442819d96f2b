"""A data set: where its images come from, how they are prepared, and its classes by name and number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from udpm.config.validation import AnyPath, Classes, NonNegativeInt, PositiveInt, Section, Threads, check
from udpm.core.errors import UserError

NAMES_SHOWN = 8
LONGEST_FOLDER = 60
_UNSAFE = re.compile(r"[/\\:*?\"<>|\x00-\x1f\x7f]|^\.+|^-|[. ]+$")
"""Characters that are unsafe in a folder's name."""


def class_number(label: int | str, names: Sequence[str], classes: int, where: str = "labels") -> int:
    """Resolve a label to a class: by name, else by number.

    If classes are named by numbers, a number is always a name: `10` is never the eleventh class.

    Args:
        label: name or number.
        where: option or key that the label came from, for the error.

    Raises:
        UserError: no class has that name or number.
    """
    text = str(label)
    if text in names:
        return names.index(text)
    plain = not any(name.isdecimal() for name in names)
    if text.isdecimal() and (plain or list(names) == [str(number) for number in range(classes)]):
        if int(text[:18]) >= classes:
            hint = _list_names(names) if plain else ""
            raise UserError(f"{where}: must be in 0..{classes - 1}, got {text[:18]}{hint}")
        return int(text)
    if not names:
        raise UserError(f"{where}: the class names are unknown; expected numbers 0..{classes - 1}, got {text!r}")
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else _list_names(names)
    raise UserError(f"{where}: no class is called {text!r}{hint}")


def _list_names(names: Sequence[str]) -> str:
    """List the class names, for the end of an error."""
    if not names:
        return ""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"; the classes are {', '.join(names[:NAMES_SHOWN])}{more}"


def class_title(label: int, names: Sequence[str]) -> str:
    """Return the title of a class in figures: its name, or "class 3" if it has none or its name is a number."""
    name = names[label] if label < len(names) else str(label)
    return f"class {name}" if name.isdecimal() else name


def class_folders(names: Sequence[str], classes: int, taken: Iterable[str] = ()) -> list[str]:
    """Return folder names for classes: their names without unsafe characters, or all numbers if those would collide.

    They also collide with the names in `taken`, which the same folder has already.
    """
    folders = [_UNSAFE.sub("_", name) or str(number) for number, name in enumerate(names)]
    different = {name.casefold() for name in folders} - {name.casefold() for name in taken}
    if len(folders) != classes or len(different) != classes or max(map(len, folders), default=0) > LONGEST_FOLDER:
        return [str(number) for number in range(classes)]
    return folders


CIFAR_SIDE = 32
LABELLED_FOLDERS = "folders"
LABEL_SUFFIXES = (".json", ".jsonl", ".csv")
OWN_CLASSES = {
    "digits": [str(digit) for digit in range(10)],
    "cifar10": ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"],
}
"""Class names of the sources that come with labels."""

Channel = Annotated[int, Field(ge=0, le=255)]
Folders = str | Annotated[list[str], Field(min_length=1)]


class SplitFolders(Section):
    """Folders of a data set's splits, below `path`."""

    train: Folders
    """Training images."""
    test: Folders | None = None
    """Images kept out of training."""

    @check
    def _apart(self) -> None:
        taken: list[tuple[str, ...]] = []
        for split, folders in self.folders.items():
            for name in folders:
                parts = PurePosixPath(name).parts
                if not parts or parts[0] == "/" or ".." in parts:
                    raise ValueError(f"{split}: must name folders below path, got {name!r}")
                if any(parts[: len(other)] == other[: len(parts)] for other in taken):
                    raise ValueError(f"{split}: {name!r} and another folder share images")
                taken.append(parts)

    @property
    def folders(self) -> dict[str, list[str]]:
        """Folders of each split."""
        given = {"train": self.train, "test": self.test or []}
        return {split: [names] if isinstance(names, str) else list(names) for split, names in given.items()}


Splits = Annotated[
    Annotated[Literal["none"], Tag("str")] | Annotated[SplitFolders, Tag("dict")],
    Discriminator(lambda value: "str" if isinstance(value, str) else "dict"),
]


class DatasetConfig(Section):
    """One file of ``config/datasets/``."""

    description: str = ""
    """One-line description of the images, shown in reports."""
    source: Literal["digits", "cifar10", "folder"]
    """digits: scikit-learn's handwritten digits, installed with the package. cifar10: the official batches, python or
    binary, read from a folder or an archive under `path`, else downloaded there. folder: a tree of images under `path`,
    or a .zip of one, with ``train/`` and ``test/`` folders or images only; or an .npz or .npy of uint8 images; or
    Parquet files as of the Hugging Face Hub, one or a folder of them."""
    path: AnyPath | None = None
    """Folder that holds the data, or a file of it (sources cifar10 and folder). `~` and `$NAME` are expanded."""
    obtain: str = ""
    """Instructions for getting the images; shown if they are missing or their number is unexpected."""
    side: PositiveInt
    """Side of the prepared images in pixels; images are resized (bicubic, antialiased) and centre-cropped to it."""
    classes: Classes = 0
    """Number of classes; 0 means unlabelled. A folder's labels come from a label file, else from its first level of
    subfolders, sorted alphabetically with numbers in natural order (2 before 10)."""
    labels: AnyPath | None = None
    """Source of a folder's labels. Default: ``dataset.json`` (StyleGAN, EDM), ``metadata.jsonl`` or ``metadata.csv``
    (Hugging Face: file_name, label), case-insensitive, if the folder or one of its splits has one; else class folders,
    unless another file may hold labels. FILE.json, FILE.jsonl or FILE.csv: this file, in `path` or anywhere else.
    folders: class folders; label files are ignored."""
    splits: Splits | None = None
    """Folders of the splits. Default: the usual names, case-insensitive (train, training, training_set; test, testing,
    test_set; val, valid, validation). Validation images become the `test` split if there is no other, else they are
    left out. {train: NAME, test: NAME}: these folders, or lists of folders; everything else is left out. none: no
    folder is a split, not even one called train. Splits are never read from a label file: one with a split column is
    refused unless this key is set."""
    holdout: NonNegativeInt = 0
    """Number of images to hold out of training as the `test` split if the source has no split."""
    licence: str = ""
    """Licence or terms of the images; shown in reports."""
    expected_count: PositiveInt | None = Field(default=None)
    """Required number of images in the source's `train` split; preparation fails on any other count."""
    expected_test_count: PositiveInt | None = Field(default=None)
    """Required number of images in the source's `test` split; default: any."""
    background: Annotated[list[Channel], Field(min_length=3, max_length=3)] = [255, 255, 255]
    """Red, green and blue (0..255) behind the transparent parts of images."""
    on_error: Literal["fail", "skip"] = "fail"
    """Action for images that cannot be read or are smaller than `side`. fail: list them and write nothing. skip: leave
    them out and list them in ``dataset.json``."""
    max_pixels: PositiveInt = 100_000_000
    """Largest image to decode, width × height; larger ones count as unreadable. A small file can claim any size, and a
    pixel takes up to 16 bytes of memory."""
    max_file_bytes: PositiveInt = 268_435_456
    """Largest image file to read, after unpacking from an archive; larger ones count as unreadable."""
    check_md5: bool = True
    """Source cifar10: refuse batches whose MD5 is not the official one."""
    workers: Threads | None = None
    """Processes that decode and resize; default: one per available core. Does not change the images. The workflow
    requests this many cores."""

    @check
    def _path_where_needed(self) -> None:
        if self.source == "digits" and self.path is not None:
            raise ValueError("path: source digits does not take one; leave it out")
        if self.source != "digits" and self.path is None:
            raise ValueError(f"path: is missing; source {self.source} needs the folder that holds the data")
        if self.source == "cifar10" and self.side > CIFAR_SIDE:
            raise ValueError(f"side: must be at most {CIFAR_SIDE}, the side of CIFAR-10's images, got {self.side}")
        if self.source == "folder" and self.side**2 > self.max_pixels:
            pixels = f"{self.side}×{self.side} pixels"
            raise ValueError(f"side: images of {pixels} have more than max_pixels {self.max_pixels}")

    @check
    def _labels_where_they_are(self) -> None:
        own = len(OWN_CLASSES.get(self.source, []))
        if own and self.classes not in (0, own):
            raise ValueError(f"classes: source {self.source} has {own}, got {self.classes}; set {own}, or 0 for none")
        for key in ("labels", "splits"):
            if own and getattr(self, key) is not None:
                raise ValueError(f"{key}: only for source folder, but source is {self.source}; leave it out")
        if self.labels is not None and not self.classes:
            raise ValueError("labels: set, but classes is 0, which means unlabelled; set the number of classes too")
        if self.labels not in (None, LABELLED_FOLDERS) and not self.labels.lower().endswith(LABEL_SUFFIXES):
            suffixes = ", ".join(LABEL_SUFFIXES)
            raise ValueError(f"labels: must be {LABELLED_FOLDERS} or a file {suffixes}, got {self.labels!r}")
