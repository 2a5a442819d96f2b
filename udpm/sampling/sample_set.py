"""Sample sets: one .npz of lossless images and labels with a JSON record; export as image files."""

from __future__ import annotations

import hashlib
import math
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.lib import format as npy
from PIL import Image
from pydantic import Field, model_validator

from udpm.config.dataset import class_folders
from udpm.config.validation import Classes, Exactly, NonNegativeInt, PositiveInt, Record, Sha256, read_record
from udpm.core.arrays import SEAL, check_array, sealed
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import atomic_path, sha256, sync, unfinished, write_json
from udpm.core.folders import atomic_folder
from udpm.core.kinds import IMAGES, SAMPLES_COMMENT
from udpm.core.work import SPAWN, Progress, init_worker, map_ordered, prefetch
from udpm.data.archive import write_archive
from udpm.data.npz import array_header, npy_header, place_array, read_npz

FORMAT = "udpm-samples/1"
SHARDS = "shards"
OWN = ("shard", "numbers", "count", "sha256")
"""Keys that differ between the records of one set's shards."""
OUTPUTS = re.compile(r"output_([1-9][0-9]{0,2})")
"""Names of arrays of the network's outputs, by level."""


class Part(Record):
    """A shard in the record of a joined set."""

    file: Annotated[str, Field(min_length=1)]
    count: PositiveInt
    sha256: Sha256


class NoiseFile(Record):
    """The noise file of a sample set."""

    file: str
    sha256: Sha256


class SamplesRecord(Record):
    """Required content of a sample set's record; None is unknown."""

    format: Annotated[str, Exactly(FORMAT)]
    count: PositiveInt
    sha256: Sha256
    classes: Classes = 0
    class_names: list[str] = []
    labels: list[NonNegativeInt] | None = None
    shard: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None = None
    numbers: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)] | None = None
    total: PositiveInt | None = None
    shards: Annotated[list[Part], Field(min_length=1)] | None = None
    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    iteration: NonNegativeInt | None = None
    dataset_sha256: Sha256 | None = None
    loss_features: list[str] | None = None
    weights: str | None = None
    weights_sha256: Sha256 | None = None
    origin: dict[str, Any] | None = None
    seed: NonNegativeInt | None = None
    noise: NoiseFile | None = None
    noise_kind: Literal["counter"] | None = None
    posterior: str | None = None
    guidance: float | None = None
    precision: str | None = None
    nfe: PositiveInt | None = None

    @model_validator(mode="after")
    def _shards_make_it_up(self) -> SamplesRecord:
        if self.shard is not None and self.shard[0] > self.shard[1]:
            raise ValueError(f"shard: {self.shard[0]} of {self.shard[1]}")
        if self.shards is not None:
            if self.count != sum(part.count for part in self.shards):
                raise ValueError(f"shards: do not have {self.count} images together")
            if self.sha256 != _digest([part.model_dump() for part in self.shards]):
                raise ValueError("shards: are not those that were joined")
        return self


@dataclass(frozen=True)
class SampleSet:
    """Images drawn from a model.

    Attributes:
        images: (n, side, side, 3) uint8, RGB.
        labels: (n,) int64, the given classes; all zero for an unconditional model.
        record: of run, iteration, seed, posterior, NFE and so on, plus the count and the file's SHA-256.
        outputs: the network's outputs at levels above 1, by level, at full side; empty unless they were saved.
    """

    images: np.ndarray
    labels: np.ndarray
    record: dict[str, Any]
    outputs: dict[int, np.ndarray] = field(default_factory=dict)


def save_batches(
    path: str | Path, batches: Iterable[dict[int, np.ndarray]], labels: np.ndarray, record: dict[str, Any]
) -> None:
    """Write a sample set whose images arrive in batches; the file's bytes do not depend on the size of the batches.

    A thread compresses one batch while the next is drawn. Images already compressed are dropped; outputs of coarser
    levels are kept until the end.

    The record is written before the images, which are by then complete and synced under a temporary name: after a kill
    in between, `load_samples` finds the images that the record describes.

    Args:
        path: .npz to write; the record has the same name with .json.
        batches: by level, (B, height, width, 3) uint8, as `Sampler.batches` yields them; n images together.
        labels: (n,) int64.
        record: of their origin.
    """
    path, outputs = Path(path), defaultdict(list)

    def contents() -> Iterator[bytes | np.ndarray]:
        for number, batch in enumerate(batches):
            if number == 0:
                yield npy_header((len(labels), *batch[1].shape[1:]), batch[1].dtype)
            for level in batch.keys() - {1}:
                outputs[level].append(batch[level])
            yield np.ascontiguousarray(batch[1])

    with atomic_path(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("images.npy", "w", force_zip64=True) as member:
                for _ in prefetch(member.write, contents()):
                    pass
            others = {f"output_{level}": np.concatenate(parts) for level, parts in outputs.items()}
            for name, values in {"labels": labels, **others}.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    npy.write_array(member, values, allow_pickle=False)
            archive.comment = SAMPLES_COMMENT
        sync(temporary)
        own = {"format": FORMAT, "count": len(labels), "sha256": sha256(temporary)}
        write_json(record_path(path), sealed({**own, **record}))


def load_samples(path: str | Path) -> SampleSet:
    """Read a sample set and its record, from the .npz, or from the record (.json) of a set drawn in shards.

    Raises:
        UserError: a file is missing or unreadable, or its record does not describe it.
    """
    path = Path(path)
    if path.suffix == ".json":
        record = _record(path)
        if record.get(SHARDS):
            return _joined(path, record)
        path = path.with_suffix(".npz")
    return _load(path)


def first_samples(path: str | Path, count: int) -> np.ndarray:
    """Read at most `count` images at the beginning of a sample set, (n, h, w, 3) uint8, without the others.

    `path` is its record (.json); the images of a set drawn in shards are those of the first shard. Whether the record
    has their digest is not checked.

    Raises:
        UserError: a file is missing or unreadable.
    """
    path = Path(path)
    record = _record(path)
    images = path.parent / record[SHARDS][0]["file"] if record.get(SHARDS) else path.with_suffix(".npz")
    header = array_header(images, "sample set", "images")
    if header.dtype != np.uint8 or len(header.shape) != 4 or header.shape[-1] != 3 or header.fortran:
        raise UserError(f"{images}: images is {header.dtype} {header.shape}; expected uint8 (n, h, w, 3)")
    file, start, _ = place_array(images, "sample set", "images")
    shape = (min(count, header.shape[0]), *header.shape[1:])
    with file:
        file.seek(start)
        return np.frombuffer(file.read(math.prod(shape)), np.uint8).reshape(shape)


def join_shards(shards: Sequence[Path], output: Path) -> int:
    """Join shards to one sample set by a record that names them; return the number of images.

    Args:
        shards: all of the set (.npz), in any order.
        output: .json, in a folder at or above theirs.

    Raises:
        UserError: a shard is missing, damaged, given twice, of another set than the rest, or cut otherwise.
    """
    if output.suffix != ".json":
        raise UserError(f"--output: {output} must end in .json")
    records = {}
    for path in shards:
        records[path] = _record(record_path(path))
        if not records[path].get("shard"):
            raise UserError(f"{path}: not a shard but a whole sample set")
        _load(path, records[path])
    ordered = sorted(records, key=lambda path: records[path]["shard"])
    expected = [[index, len(shards)] for index in range(1, len(shards) + 1)]
    found = [records[path]["shard"] for path in ordered]
    if found != expected:
        given = ", ".join(f"{index} of {count}" for index, count in found)
        raise UserError(f"{output}: expected shards 1 to {len(shards)} of {len(shards)}, got {given}")
    first, *others = (_common(records[path]) for path in ordered)
    for path, other in zip(ordered[1:], others, strict=True):
        if other != first:
            key = next(key for key in first | other if first.get(key) != other.get(key))
            raise UserError(f"{path}: not of the same sample set as {ordered[0]}: {key} differs; draw the shards again")
    folder, parts, count = output.parent.resolve(), [], 0
    for path in ordered:
        record = records[path]
        # Shards of earlier versions do not say which images they hold.
        start = count if record.get("numbers") is None else record["numbers"][0]
        if start != count:
            raise UserError(
                f"{path}: begins with image {start}, but the shards before it hold {count}; draw all with one --batch"
            )
        parts.append({"file": os.path.relpath(path.resolve(), folder), **{key: record[key] for key in OWN[2:]}})
        count += record["count"]
    first.pop("total", None)
    write_json(output, sealed({"format": FORMAT, "count": count, "sha256": _digest(parts), SHARDS: parts, **first}))
    return count


def _joined(path: Path, record: dict[str, Any]) -> SampleSet:
    parts = [_load(path.parent / shard["file"], record | shard) for shard in record[SHARDS]]
    first = parts[0]
    for shard, part in zip(record[SHARDS], parts, strict=True):
        if part.images.shape[1:] != first.images.shape[1:] or part.outputs.keys() != first.outputs.keys():
            raise UserError(f"{path.parent / shard['file']}: arrays differ from those of the set's first shard")
    outputs = {level: np.concatenate([part.outputs[level] for part in parts]) for level in parts[0].outputs}
    images, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    return SampleSet(images, labels, record, outputs)


def _load(path: Path, record: dict[str, Any] | None = None) -> SampleSet:
    """Read a set in one file; its record is the .json next to it unless given."""
    if not os.path.lexists(path) and not unfinished(path):
        raise UserError(f"{path}: sample set not found; `udpm sample` makes it")
    if record is None:
        record = _record(record_path(path))
    candidates = (file for file in (path, *unfinished(path)) if file.exists())
    described = next((file for file in candidates if sha256(file) == record["sha256"]), None)
    if described is None:
        raise UserError(f"{record_path(path)}: does not describe {path.name}; draw the sample set again")
    arrays = read_npz(described, "sample set")
    _check_arrays(path, arrays, record)
    outputs = {int(match[1]): arrays[name] for name in arrays if (match := OUTPUTS.fullmatch(name))}
    return SampleSet(arrays["images"], arrays["labels"], record, outputs)


def _check_arrays(path: Path, arrays: dict[str, np.ndarray], record: dict[str, Any]) -> None:
    """Check that a sample set's arrays match each other and the record."""
    for name in ("images", "labels"):
        if name not in arrays:
            raise UserError(f"{path}: not a sample set: array {name} not found; `udpm sample` makes it")
    images, labels = arrays["images"], arrays["labels"]
    check_array(f"{path}: images", images, np.uint8, (record["count"], "height", "width", 3))
    check_array(f"{path}: labels", labels, np.integer, (len(images),))
    most = max(record.get("classes", 0), 1) - 1
    if labels.min() < 0 or labels.max() > most:
        found = f"{labels.min()}..{labels.max()}"
        raise UserError(f"{path}: labels are {found}, but by its record they must be in 0..{most}")
    for name in arrays:
        if OUTPUTS.fullmatch(name):
            check_array(f"{path}: {name}", arrays[name], np.uint8, images.shape)


def _record(path: Path) -> dict[str, Any]:
    """Read a sample set's record; leave out its digest."""
    record = read_record(SamplesRecord, path, "sample set's record", remedy="draw the sample set again")
    return {key: value for key, value in record.items() if key != SEAL}


def _common(record: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a record that the shards of one set share."""
    return {key: value for key, value in record.items() if key not in {"format", *OWN}}


def _digest(parts: list[dict[str, Any]]) -> str:
    return hashlib.sha256(" ".join(part["sha256"] for part in parts).encode()).hexdigest()


def record_path(path: str | Path) -> Path:
    """Return the path of the record of a sample set's .npz."""
    return Path(path).with_suffix(".json")


EXPORT_FORMAT = "udpm-images/1"
EXPORT_RECORD = "export.json"
JPEG_QUALITY = 95
AT_ONCE = 250
"""Files in one task of a process."""
PER_PROCESS = 2000
"""Files that justify starting one more process: some tenths of a second of work."""

Job = tuple[np.ndarray, Path]
"""An image and its file."""


def export_images(samples: Path, folder: Path, layout: str, image_format: str) -> int:
    """Write one file per image, named by its number, and outputs at other levels into folders ``level_l``.

    Args:
        samples: a sample set.
        folder: to write; replaced in one step if it holds an unchanged export, refused if it holds anything else.
        layout: "flat", or "classes" for a folder per class, named after the class if that has a name.
        image_format: "png" (lossless) or "jpg" (quality 95).

    Returns:
        The number of files.

    Raises:
        UserError: the sample set cannot be read, or the folder holds something else.
    """
    found = load_samples(samples)
    sets = {"": found.images} | {f"level_{level}": images for level, images in found.outputs.items()}
    digits = max(5, len(str(len(found.images) - 1)))
    total = len(found.images) * len(sets)
    names, classes = found.record.get("class_names", []), found.record.get("classes", 0)
    folders = class_folders(names, classes, {EXPORT_RECORD, *sets})
    by_class = layout == "classes" and classes > 0
    with atomic_folder(folder, IMAGES) as building, Progress(total, "export", "file") as progress:
        jobs: list[Job] = []
        for name, images in sets.items():
            for number, (image, label) in enumerate(zip(images, found.labels, strict=True)):
                target = building / name / (folders[label] if by_class else "")
                jobs.append((image, target / f"{number:0{digits}d}.{image_format}"))
        for target in {path.parent for _, path in jobs}:
            target.mkdir(parents=True, exist_ok=True)
        for count in _written(jobs):
            progress.update(count)
        write_json(building / EXPORT_RECORD, {"format": EXPORT_FORMAT, "layout": layout, "samples": found.record})
    return total


def export_archive(samples: Path, path: Path) -> int:
    """Write a sample set to a .zip in the format of StyleGAN and EDM; return the number of images.

    Raises:
        UserError: the sample set cannot be read, or the file cannot be written.
    """
    found = load_samples(samples)
    labels = found.labels.tolist() if found.record.get("classes") else None
    write_archive(path, found.images, len(found.images), labels)
    return len(found.images)


def _written(jobs: list[Job]) -> Iterator[int]:
    """Write files, many of them in several processes; yield the number of files written since the last yield."""
    workers = min(len(os.sched_getaffinity(0)), len(jobs) // PER_PROCESS)
    parts = [jobs[start : start + AT_ONCE] for start in range(0, len(jobs), AT_ONCE)]
    if workers < 2:
        yield from map(_write_all, parts)
        return
    try:
        # Processes, because PNG compression holds Python's lock.
        with ProcessPoolExecutor(workers, SPAWN, initializer=init_worker) as pool:
            yield from map_ordered(pool, _write_all, parts, 2 * workers)
    except BrokenProcessPool:
        raise StoppedEarly("a worker was killed, perhaps out of memory: run the same command again") from None


def _write_all(jobs: list[Job]) -> int:
    for image, path in jobs:
        _write(image, path)
    return len(jobs)


def _write(image: np.ndarray, path: Path) -> None:
    options: dict[str, Any] = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(image).save(path, **options)
