"""Assign the images of a tree to splits by the names of its folders."""

from __future__ import annotations

import json
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path, PurePosixPath

import numpy as np

from udpm.config.dataset import DatasetConfig, SplitFolders
from udpm.core.arrays import derive_seed
from udpm.core.errors import UserError
from udpm.data.source import shown

_SPLIT = re.compile(
    rb"(?:(?P<train>train|training)|(?P<test>test|testing)|(?P<val>val|valid|validation))"
    rb"(?:[ _-]?(?:set|split|data|images|imgs|\d{4}))?",
    re.IGNORECASE,
)
"""Usual names of folders of splits: train, Training, test_set, val2017, …"""
_PART = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\x00-\x7f]+")
"""Words of a name, separated by digits, punctuation or camelCase."""
_LONG = re.compile(
    r"(?P<rest>.*?)(?:(?P<train>train(?:ing|val)?)|(?P<test>test(?:ing)?|eval(?:uation)?|holdout|heldout)"
    r"|(?P<val>val(?:id(?:ation)?)?))(?:sets?|split|data|images?|imgs?)?"
)
_SHORT = re.compile(r"(?P<train>trn?)|(?P<test>te|ts|tst)|(?P<val>va|dev)")
_FILLERS = {
    *("set", "sets", "split", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures", "files"),
    *("folder", "k", "px", "v", "x"),
}
"""Words to ignore: train_images_60k and test_10k are alike."""
LISTS = (b"txt", b"csv", b"tsv", b"json", b"jsonl", b"lst")
"""Suffixes of files that may list images."""
_LIST = re.compile(rb"(?:^|[^a-z])(?:data)?(?:split|partition)s?(?:[^a-z]|$)", re.IGNORECASE)
"""Words in the names of such files: train_test_split.txt, list_eval_partition.csv."""
KEEP_AS_CLASSES = "splits: none, if they are not splits"


@dataclass(frozen=True)
class Layout:
    """Layout of a tree of images.

    Attributes:
        roots: folders around all images, outermost first: b"", and each single folder that contains everything.
        splits: indices of the images by split, training first.
        folders: folders by split; empty if the tree has no splits.
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


def arrange(paths: list[bytes], others: list[bytes], config: DatasetConfig, root: Path) -> Layout:
    """Find the splits of a tree, given the names of images and other files; slashes separate folders.

    Raises:
        UserError: ambiguous names, no training images, or too many to hold out.
    """
    if isinstance(config.splits, SplitFolders):
        return _named(paths, config, root)
    roots = _roots(paths, config)
    inside = roots[-1]
    tops = Counter(_top(name, inside) for name in paths)
    found: dict[str, list[bytes]] = {}
    if config.splits is None:
        for top in sorted(top for top in tops if top):
            if split := split_of(top):
                found.setdefault(split, []).append(top)
    if not found:
        if config.splits is None:
            _refuse_alike(sorted(top for top in tops if top), paths, inside, root)
            _refuse_splits_below(paths, inside, root)
            _refuse_lists(others, root)
        return Layout(roots, _held_out(np.arange(len(paths)), config, root), {}, {})
    _check_found(found, tops, config, root)
    test = found.get("test") or found.get("val") or []
    folders = {"train": [inside + top + b"/" for top in found["train"]], "test": [inside + top + b"/" for top in test]}
    return _split(paths, config, root, roots, folders)


def split_of(name: bytes) -> str | None:
    """Return the split with this usual name: train, test or val."""
    match = _SPLIT.fullmatch(name)
    return match.lastgroup if match else None


@dataclass(frozen=True)
class SplitWord:
    """Split word in a name.

    Attributes:
        split: train, test or val.
        rest: the name's other words in lower case, joined, without numbers and words such as "images".
        short: True for an abbreviation that may mean something else: te, dev.
    """

    split: str
    rest: str
    short: bool


def split_word(name: str) -> SplitWord | None:
    """Find the word for a split in a name: seg_train2 and TrainSeg are train, with the rest "seg"."""
    split, rest, short = None, [], False
    for part in map(str.lower, _PART.findall(name)):
        found, brief = _LONG.fullmatch(part), _SHORT.fullmatch(part)
        if found:
            split, short = "train" if split == "train" else _split_in(found), False
            rest.append(found["rest"])
        elif brief and split is None:
            split, short = _split_in(brief), True
        elif part not in _FILLERS:
            rest.append(part)
    return SplitWord(split, "".join(rest), short) if split else None


def _split_in(match: re.Match) -> str:
    return next(split for split in ("train", "test", "val") if match[split])


def alike(names: Iterable[bytes]) -> dict[str, list[bytes]]:
    """Find names that differ only in the word for a split, by split; empty if there are none.

    seg_train and seg_test are alike, classes called test_tube and train_station are not. Abbreviations count only if
    every name has a word for a split: te and tr are languages too.
    """
    names = sorted(names)
    words = {name: found for name in names if (found := split_word(os.fsdecode(name)))}
    groups: dict[str, dict[str, list[bytes]]] = defaultdict(lambda: defaultdict(list))
    for name, found in words.items():
        if not found.short or len(words) == len(names):
            groups[found.rest][found.split].append(name)
    splits: dict[str, list[bytes]] = defaultdict(list)
    for group in groups.values():
        for split, members in group.items() if len(group) > 1 else ():
            splits[split] += members
    return splits


def unwrapped(names: list[bytes]) -> bytes:
    """Find the nested folders around all names, down to the innermost one that contains a folder."""
    prefix = b""
    while True:
        tops = {_top(name, prefix) for name in names}
        (top,) = tops if len(tops) == 1 else (b"",)
        inner = prefix + top + b"/"
        if not top or not any(b"/" in name[len(inner) :] for name in names):
            return prefix
        prefix = inner


def _roots(paths: list[bytes], config: DatasetConfig) -> list[bytes]:
    """Find the root and single folders around everything that are neither a split nor the only class."""
    roots = [b""]
    around = unwrapped(paths)
    if config.classes == 1 and not any(split_of(_top(name, around)) for name in paths):
        around = b""
    for part in around.split(b"/")[:-1]:
        if config.splits is None and split_of(part):
            break
        roots.append(roots[-1] + part + b"/")
    return roots


def _top(name: bytes, inside: bytes) -> bytes:
    """Return the first folder of a name below `inside`; empty for a file directly in it."""
    top, slash, _ = name[len(inside) :].partition(b"/")
    return top if slash else b""


def _check_found(found: dict[str, list[bytes]], tops: Counter, config: DatasetConfig, root: Path) -> None:
    for split, names in found.items():
        if len(names) > 1:
            raise UserError(
                f"{root}: {_listed(names)} are both usual names of {split} images; choose one by splits: "
                f"{{train: …, test: …}}, or {KEEP_AS_CLASSES}"
            )
    splits = [name for names in found.values() for name in names]
    if "train" not in found:
        raise UserError(
            f"{root}: {_listed(splits)} is a usual name of a split, but found no folder of training images; name it by "
            f"splits: {{train: …, test: …}}, or set {KEEP_AS_CLASSES}"
        )
    others = sorted(top for top in tops if top and top not in splits)
    if others and (config.classes or len(found) == 1):
        raise UserError(
            f"{root}: {_listed(splits)} looks like a split, but {_listed(others)} is next to it; set splits: none if "
            f"all are classes or plain folders; splits: {{train: {shown(found['train'][0])}, …}} leaves out the others"
        )


def _refuse_alike(tops: list[bytes], paths: list[bytes], inside: bytes, root: Path) -> None:
    """Refuse folders such as seg_train and seg_test: as classes, their test images would be trained on."""
    found = alike(tops)
    if not found:
        return
    test = found.get("test") or found.get("val") or []
    if "train" not in found:
        found, test = {"train": [], **found}, []
    wanted = [
        f"{split}: {_choice([_innermost(top, paths, inside) for top in folders])}"
        for split, folders in (("train", found["train"]), ("test", test))
    ]
    names = sorted(name for folders in found.values() for name in folders)
    raise UserError(
        f"{root}: {_listed(names)} look like splits; name them by splits: {{{', '.join(wanted)}}}, or set "
        f"{KEEP_AS_CLASSES}"
    )


def _innermost(top: bytes, paths: list[bytes], inside: bytes) -> bytes:
    """Find the innermost of nested folders of the same split, as some archives have: seg_train/seg_train."""
    outer, folder = split_word(os.fsdecode(top)), top + b"/"
    below = [name[len(inside + folder) :] for name in paths if name.startswith(inside + folder)]
    for part in unwrapped(below).split(b"/")[:-1]:
        word = split_word(os.fsdecode(part))
        if word is None or outer is None or word.split != outer.split:
            break
        folder += part + b"/"
    return folder[:-1]


MOST = 4
"""Largest number of folders to write as values of a configuration."""


def _choice(folders: list[bytes]) -> str:
    """Format folders as values of a configuration."""
    if not folders:
        return "…"
    names = [shown(folder) for folder in folders[:MOST]]
    names = [
        name if re.fullmatch(r"[A-Za-z][\w./ -]*", name) else json.dumps(name, ensure_ascii=False) for name in names
    ]
    more = ["…"] if len(folders) > MOST else []
    return names[0] if len(folders) == 1 else f"[{', '.join(names + more)}]"


def _refuse_splits_below(paths: list[bytes], inside: bytes, root: Path) -> None:
    """Refuse folders of classes that contain folders of splits: their test images would be trained on."""
    kinds: dict[str, bytes] = {}
    below: dict[bytes, set[bytes]] = defaultdict(set)
    for folder in sorted({name[len(inside) :].rpartition(b"/")[0] for name in paths}):
        parts = folder.split(b"/")
        for depth in range(1, len(parts)):
            below[b"/".join(parts[:depth])].add(parts[depth])
            if split := split_of(parts[depth]):
                kinds.setdefault(split, b"/".join(parts[: depth + 1]))
    found = list(kinds.values()) if "train" in kinds and len(kinds) > 1 else []
    for around, names in below.items():
        found = found or sorted(around + b"/" + name for members in alike(names).values() for name in members)
    if found:
        raise UserError(
            f"{root}: {_listed(found)} look like splits below other folders; move them to the top, name "
            f"folders by splits: {{train: …, test: …}}, or set {KEEP_AS_CLASSES}"
        )


def _refuse_lists(others: list[bytes], root: Path) -> None:
    """Refuse files that may list the images of splits: train.txt and test.txt, or partition.csv."""
    stems: dict[bytes, dict[bytes, bytes]] = defaultdict(dict)
    for path in others:
        folder, _, base = path.rpartition(b"/")
        stem, _, suffix = base.rpartition(b".")
        if suffix.lower() in LISTS:
            stems[folder][stem] = path
    for named in stems.values():
        found = [named[stem] for members in alike(named).values() for stem in members]
        found += [path for stem, path in named.items() if _LIST.search(stem)]
        if found := sorted(set(found)):
            raise UserError(
                f"{root}: {', '.join(map(shown, found[:3]))} look like lists of splits, which are not read; sort the "
                "images into train/ and test/, or set splits: none to train on all"
            )


def _listed(names: list[bytes], most: int = 3) -> str:
    shown_names = [f"{shown(name)}/" for name in names[:most]]
    return ", ".join(shown_names) + (f" and {len(names) - most} more" if len(names) > most else "")


def _named(paths: list[bytes], config: DatasetConfig, root: Path) -> Layout:
    """Build the splits that the configuration names, relative to the root or to a folder around everything."""
    assert isinstance(config.splits, SplitFolders)
    wanted = {
        split: [PurePosixPath(name).as_posix().encode() + b"/" for name in names]
        for split, names in config.splits.folders.items()
    }
    around = [part + b"/" for part in unwrapped(paths).split(b"/")[:-1]]
    roots = list(accumulate(around, initial=b""))
    while len(roots) > 1 and not any(name.startswith(roots[-1] + wanted["train"][0]) for name in paths):
        roots.pop()
    folders = {split: [roots[-1] + folder for folder in names] for split, names in wanted.items()}
    for split, names in folders.items():
        for name in names:
            if not any(path.startswith(name) for path in paths):
                raise UserError(f"{root}: splits.{split}: no images in {shown(name)}")
    return _split(paths, config, root, roots, folders)


def _split(
    paths: list[bytes], config: DatasetConfig, root: Path, roots: list[bytes], folders: dict[str, list[bytes]]
) -> Layout:
    """Assign images to splits by their folders; count the others."""
    found: dict[str, list[int]] = {"train": [], "test": []}
    left_out: Counter[str] = Counter()
    inside = roots[-1]
    of = [(folder, split) for split, names in folders.items() for folder in names]
    for index, name in enumerate(paths):
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
        raise UserError(f"{root}: holdout: {config.holdout} leaves no training image of {len(indices)}; lower it")
    order = np.random.Generator(np.random.PCG64(derive_seed("folder", "split"))).permutation(len(indices))
    cut = len(indices) - config.holdout
    return {"train": indices[order[:cut]], "test": indices[order[cut:]]}
