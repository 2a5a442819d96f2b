"""Identify a file or folder from its first bytes, so that an error can name what was given and what takes it."""

from __future__ import annotations

import json
import os
import re
import struct
import zipfile
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from udpm.core.reading import parse_json

BEGINNING = 1 << 20
"""Number of bytes of a file to read, at most."""
CHECKPOINT = "a PyTorch checkpoint"
EXPERIMENT_YAML = "an experiment's YAML configuration"
DATASET_YAML = "a data set's YAML configuration"
PREPARED = "a prepared data set"
SAFETENSORS = "a safetensors file of another program"


IMAGE_SUFFIXES = (b".png", b".jpg", b".jpeg", b".jpe", b".jfif", b".webp", b".bmp", b".tif", b".tiff")
"""Suffixes of images that are read."""
FOR_IMAGES = "for udpm prepare and udpm score --images"
ENTRIES = 1000
"""Entries of a folder to look at, at most."""


@dataclass(frozen=True)
class Kind:
    """A kind of file or folder.

    Attributes:
        name: its name with an article.
        takes: commands that take it, or how to make something that they take; "" if there is neither.
        format: format that a file of this project states, or None.
        images: True for images of other programs, which udpm prepare takes.
        container: type of file that can hold other kinds too, as errors call it (".npz"); "" if there is none.
    """

    name: str
    takes: str = ""
    format: str | None = None
    images: bool = False
    container: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({self.takes})" if self.takes else self.name


FORMATS = {
    "udpm-weights": ("a weights file", "for udpm sample and udpm latents"),
    "udpm-run": ("the record of a finished run", "its folder is the run"),
    "udpm-checkpoint": ("a checkpoint of a training", "its run's weights.safetensors is what commands take"),
    "udpm-snapshot": ("a snapshot of a training's averages", "its run's folder is what udpm average takes"),
    "udpm-samples": ("the record of a sample set", "the .npz of the same name is the set"),
    "udpm-latents": ("a latent-space experiment", "for udpm figure latents"),
    "udpm-reference": ("a reference", "for udpm score --reference"),
    "udpm-score": ("a score", "for udpm table, udpm select and udpm card --score"),
    "udpm-selection": ("a selection", "for udpm sample --selection and udpm figure selection"),
    "udpm-diagnosis": ("a diagnosis", "for udpm figure diagnosis"),
    "udpm-bench": ("a record of speeds", "for python -m benchmarks table"),
    "udpm-extractor": ("the record of an extractor", "the .pt of the same name is the extractor"),
    "udpm-dataset": ("the record of a prepared data set", "its folder is the data set"),
    "udpm-cache": ("the record of a level cache", "its folder is the cache"),
    "udpm-images": ("the record of exported images", "its folder is for udpm score --images"),
    "udpm-bundle": ("the record of a bundle", "its folder is the bundle"),
    "udpm-networks": ("the record of exported networks", "chain.py in its folder draws images"),
    "udpm-study": ("the record of a study", "the same udpm run continues it"),
    "udpm-failure": ("the record of a failed iteration", ""),
    "udpm-trackers": ("the record of a run's trackers", "its folder is the run"),
}
"""Formats of this project, without versions: name, and commands that take such a file."""

RESOLVED = (
    ({"experiment", "seed", "dataset_name", "training"}, "a run's resolved configuration", "for udpm train"),
    ({"count", "posterior", "guidance"}, "a resolved sampling section", "for udpm sample --config"),
    ({"extractor", "inception_mode"}, "a resolved scoring section", "for udpm score --config"),
    ({"seeds", "strengths", "grid"}, "a resolved latents section", "for udpm latents --config"),
    ({"source", "side"}, "a data set's resolved configuration", "for udpm prepare"),
    ({"img_size", "diffusion_steps"}, "a published configuration", "for udpm import --config"),
)
"""JSON files that state no format, by some of their keys."""

YAML = (
    (r"^(generator|training|losses|process|extends)\s*:", EXPERIMENT_YAML, ""),
    (r"^source\s*:", DATASET_YAML, ""),
    (r"^base\s*:", "a sweep's YAML configuration", "udpm sweep takes its name"),
    (r"^(experiments|results|targets)\s*:", "the study's YAML configuration", "snakemake reads it"),
)

FOLDERS = (
    ("dataset.json", PREPARED, "for --dataset"),
    ("cache.json", "a level cache", "for udpm train --cache"),
    ("export.json", "a folder of exported images", "for udpm score --images"),
    ("bundle.json", "a bundle", "for udpm sample and udpm latents"),
    ("networks.json", "a folder of exported networks", "its chain.py draws images"),
    ("complete.json", "a run's folder", "for udpm sample and udpm latents"),
    ("metrics.jsonl", "the folder of a run that is not finished", "udpm train finishes it"),
    ("config.json", "the folder of a run that is not finished", "udpm train finishes it"),
    ("attempts.jsonl", "the folder of a run that is not finished", "udpm train finishes it"),
    ("weights.safetensors", "a folder with weights", "for udpm sample and udpm latents"),
    ("Snakefile", "a study", "snakemake runs it, in this folder"),
    ("workflow/Snakefile", "a study", "snakemake runs it, in this folder"),
    ("experiments", "a configuration folder", "for --config of udpm resolve"),
    ("runs", "a folder of results", "its subfolders hold what commands take"),
)
"""Folders of this project, by an entry that only they have."""

MARKERS = {entry for entry, _, _ in FOLDERS}
WRONG_KIND = re.compile(r"\bnot an? |\bholds no |\bformat is |\blacks |\bcannot be read|\bdoes not describe its")
"""Errors about a file of another kind than expected."""
READABLE = re.compile(r"(not an? readable ([^:;]*)): .*")
"""Reasons why a file cannot be read, which mean nothing if it is of another kind."""
NAMES_KIND = re.compile(r"\bit is an? |\bbut an? ")

LEGACY = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""Number with which a checkpoint of PyTorch before 1.6 begins; any other pickle may be of any program."""

MAGIC = (
    (b"\x89PNG", "an image", ""),
    (b"\xff\xd8\xff", "an image", ""),
    (b"\x93NUMPY", "a single array (.npy)", "udpm prepare takes images"),
    (b"PAR1", "a Parquet file", "udpm prepare takes images"),
    (b"%PDF", "a PDF", ""),
    (b"\x1f\x8b", "a gzip archive", ""),
)


def what_is(path: str | Path) -> Kind | None:
    """Return the kind of a file or folder; None if it is unknown or missing.

    Reads at most one megabyte, and only regular files and folders. Never raises.
    """
    path = Path(path)
    try:
        if path.is_dir():
            entries = (entry for entry in FOLDERS if (path / entry[0]).exists() and not _is_label_file(path / entry[0]))
            known = (Kind(name, takes) for _, name, takes in entries)
            return next(known, None) or _folder_of_images(path)
        if not path.is_file():
            return None
        if path.suffix in {".pt", ".pt2", ".onnx"} and (path.parent / "networks.json").exists():
            return Kind("an exported network", "chain.py next to it draws images")
        with open(path, "rb") as file:
            return _file(path, file.read(BEGINNING))
    except Exception:  # Damaged bytes raise errors of any type, and another error is being reported already.
        return None


def with_kind(mistake: str) -> str:
    """Add to an error what the file or folder is instead, if that is known and the error does not say so.

    Args:
        mistake: "PATH: what is wrong", as readers report it.
    """
    path, colon, wrong = mistake.partition(": ")
    if not colon or NAMES_KIND.search(wrong):
        return mistake
    file = Path(path)
    if file.name in MARKERS and not file.exists():
        folder = what_is(file.parent)
        return f"{mistake}; {file.parent} is {folder}" if folder is not None else mistake
    if file.suffix == ".json" and what_is(file) is None:
        # The missing record of a sample set: the user gave another kind of file.
        for given in map(file.with_suffix, (".npz", ".safetensors", ".pt")):
            if (kind := what_is(given)) is not None:
                return f"{mistake}; {given} is {kind}"
    kind = what_is(file) if WRONG_KIND.search(wrong) else None
    if kind is None or re.search(rf"(?<![\w-]){re.escape(kind.name.partition(' ')[2])}(?!\w)", wrong):
        return mistake
    if _is_expected(kind, wrong):
        return mistake
    short = READABLE.sub(r"\1", wrong)
    return f"{path}: {short}; it is {kind}"


def _is_expected(kind: Kind, wrong: str) -> bool:
    """Return whether an error is about a damaged file, or one of another version, of the kind that was expected."""
    name, slash, _ = (kind.format or "").partition("/")
    if slash and f"expected '{name}/" in wrong:
        return True
    expected = READABLE.match(wrong)
    return expected is not None and bool(kind.container) and kind.container in expected[2]


def of_format(found: Any) -> Kind | None:
    """Return the kind of a file that states its format."""
    name = found.partition("/")[0] if isinstance(found, str) else None
    return Kind(*FORMATS[name], found) if name in FORMATS else None


def _is_label_file(path: Path) -> bool:
    """Return whether a dataset.json belongs to images, as by StyleGAN's tools, instead of to a prepared data set."""
    if path.name != "dataset.json" or path.with_name("images.npy").exists():
        return False
    with open(path, "rb") as file:
        return b'"udpm-dataset/' not in file.read(BEGINNING)


def _folder_of_images(path: Path) -> Kind | None:
    """Recognize a folder of images or of Parquet files by its first entries."""
    folders, seen = [path], 0
    while folders and seen < ENTRIES:
        with os.scandir(folders.pop()) as entries:
            for entry in islice(entries, ENTRIES):
                seen += 1
                name = os.fsencode(entry.name).lower()
                if name.startswith(b"."):
                    continue
                if name.endswith(IMAGE_SUFFIXES):
                    return Kind("a folder of images", FOR_IMAGES, images=True)
                if name.endswith(b".parquet") and not name.startswith(b"metadata"):
                    return Kind("a folder of Parquet files", "for udpm prepare", images=True)
                if entry.is_dir():
                    folders.append(Path(entry.path))
    return None


def _file(path: Path, beginning: bytes) -> Kind | None:
    for magic, name, takes in MAGIC:
        if beginning.startswith(magic):
            numpy = magic == b"\x93NUMPY"
            return Kind(name, takes, images=numpy or magic == b"PAR1", container="array" if numpy else "")
    if beginning.startswith(b"PK\x03\x04"):
        return _zip(path)
    if beginning.startswith(b"\x80") and LEGACY in beginning[:32]:
        return Kind(CHECKPOINT, "udpm import brings it over")
    if len(beginning) > 9 and beginning[8:9] == b"{" and beginning[6:8] == b"\0\0":
        return _safetensors(beginning)
    text = beginning.decode("utf-8", errors="strict" if len(beginning) < BEGINNING else "ignore")
    return _text(text.lstrip("\ufeff"), path.suffix.lower())


def _safetensors(beginning: bytes) -> Kind | None:
    (length,) = struct.unpack("<Q", beginning[:8])
    if length > len(beginning) - 8:
        if len(beginning) < BEGINNING:
            # The file is cut short.
            return None
        # The header is larger than a megabyte: the metadata are in this part, or unknown.
        found = re.search(rb'"udpm"\s*:\s*"((?:[^"\\]|\\.)*)"', beginning)
        metadata = {"udpm": json.loads(b'"' + found[1] + b'"')} if found else {}
    else:
        header = json.loads(beginning[8 : 8 + length])
        metadata = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    own = json.loads(metadata.get("udpm", "{}")) if isinstance(metadata, dict) else {}
    kind = of_format(own.get("format")) if isinstance(own, dict) else None
    return replace(kind or Kind(SAFETENSORS, "udpm import brings weights over"), container="safetensors file")


def _zip(path: Path) -> Kind | None:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        arrays = {name.removesuffix(".npy") for name in names if name.endswith(".npy") and "/" not in name}
        if arrays:
            return replace(_arrays(path, archive, arrays), container=".npz")
    if any(name.endswith("/data.pkl") for name in names):
        if any("/code/" in name or name.endswith("/constants.pkl") for name in names):
            return Kind("a TorchScript file", "for --extractor")
        return Kind(CHECKPOINT, "udpm import brings it over")
    if any(name.lower().encode("utf-8", "replace").endswith(IMAGE_SUFFIXES) for name in names):
        return Kind("a .zip of images", FOR_IMAGES, images=True)
    return Kind("a zip archive", "udpm prepare and udpm score --images take archives of images")


def _arrays(path: Path, archive: zipfile.ZipFile, arrays: set[str]) -> Kind:
    """Recognize an .npz by the names of its arrays, and by its record."""
    if "record" in arrays:
        with archive.open("record.npy") as member:
            # NumPy writes text as a header that ends in a newline, then four bytes per character.
            _, _, text = member.read(BEGINNING).partition(b"\n")
        kind = of_format(json.loads(text.decode("utf-32-le")).get("format"))
        if kind is not None:
            return kind
    if {"mu", "sigma"} <= arrays:
        return Kind("statistics of features", "udpm reference --import takes those that others published")
    if {"images", "labels"} <= arrays and path.with_suffix(".json").is_file():
        return Kind("a sample set", "for udpm score --samples, udpm export and udpm figure samples", "udpm-samples")
    if "base" in arrays:
        return Kind("a noise file", "for udpm sample --noise")
    if "record" in arrays:
        return Kind("a sampling chain", "for udpm figure chain")
    if arrays & {"images", "arr_0"}:
        return Kind("an .npz of images", FOR_IMAGES, images=True)
    return Kind(f"an .npz of {', '.join(sorted(arrays)[:4])}", "udpm prepare takes images", images=True)


def _text(text: str, suffix: str) -> Kind | None:
    if text.lstrip().startswith("{"):
        first, newline, _ = text.partition("\n")
        if suffix == ".jsonl" or (newline and first.rstrip().endswith("}")):
            line = json.loads(first)
            return Kind("a run's metrics", "for udpm figure curves") if "iteration" in line else None
        # Strictly: of a damaged file the reason matters, not its kind.
        return _json(parse_json(text, "it"))
    if suffix not in {".yaml", ".yml"}:
        return None
    found = (Kind(name, takes) for pattern, name, takes in YAML if re.search(pattern, text, re.MULTILINE))
    return next(found, None)


def _json(value: Any) -> Kind | None:
    if not isinstance(value, dict):
        return None
    known = (Kind(name, takes) for keys, name, takes in RESOLVED if keys <= value.keys())
    return of_format(value.get("format")) or next(known, None)
