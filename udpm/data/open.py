"""Open the image source that a data set's configuration names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from udpm.config.dataset import OWN_CLASSES, DatasetConfig
from udpm.core.errors import UserError
from udpm.core.files import expanded
from udpm.core.seeds import derive_seed
from udpm.data.cifar import open_cifar10
from udpm.data.label_files import Labels
from udpm.data.labels import label_images
from udpm.data.layout import Layout, arrange
from udpm.data.listing import list_images, tidy
from udpm.data.source import Source, shown


def open_folder(config: DatasetConfig) -> Source:
    """The images of a folder or a .zip, with folders of splits in it or just images.

    Raises:
        UserError: not there, empty, a loop of links, splits or labels that are not understood, or not the classes that
            are configured.
    """
    assert config.path is not None
    listing = list_images(expanded(config.path, "path"), config.max_file_bytes, config.obtain)
    places = listing.places()
    layout = arrange(places, [tidy(name) for name in listing.others], config, listing.root)
    labels = label_images(listing, places, layout, config)
    order = np.concatenate(list(layout.splits.values()))
    folders = {split: [shown(name) for name in names] for split, names in layout.folders.items()}
    left_out = layout.left_out | listing.left_out(labels.used)
    return Source(
        splits={name: len(indices) for name, indices in layout.splits.items()},
        names=[listing.names[i] for i in order],
        keys=listing.keys[order],
        labels=labels.numbers,
        class_names=labels.names,
        reader=listing.reader,
        notes={"splits": folders, "labels": labels.origin, "left_out": left_out},
        warnings=_warnings(config, layout, labels),
        label_file=labels.from_file,
    )


def _warnings(config: DatasetConfig, layout: Layout, labels: Labels) -> list[str]:
    found = []
    test = [shown(name) for name in layout.folders.get("test", [])]
    if config.holdout and test:
        found.append(f"holdout: {config.holdout} is not used: {' and '.join(test)} is the test split")
    if labels.unused:
        found.append(f"{', '.join(labels.unused)} is not used: classes is 0, which means unlabelled")
    return found


def open_source(config: DatasetConfig) -> Source:
    """The images of a configured source.

    Raises:
        UserError: the data is missing, incomplete or unreadable, not as many as expected, or an extra is not installed.
    """
    source = {"digits": _digits, "cifar10": open_cifar10, "folder": open_folder}[config.source](config)
    _check_count(config, "training", source.splits["train"], config.expected_count)
    _check_count(config, "test", source.splits.get("test", 0), config.expected_test_count)
    return source


def _check_count(config: DatasetConfig, kind: str, found: int, expected: int | None) -> None:
    if expected is not None and found != expected:
        hint = f"; {config.obtain}" if config.obtain else ""
        raise UserError(f"{config.path or config.source}: has {found} {kind} images, expected {expected}{hint}")


@dataclass(frozen=True)
class ArrayReader:
    """Reads images that are in memory already.

    Attributes:
        pixels: (n, height, width, 3) uint8.
    """

    pixels: np.ndarray
    parallel: bool = False

    @property
    def identity(self) -> str:
        """SHA-256 of the pixels."""
        return hashlib.sha256(self.pixels.tobytes()).hexdigest()

    def load(self, name: bytes, key: np.ndarray) -> np.ndarray:
        """The image's pixels."""
        return self.pixels[key[0]]


def _digits(config: DatasetConfig) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("source digits: needs the digits extra: pip install 'udpm[digits]'") from None
    pixels, labels = load_digits(return_X_y=True)
    count = len(labels)
    if config.holdout >= count:
        raise UserError(f"holdout: {config.holdout} images are to be kept out of training, but there are {count}")
    # Grey levels 0..16 to 0..255; the order mixes writers, so it is shuffled once before the test split is cut off.
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.Generator(np.random.PCG64(derive_seed("digits", "split"))).permutation(count)
    splits = {"train": count - config.holdout}
    return Source(
        splits=splits | ({"test": config.holdout} if config.holdout else {}),
        names=[b"digit %d" % index for index in order],
        keys=order[:, None].astype(np.int64),
        labels=labels[order].astype(np.int64),
        class_names=OWN_CLASSES["digits"],
        reader=ArrayReader(np.repeat(grey[..., None], 3, axis=-1)),
        notes={"labels": "the digits"},
    )
