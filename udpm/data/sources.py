"""Where images come from: each source yields (RGB image, label) pairs, split by split, in a fixed order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from udpm.config.dataset import DatasetConfig
from udpm.core.errors import UserError
from udpm.core.seeds import derive_seed

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Split:
    """One split of a source.

    Attributes:
        name: "train" or "test".
        count: number of images.
        items: yields exactly `count` pairs of an RGB image and its label (0 where there are no classes).
    """

    name: str
    count: int
    items: Iterator[tuple[Image.Image, int]]


def open_source(config: DatasetConfig) -> list[Split]:
    """The splits of a configured source, training first.

    Raises:
        UserError: the data is missing, incomplete or unreadable, or an extra is not installed.
    """
    return {"digits": _digits, "cifar10": _cifar10, "folder": _folder}[config.source](config)


def _digits(config: DatasetConfig) -> list[Split]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UserError("source digits: needs the digits extra: pip install 'udpm[digits]'") from None
    pixels, labels = load_digits(return_X_y=True)
    # Grey levels 0..16 to 0..255; the order mixes writers, so it is shuffled once before the test split is cut off.
    grey = np.rint(pixels.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    order = np.random.Generator(np.random.PCG64(derive_seed("digits", "split"))).permutation(len(grey))
    items = [(Image.fromarray(grey[index]).convert("RGB"), int(labels[index])) for index in order]
    return _held_out(config, items)


def _cifar10(config: DatasetConfig) -> list[Split]:
    from udpm.core import vision

    vision.enable()
    try:
        from torchvision.datasets import CIFAR10
    except ImportError:
        raise UserError("source cifar10: needs torchvision: pip install 'udpm[lpips]'") from None
    splits = []
    for name in ("train", "test"):
        try:
            images = CIFAR10(config.path, train=name == "train", download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{config.path}: CIFAR-10 is not there and cannot be downloaded ({error}); put cifar-10-python.tar.gz "
                "from https://www.cs.toronto.edu/~kriz/cifar.html into that folder"
            ) from None
        splits.append(Split(name, len(images), iter(images)))
    return splits


def _folder(config: DatasetConfig) -> list[Split]:
    root = Path(config.path)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; `path` must name the folder that holds the images")
    if (root / "train").is_dir():
        roots = [(name, root / name) for name in ("train", "test") if (root / name).is_dir()]
        return [Split(name, len(found), _read(found)) for name, found in ((n, _find(r, config)) for n, r in roots)]
    found = _find(root, config)
    order = np.random.Generator(np.random.PCG64(derive_seed("folder", "split"))).permutation(len(found))
    return _held_out(config, [found[index] for index in order] if config.holdout else found, _read)


def _find(root: Path, config: DatasetConfig) -> list[tuple[Path, int]]:
    """Image files below `root` in an order that does not depend on the file system, with their labels."""
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise UserError(f"{root}: no images in it; looked for {', '.join(sorted(SUFFIXES))}")
    if not config.classes:
        return [(path, 0) for path in files]
    names = sorted({path.relative_to(root).parts[0] for path in files if len(path.relative_to(root).parts) > 1})
    if len(names) != config.classes:
        raise UserError(f"{root}: has {len(names)} class folders, but classes is {config.classes}")
    labels = {name: index for index, name in enumerate(names)}
    return [(path, labels[path.relative_to(root).parts[0]]) for path in files if path.parent != root]


def _read(files: list[tuple[Path, int]]) -> Iterator[tuple[Image.Image, int]]:
    for path, label in files:
        try:
            with Image.open(path) as image:
                yield image.convert("RGB"), label
        except (OSError, UnidentifiedImageError) as error:
            raise UserError(f"{path}: not a readable image: {error}") from None


def _held_out(config: DatasetConfig, items: list, read=iter) -> list[Split]:
    if config.holdout >= len(items):
        raise UserError(f"holdout: {config.holdout} images are to be kept out of training, but there are {len(items)}")
    cut = len(items) - config.holdout
    splits = [Split("train", cut, read(items[:cut]))]
    return [*splits, Split("test", config.holdout, read(items[cut:]))] if config.holdout else splits
