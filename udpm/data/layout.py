"""Assign the images of a tree to splits by the names of its folders."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np

from udpm.config.dataset import DatasetConfig, SplitFolders
from udpm.core.errors import UserError
from udpm.core.seeds import derive_seed
from udpm.data.source import shown

_SPLIT = re.compile(
    rb"(?:(?P<train>train|training)|(?P<test>test|testing)|(?P<val>val|valid|validation))"
    rb"(?:[ _-]?(?:set|split|data|images|imgs|\d{4}))?",
    re.IGNORECASE,
)
"""Usual names of a split's folder: train, Training, test_set, val2017, …"""
KEEP_AS_CLASSES = "splits: none, if they are no splits"


@dataclass(frozen=True)
class Layout:
    """Layout of a tree of images.

    Attributes:
        roots: folders around all images, outermost first: b"", and each single folder that holds all the rest.
        splits: by split, training first, indices of its images.
        folders: by split, the folders it was taken from; empty where the tree has none.
        left_out: number of images outside the splits, by folder.
    """

    roots: list[bytes]
    splits: dict[str, np.ndarray]
    folders: dict[str, list[bytes]]
    left_out: dict[str, int]

    @property
    def below(self) -> list[bytes]:
        """The folders that contain the class folders."""
        return [folder for folders in self.folders.values() for folder in folders] or [self.roots[-1]]


def arrange(places: list[bytes], config: DatasetConfig, root: Path) -> Layout:
    """Find the splits of a tree.

    Args:
        places: the images' names, folders separated by slashes.
        config: of the data set.
        root: of the tree, for errors.

    Raises:
        UserError: names that can be read in several ways, no training images, or too many to be held out.
    """
    if isinstance(config.splits, SplitFolders):
        return _named(places, config, root)
    roots = _roots(places, config)
    inside = roots[-1]
    tops = Counter(_top(name, inside) for name in places)
    found: dict[str, list[bytes]] = {}
    if config.splits is None:
        for top in sorted(top for top in tops if top):
            if split := split_of(top):
                found.setdefault(split, []).append(top)
    if not found:
        if config.splits is None:
            _refuse_splits_below(places, inside, root)
        return Layout(roots, _held_out(np.arange(len(places)), config, root), {}, {})
    _check_found(found, tops, config, root)
    test = found.get("test") or found.get("val") or []
    folders = {"train": [inside + top + b"/" for top in found["train"]], "test": [inside + top + b"/" for top in test]}
    return _split(places, config, root, roots, folders)


def split_of(name: bytes) -> str | None:
    """The split whose usual name this is: train, test or val."""
    match = _SPLIT.fullmatch(name)
    return match.lastgroup if match else None


def unwrapped(names: list[bytes]) -> bytes:
    """The nested folders around all names, down to the innermost one that contains a folder."""
    prefix = b""
    while True:
        tops = {_top(name, prefix) for name in names}
        (top,) = tops if len(tops) == 1 else (b"",)
        inner = prefix + top + b"/"
        if not top or not any(b"/" in name[len(inner) :] for name in names):
            return prefix
        prefix = inner


def _roots(places: list[bytes], config: DatasetConfig) -> list[bytes]:
    """The root and the single folders around everything, which are neither a split nor the only class."""
    roots = [b""]
    around = unwrapped(places)
    if config.classes == 1 and not any(split_of(_top(name, around)) for name in places):
        around = b""
    for part in around.split(b"/")[:-1]:
        if config.splits is None and split_of(part):
            break
        roots.append(roots[-1] + part + b"/")
    return roots


def _top(name: bytes, inside: bytes) -> bytes:
    """The first folder of a name below `inside`; empty for a file directly in it."""
    top, slash, _ = name[len(inside) :].partition(b"/")
    return top if slash else b""


def _check_found(found: dict[str, list[bytes]], tops: Counter, config: DatasetConfig, root: Path) -> None:
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(
                f"{root}: {_told(names)} are both usual names of {split} images; choose with splits: "
                f"{{train: …, test: …}}, or {KEEP_AS_CLASSES}"
            )
    splits = [name for names in found.values() for name in names]
    if "train" not in found:
        raise UserError(
            f"{root}: {_told(splits)} is a usual name of a split, but there is no folder of training images; name it "
            f"by splits: {{train: …, test: …}}, or set {KEEP_AS_CLASSES}"
        )
    others = sorted(top for top in tops if top and top not in splits)
    if others and (config.classes or len(found) == 1):
        raise UserError(
            f"{root}: {_told(splits)} looks like a split, but {_told(others)} is next to it; set splits: none if "
            f"all are classes or plain folders; splits: {{train: {shown(found['train'][0])}, …}} leaves out the others"
        )


def _refuse_splits_below(places: list[bytes], inside: bytes, root: Path) -> None:
    """Folders of classes that hold folders of splits: their test images must not become training images."""
    kinds: dict[str, bytes] = {}
    for name in places:
        parts = name[len(inside) :].split(b"/")[:-1]
        for depth in range(1, len(parts)):
            if split := split_of(parts[depth]):
                kinds.setdefault(split, b"/".join(parts[: depth + 1]))
    if "train" in kinds and len(kinds) > 1:
        raise UserError(
            f"{root}: {_told(list(kinds.values()))} look like splits below other folders; move them to the top, name "
            f"folders by splits: {{train: …, test: …}}, or set {KEEP_AS_CLASSES}"
        )


def _told(names: list[bytes], most: int = 3) -> str:
    shown_names = [f"{shown(name)}/" for name in names[:most]]
    return ", ".join(shown_names) + (f" and {len(names) - most} more" if len(names) > most else "")


def _named(places: list[bytes], config: DatasetConfig, root: Path) -> Layout:
    """The splits whose folders the configuration names, from the root or from inside a folder around everything."""
    wanted = {
        split: [PurePosixPath(name).as_posix().encode() + b"/" for name in names]
        for split, names in config.splits.folders.items()
    }
    around = [part + b"/" for part in unwrapped(places).split(b"/")[:-1]]
    roots = list(accumulate(around, initial=b""))
    while len(roots) > 1 and not any(name.startswith(roots[-1] + wanted["train"][0]) for name in places):
        roots.pop()
    folders = {split: [roots[-1] + folder for folder in names] for split, names in wanted.items()}
    for split, names in folders.items():
        for name in names:
            if not any(place.startswith(name) for place in places):
                raise UserError(f"{root}: splits.{split}: no image is in {shown(name)}")
    return _split(places, config, root, roots, folders)


def _split(
    places: list[bytes], config: DatasetConfig, root: Path, roots: list[bytes], folders: dict[str, list[bytes]]
) -> Layout:
    """Images of given folders; those elsewhere are counted."""
    found: dict[str, list[int]] = {"train": [], "test": []}
    left_out: Counter[str] = Counter()
    inside = roots[-1]
    of = [(folder, split) for split, names in folders.items() for folder in names]
    for index, name in enumerate(places):
        split = next((split for folder, split in of if name.startswith(folder)), None)
        if split is not None:
            found[split].append(index)
            continue
        top = _top(name, inside)
        left_out[f"images in {shown(inside + top)}/" if top else "images in no folder"] += 1
    indices = {split: np.array(numbers, dtype=np.int64) for split, numbers in found.items()}
    splits = indices if found["test"] else _held_out(indices["train"], config, root)
    folders = {split: names for split, names in folders.items() if names}
    return Layout(roots, splits, folders, dict(left_out))


def _held_out(indices: np.ndarray, config: DatasetConfig, root: Path) -> dict[str, np.ndarray]:
    if not config.holdout:
        return {"train": indices}
    if config.holdout >= len(indices):
        raise UserError(f"{root}: holdout: {config.holdout} images are to be kept out of training, of {len(indices)}")
    order = np.random.Generator(np.random.PCG64(derive_seed("folder", "split"))).permutation(len(indices))
    cut = len(indices) - config.holdout
    return {"train": indices[order[:cut]], "test": indices[order[cut:]]}
