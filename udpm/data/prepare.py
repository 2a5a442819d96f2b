"""From a source to a prepared store: restartable, in bounded memory, with the same bytes whatever happens meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from udpm.config.dataset import DatasetConfig
from udpm.core import provenance
from udpm.core.arrays import sealed
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import exclusive, sha256, through_links, write_json
from udpm.core.folders import WorkFolder, check_folder, list_contents
from udpm.core.kinds import DATASET
from udpm.core.processes import StopRequest
from udpm.core.progress import Progress
from udpm.data.decode import STEPS, Preprocessing
from udpm.data.fill import CHUNK, Chunk, Journal, Outcome, Work, chunks, process_chunks
from udpm.data.open import difference, open_source, read_inventory, take_inventory, write_inventory
from udpm.data.source import Source, shown, told_counts
from udpm.data.store import (
    FORMAT,
    HEADER_BYTES,
    IMAGES,
    LABELS,
    RECORD,
    SEALED,
    array_header,
    class_counts,
    content_hash,
    find_duplicates,
    open_store,
    split_ranges,
)

SECONDS_BETWEEN_SYNCS = 1.0
NAMES_SHOWN, CLASSES_SHOWN = 3, 20
CHUNKS_FOR_A_WORKER = 8
"""A worker takes a quarter of a second to start: fewer chunks for each are done sooner without."""


def prepare(
    config: DatasetConfig, folder: str | Path, workers: int | None = None, stop: StopRequest | bool = False
) -> None:
    """Write ``images.npy``, ``labels.npy`` and, last, ``dataset.json``.

    Work in progress lies beside the folder, under a hidden name, and takes its place when whole. A killed preparation
    goes on from there; a finished store of the same images, prepared in the same way, is left alone.

    Args:
        config: the data set.
        folder: where to; a store already there is replaced once the new one is whole.
        workers: processes; default: the configuration's, or as many as there are cores and it pays.
        stop: asked after every chunk of images.

    Raises:
        StoppedEarly: a signal asked for it; what is done is kept.
        UserError: missing or unusable images, not as many as the configuration expects, no room on the disk, or another
            process prepares this data set.
    """
    check_folder(folder, DATASET)
    folder = through_links(folder)
    source = open_source(config)
    with exclusive(folder, "preparing this data set"):
        job = _Job(config, source, folder)
        try:
            job.recover()
            if job.is_finished():
                job.discard()
                print(f"{folder}: complete already, nothing to do")
                return
            job.publish(job.fill(_workers(workers or config.workers, source), stop))
        except OSError as error:
            # Most likely the disk is full, and what would be kept is what fills it.
            job.discard()
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _workers(wanted: int | None, source: Source) -> int:
    needed = -(-len(source.names) // CHUNK)
    if wanted is None:
        wanted = min(len(os.sched_getaffinity(0)), needed // CHUNKS_FOR_A_WORKER)
    return max(1, min(wanted, needed)) if source.reader.parallel else 1


@dataclass(frozen=True)
class _Job:
    """One preparation: what is to be made, and where.

    Attributes:
        config: of the data set.
        source: its images.
        folder: where the store will be.
    """

    config: DatasetConfig
    source: Source
    folder: Path

    @property
    def partial(self) -> Path:
        """Where work in progress lies."""
        return self.folder.with_name(f".{self.folder.name}.partial")

    @property
    def rows(self) -> Path:
        """File of all images' pixels, refused ones included."""
        return self.partial / "rows.npy"

    @property
    def journal(self) -> Path:
        """What of them is known to be whole."""
        return self.partial / "journal.jsonl"

    @property
    def store(self) -> Path:
        """The store before it takes its place."""
        return self._work.new

    @property
    def _work(self) -> WorkFolder:
        return WorkFolder(self.folder, self.partial, "store", "replaced", (self.rows.name, self.journal.name))

    @property
    def header(self) -> dict[str, Any]:
        """All that the pixels of a chunk depend on, besides its own images."""
        keys = {"side", "background", "max_pixels", "max_file_bytes"}
        return {
            "format": "udpm-partial/1",
            "count": len(self.source.names),
            "source": self.source.reader.identity,
            "pillow": PIL.__version__,
            "steps": STEPS,
            **self.config.model_dump(mode="json", include=keys),
        }

    def fingerprint(self) -> str:
        """SHA-256 of all that the store depends on; the images by name, size and time of change or checksum."""
        config = self.config.model_dump(mode="json", exclude={"workers", "path"})
        # Stores that were prepared before there were these keys stay recognised.
        config = {key: value for key, value in config.items() if value is not None or key not in ("labels", "splits")}
        parts: list[Any] = [self.header, config, self.source.splits]
        if not self.source.labels_follow_names:
            parts.append(self.source.label_digest())
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for chunk in chunks(self.source):
            digest.update(chunk.digest.encode())
        return digest.hexdigest()

    def recover(self) -> None:
        """Undo a publication that a kill cut short."""
        self._work.open(keep=True)
        if (self.store / IMAGES).exists() and not self.rows.exists():
            (self.store / IMAGES).rename(self.rows)
        shutil.rmtree(self.store, ignore_errors=True)

    def discard(self) -> None:
        """Remove work in progress; never the store, neither the new one nor the one it was to replace."""
        with suppress(OSError):
            self.recover()
        self._work.remove()

    def is_finished(self) -> bool:
        """Whether the store is there, of these images and whole."""
        if not (self.folder / RECORD).exists():
            return False
        try:
            store = open_store(self.folder)
            if store.record.get("source", {}).get("fingerprint") != self.fingerprint():
                return False
            before = read_inventory(self.folder)
            if before is not None and difference(before, take_inventory(self.config, self.source, sha256)):
                return False
            store.verify()
        except UserError as error:
            print(f"warning: prepared again: {error}", file=sys.stderr)
            return False
        return True

    def fill(self, workers: int, stop: StopRequest | bool) -> list[Outcome]:
        """Bring all rows to be; the outcomes of all chunks, in order."""
        row_bytes = self.config.side**2 * 3
        # After a kill in the exchange these may be another version's.
        if self.rows.exists() and self.rows.stat().st_size != HEADER_BYTES + len(self.source.names) * row_bytes:
            self.rows.unlink()
        journal = Journal(self.journal, self.rows, self.header)
        if journal.fresh:
            self._lay_out()
        todo = [chunk.number for chunk in chunks(self.source) if not journal.keep(chunk, row_bytes)]
        total = len(self.source.names)
        done = total - sum(len(self._chunk(number).names) for number in todo)
        if done:
            print(f"goes on: {done} of {total} images are prepared already", file=sys.stderr)
        work = Work(self.source.reader, Preprocessing.from_config(self.config), self.rows)
        synced = time.monotonic()
        with Progress(total, "prepare", "image", done) as progress:
            for outcome in process_chunks(work, map(self._chunk, todo), workers, stop):
                journal.add(outcome)
                progress.update(len(self._chunk(outcome.number).names))
                if time.monotonic() - synced > SECONDS_BETWEEN_SYNCS:
                    journal.sync()
                    synced = time.monotonic()
        journal.sync()
        outcomes = [journal.outcomes[number] for number in sorted(journal.outcomes)]
        if len(outcomes) * CHUNK < total:
            raise StoppedEarly(
                f"stopped on {stop} with {len(outcomes) * CHUNK} of {total} images prepared and kept: "
                "run the same command again"
            )
        return outcomes

    def _chunk(self, number: int) -> Chunk:
        some = slice(number * CHUNK, (number + 1) * CHUNK)
        return Chunk(number, self.source.names[some], self.source.keys[some])

    def _lay_out(self) -> None:
        """The file of all rows in its full size, so that a disk too small is found before any work."""
        side, count = self.config.side, len(self.source.names)
        self.rows.unlink(missing_ok=True)
        with open(self.rows, "wb") as file:
            file.write(array_header((count, side, side, 3), np.uint8))
            file.flush()
            os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + count * side**2 * 3)

    def publish(self, outcomes: list[Outcome]) -> None:
        """From whole rows to the store in its place.

        Raises:
            UserError: images were refused, and the configuration does not say to go on without them.
        """
        refused = {number: reason for outcome in outcomes for number, reason in outcome.refused.items()}
        in_training = sum(number < self.source.splits["train"] for number in refused)
        if refused and (self.config.on_error == "fail" or in_training == self.source.splits["train"]):
            self.discard()
            raise UserError(self._complaint(refused))
        self._check_classes(refused)
        self.store.mkdir()
        record = self._finish(refused, sum((Counter(outcome.modes) for outcome in outcomes), Counter()))
        write_json(self.store / RECORD, sealed(record, SEALED))
        list_contents(self.store, DATASET, dict.fromkeys(path.name for path in self.store.iterdir()))
        check_folder(self.folder, DATASET)
        self._work.publish()
        self._work.remove()
        _tell(self.folder, record, self.source)

    def _check_classes(self, refused: dict[int, str]) -> None:
        """A class must not be lost as a whole to images that cannot be used."""
        labels = np.delete(self.source.labels[: self.source.splits["train"]], [n for n in refused if self._trains(n)])
        lost = np.setdiff1d(self.source.labels[: self.source.splits["train"]], labels)
        if self.config.classes and len(lost):
            first = next(number for number in refused if self.source.labels[number] == lost[0])
            raise UserError(
                f"{self.folder}: none of the training images of class {self._class_name(lost[0])} can be used "
                f"({self._place(first)}: {refused[first]}); mend them, or take the class out"
            )

    def _trains(self, number: int) -> bool:
        return number < self.source.splits["train"]

    def _class_name(self, label: int) -> str:
        return self.source.class_names[label] if self.source.class_names else str(label)

    def _complaint(self, refused: dict[int, str]) -> str:
        first = [f"{self._place(number)}: {reason}" for number, reason in list(refused.items())[:NAMES_SHOWN]]
        more = f"; and {len(refused) - NAMES_SHOWN} more" if len(refused) > NAMES_SHOWN else ""
        return (
            f"{len(refused)} of {len(self.source.names)} images cannot be used: {'; '.join(first)}{more}; "
            "mend or remove them, or set on_error: skip"
        )

    def _place(self, number: int) -> str:
        return shown(os.path.join(os.fsencode(self.config.path or ""), self.source.names[number]))

    def _finish(self, refused: dict[int, str], modes: Counter) -> dict[str, Any]:
        """Images and labels without what was refused, and the record of it all."""
        source, config = self.source, self.config
        kept = np.ones(len(source.names), dtype=bool)
        kept[list(refused)] = False
        labels = source.labels[kept]
        splits, ranges = split_ranges(source.splits, kept)
        digest, hashes = self._finish_images(kept)
        digest.update(labels.astype("<i8").tobytes())
        np.save(self.store / LABELS, labels)
        inventory = take_inventory(config, source, sha256)
        if inventory:
            write_inventory(self.store, inventory)
        return {
            "format": FORMAT,
            "description": config.description,
            "licence": config.licence,
            "side": config.side,
            "count": len(labels),
            "classes": config.classes,
            "class_names": source.class_names if config.classes else [],
            "class_counts": class_counts(labels, ranges, config.classes),
            "splits": ranges,
            "preprocessing": {
                "steps": STEPS,
                "pillow": PIL.__version__,
                "background": config.background,
                "modes": dict(sorted(modes.items())),
            },
            "skipped": [{"name": shown(source.names[number]), "why": refused[number]} for number in sorted(refused)],
            "duplicates": find_duplicates(hashes, labels, splits, lambda row: self._name_of_kept(row, kept)),
            "source": {"fingerprint": self.fingerprint(), **source.notes},
            "config": config.model_dump(mode="json", exclude={"workers"}),
            "files": {path.name: sha256(path) for path in sorted(self.store.iterdir())},
            "sha256": digest.hexdigest(),
            "provenance": provenance.record(),
        }

    def _name_of_kept(self, row: int, kept: np.ndarray) -> str:
        return shown(self.source.names[int(np.flatnonzero(kept)[row])])

    def _finish_images(self, kept: np.ndarray) -> tuple[Any, np.ndarray]:
        """Bring ``images.npy`` to the store, in one pass over all rows.

        Returns:
            SHA-256 of the pixels so far, and each image's content hash, (n, 2) uint64.
        """
        size, count = self.config.side**2 * 3, int(kept.sum())
        digest, hashes, row = hashlib.sha256(), np.empty((count, 2), dtype=np.uint64), 0
        # Rows without gaps are the file already; else they are copied, so that a kill meanwhile loses nothing.
        whole = count == len(kept)
        with (
            open(self.rows, "rb") as rows,
            nullcontext() if whole else open(self.store / IMAGES, "wb") as images,
        ):
            rows.seek(HEADER_BYTES)
            if images:
                images.write(array_header((count, self.config.side, self.config.side, 3), np.uint8))
            for start in range(0, len(kept), CHUNK):
                some = kept[start : start + CHUNK]
                block = np.frombuffer(rows.read(len(some) * size), dtype=np.uint8).reshape(-1, size)[some]
                digest.update(block)
                hashes[row : row + len(block)] = content_hash(block)
                row += len(block)
                if images:
                    images.write(block)
        if whole:
            self.rows.rename(self.store / IMAGES)
        return digest, hashes


def _tell(folder: Path, record: dict[str, Any], source: Source) -> None:
    """Say what was made of what: splits, classes, and what was left out."""
    print(f"{folder}: {record['count']} images of side {record['side']}")
    for name, (start, stop) in record["splits"].items():
        folders = record["source"].get("splits", {}).get(name)
        origin = f" (from {', '.join(folders)})" if folders else ""
        print(f"  {name}: {stop - start} images{origin}")
    if "test" not in record["splits"]:
        print("  test: none; holdout: N keeps N images out of training, to measure how near a score can come to 0")
    print(f"  {_told_classes(record)}")
    if left_out := record["source"].get("left_out"):
        print(f"  left out: {told_counts(left_out)}")
    for warning in source.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    duplicates, skipped = record["duplicates"], record["skipped"]
    if skipped:
        print(f"warning: {len(skipped)} images cannot be used and were skipped; {RECORD} lists them", file=sys.stderr)
    if duplicates["images"]:
        print(
            f"warning: {duplicates['images']} images repeat another one exactly ({duplicates['label_conflicts']} times "
            f"under another label, {duplicates['across_splits']} times in another split)",
            file=sys.stderr,
        )


def _told_classes(record: dict[str, Any]) -> str:
    """The classes with their numbers of images in all splits; of many the first."""
    if not record["classes"]:
        return "classes: none"
    counts = np.sum(list(record["class_counts"].values()), axis=0).tolist()
    names = record["class_names"] or [f"class {number}" for number in range(record["classes"])]
    told = [f"{name} {count}" for name, count in zip(names, counts, strict=True)][:CLASSES_SHOWN]
    more = f", and {len(names) - CLASSES_SHOWN} more in {RECORD}" if len(names) > CLASSES_SHOWN else ""
    return f"{len(names)} classes (labels: {record['source'].get('labels')}): {', '.join(told)}{more}"
