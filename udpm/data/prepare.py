"""Preparation of a store from a source: restartable, in bounded memory, with the same bytes after any interruption."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from contextlib import nullcontext, suppress
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
from udpm.core.work import Progress, StopRequest
from udpm.data.decode import STEPS, Preprocessing
from udpm.data.fill import CHUNK, Journal, Outcome, Work, chunk_of, chunks, process_chunks
from udpm.data.inventory import difference, read_inventory, take_inventory, write_inventory
from udpm.data.open import open_source
from udpm.data.source import Source, format_counts, shown
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
"""Least number of chunks that pays for a worker, which takes a quarter of a second to start."""


def prepare(
    config: DatasetConfig, folder: str | Path, workers: int | None = None, stop: StopRequest | bool = False
) -> None:
    """Write ``images.npy``, ``labels.npy`` and, last, ``dataset.json``.

    Work in progress is in a hidden folder next to `folder`, which it replaces when complete. A killed preparation
    resumes from it; a finished store of the same images, prepared in the same way, is left unchanged.

    Args:
        folder: folder of the store; an existing one is replaced once the new one is complete.
        workers: number of processes; default: the configuration's, else one per core if that pays.
        stop: checked after every chunk of images.

    Raises:
        StoppedEarly: stopped by a signal; finished chunks are kept.
        UserError: missing or unusable images, another number of images than configured, a full disk, or another process
            prepares this data set.
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
            # Most likely the disk is full, so free what the partial work takes.
            job.discard()
            raise UserError(f"{folder}: cannot be written: {error.strerror or error}") from None


def _workers(wanted: int | None, source: Source) -> int:
    needed = -(-len(source.names) // CHUNK)
    if wanted is None:
        wanted = min(len(os.sched_getaffinity(0)), needed // CHUNKS_FOR_A_WORKER)
    return max(1, min(wanted, needed)) if source.reader.parallel else 1


class _Job:
    """One preparation of a store in `folder`, with its work in progress in a hidden folder next to it."""

    def __init__(self, config: DatasetConfig, source: Source, folder: Path) -> None:
        self.config, self.source, self.folder = config, source, folder
        partial = folder.with_name(f".{folder.name}.partial")
        # The pixels of all images, including refused ones, and which chunks of them are finished.
        self.rows, self.journal = partial / "rows.npy", partial / "journal.jsonl"
        self._work = WorkFolder(folder, partial, "store", "replaced", (self.rows.name, self.journal.name))
        self.store = self._work.new

    @property
    def header(self) -> dict[str, Any]:
        """Everything that the pixels of a chunk depend on, except its images."""
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
        """Compute the SHA-256 of all inputs of the store; images by name, size, and time of change or checksum."""
        config = self.config.model_dump(mode="json", exclude={"workers", "path"})
        # Recognise stores prepared before these keys existed.
        config = {key: value for key, value in config.items() if value is not None or key not in ("labels", "splits")}
        parts: list[Any] = [self.header, config, self.source.splits]
        if not self.source.labels_follow_names:
            parts.append(self.source.label_digest())
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
        for chunk in chunks(self.source):
            digest.update(chunk.digest.encode())
        return digest.hexdigest()

    def recover(self) -> None:
        """Undo a publication that was interrupted by a kill."""
        self._work.open(keep=True)
        if (self.store / IMAGES).exists() and not self.rows.exists():
            (self.store / IMAGES).rename(self.rows)
        shutil.rmtree(self.store, ignore_errors=True)

    def discard(self) -> None:
        """Remove work in progress, but never a store."""
        with suppress(OSError):
            self.recover()
        self._work.remove()

    def is_finished(self) -> bool:
        """Return True if the store exists, is intact, and was prepared from these images."""
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
            print(f"warning: preparing again: {error}", file=sys.stderr)
            return False
        return True

    def fill(self, workers: int, stop: StopRequest | bool) -> list[Outcome]:
        """Write all rows; return the outcomes of all chunks in order."""
        row_bytes = self.config.side**2 * 3
        # After a kill during publication, these may be rows of another version.
        if self.rows.exists() and self.rows.stat().st_size != HEADER_BYTES + len(self.source.names) * row_bytes:
            self.rows.unlink()
        journal = Journal(self.journal, self.rows, self.header)
        if journal.fresh:
            self._lay_out()
        todo = [chunk.number for chunk in chunks(self.source) if not journal.keep(chunk, row_bytes)]
        total = len(self.source.names)
        done = total - sum(len(chunk_of(self.source, number).names) for number in todo)
        if done:
            print(f"resuming: {done} of {total} images already prepared", file=sys.stderr)
        work = Work(self.source.reader, Preprocessing.from_config(self.config), self.rows)
        synced = time.monotonic()
        with Progress(total, "prepare", "image", done) as progress:
            for outcome in process_chunks(work, (chunk_of(self.source, number) for number in todo), workers, stop):
                journal.add(outcome)
                progress.update(len(chunk_of(self.source, outcome.number).names))
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

    def _lay_out(self) -> None:
        """Allocate the file of all rows, so that a disk that is too small is found before any work."""
        side, count = self.config.side, len(self.source.names)
        self.rows.unlink(missing_ok=True)
        with open(self.rows, "wb") as file:
            file.write(array_header((count, side, side, 3), np.uint8))
            file.flush()
            os.posix_fallocate(file.fileno(), 0, HEADER_BYTES + count * side**2 * 3)

    def publish(self, outcomes: list[Outcome]) -> None:
        """Build the store from complete rows, and move it to its folder.

        Raises:
            UserError: images were refused, and the configuration does not skip them.
        """
        refused = {number: reason for outcome in outcomes for number, reason in outcome.refused.items()}
        training = self.source.splits["train"]
        if refused and (self.config.on_error == "fail" or sum(number < training for number in refused) == training):
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
        _report(self.folder, record, self.source)

    def _check_classes(self, refused: dict[int, str]) -> None:
        """Check that refused images do not remove a whole class."""
        source, labels = self.source, self.source.labels[: self.source.splits["train"]]
        lost = np.setdiff1d(labels, np.delete(labels, [number for number in refused if number < len(labels)]))
        if self.config.classes and len(lost):
            first = next(number for number in refused if source.labels[number] == lost[0])
            name = source.class_names[lost[0]] if source.class_names else lost[0]
            raise UserError(
                f"{self.folder}: none of the training images of class {name} can be used "
                f"({self._place(first)}: {refused[first]}); repair them, or remove the class"
            )

    def _complaint(self, refused: dict[int, str]) -> str:
        first = [f"{self._place(number)}: {reason}" for number, reason in list(refused.items())[:NAMES_SHOWN]]
        more = f"; and {len(refused) - NAMES_SHOWN} more" if len(refused) > NAMES_SHOWN else ""
        return (
            f"{len(refused)} of {len(self.source.names)} images cannot be used: {'; '.join(first)}{more}; "
            "repair or remove them, or set on_error: skip"
        )

    def _place(self, number: int) -> str:
        return shown(os.path.join(os.fsencode(self.config.path or ""), self.source.names[number]))

    def _finish(self, refused: dict[int, str], modes: Counter) -> dict[str, Any]:
        """Write images and labels without refused images; return the record."""
        source, config = self.source, self.config
        kept = np.ones(len(source.names), dtype=bool)
        kept[list(refused)] = False
        labels, numbers = source.labels[kept], np.flatnonzero(kept)
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
            "duplicates": find_duplicates(hashes, labels, splits, lambda row: shown(source.names[numbers[row]])),
            "source": {"fingerprint": self.fingerprint(), **source.notes},
            "config": config.model_dump(mode="json", exclude={"workers"}),
            "files": {path.name: sha256(path) for path in sorted(self.store.iterdir())},
            "sha256": digest.hexdigest(),
            "provenance": provenance.record(),
        }

    def _finish_images(self, kept: np.ndarray) -> tuple[Any, np.ndarray]:
        """Write ``images.npy`` of the store in one pass over all rows.

        Returns:
            SHA-256 of the pixels so far, and each image's content hash, (n, 2) uint64.
        """
        size, count = self.config.side**2 * 3, int(kept.sum())
        digest, hashes, row = hashlib.sha256(), np.empty((count, 2), dtype=np.uint64), 0
        # Rows without gaps already are the file; else copy them, so that a kill loses nothing.
        whole = count == len(kept)
        with open(self.rows, "rb") as rows, nullcontext() if whole else open(self.store / IMAGES, "wb") as images:
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


def _report(folder: Path, record: dict[str, Any], source: Source) -> None:
    """Print splits, classes, and what was left out."""
    print(f"{folder}: {record['count']} images of side {record['side']}")
    for name, (start, stop) in record["splits"].items():
        folders = record["source"].get("splits", {}).get(name)
        origin = f" (from {', '.join(folders)})" if folders else ""
        print(f"  {name}: {stop - start} images{origin}")
    if "test" not in record["splits"]:
        print("  test: none; holdout: N keeps N images out of training, to measure how close a score can get to 0")
    print(f"  {_class_list(record)}")
    if left_out := record["source"].get("left_out"):
        print(f"  left out: {format_counts(left_out)}")
    for warning in source.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    duplicates, skipped = record["duplicates"], record["skipped"]
    if skipped:
        print(f"warning: {len(skipped)} images cannot be used and were skipped; {RECORD} lists them", file=sys.stderr)
    if duplicates["images"]:
        print(
            f"warning: {duplicates['images']} images are exact copies of others ({duplicates['label_conflicts']} times "
            f"with another label, {duplicates['across_splits']} times in another split)",
            file=sys.stderr,
        )


def _class_list(record: dict[str, Any]) -> str:
    """List the first classes with their numbers of images in all splits."""
    if not record["classes"]:
        return "classes: none"
    counts = np.sum(list(record["class_counts"].values()), axis=0).tolist()
    names = record["class_names"] or [f"class {number}" for number in range(record["classes"])]
    listed = [f"{name} {count}" for name, count in zip(names, counts, strict=True)][:CLASSES_SHOWN]
    more = f", and {len(names) - CLASSES_SHOWN} more in {RECORD}" if len(names) > CLASSES_SHOWN else ""
    return f"{len(names)} classes (labels: {record['source'].get('labels')}): {', '.join(listed)}{more}"
