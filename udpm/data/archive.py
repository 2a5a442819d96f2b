"""Writer of image sets in the .zip format of StyleGAN and EDM."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from udpm.core.files import atomic_path
from udpm.core.kinds import image_zip_comment
from udpm.core.work import Progress
from udpm.data.store import Store, open_store

LABELS = "dataset.json"
WRITTEN = (1980, 1, 1, 0, 0, 0)
"""Time stamp of all members, the earliest of the format: equal images make equal bytes."""


def export_split(folder: Path, split: str, path: Path) -> int:
    """Write the images and labels of a prepared data set's split; return the number of images.

    Raises:
        UserError: not a data set, changed since it was prepared, without this split, or the file cannot be written.
    """
    store = open_store(folder)
    chosen = store.split(split)
    count = chosen.stop - chosen.start
    write_archive(path, _images(store, chosen), count, store.labels[chosen].tolist() if store.classes else None)
    return count


def _images(store: Store, chosen: slice) -> Iterator[np.ndarray]:
    """Read some images of a data set, and check the bytes of all."""
    digest, start = hashlib.sha256(), 0
    for block in store.blocks():
        digest.update(block)
        yield from block[max(0, chosen.start - start) : max(0, chosen.stop - start)]
        start += len(block)
    store.check_digest(digest)


def write_archive(path: Path, images: Iterable[np.ndarray], count: int, labels: list[int] | None) -> None:
    """Write images as PNGs named 00000/img00000000.png, and dataset.json with their labels, atomically.

    Members are not compressed, as EDM's and StyleGAN's tools write them, so that the bytes depend on the images alone.

    Args:
        images: (height, width, 3) uint8 each.
        count: their number.
        labels: one for each; None: unlabelled.

    Raises:
        UserError: the file cannot be written.
    """
    names = [f"{number // 1000:05d}/img{number:08d}.png" for number in range(count)]
    with atomic_path(path) as temporary, Progress(count, "export", "image") as progress:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, image in zip(names, images, strict=True):
                png = io.BytesIO()
                Image.fromarray(image).save(png, "PNG", compress_level=0)
                _add(archive, name, png.getvalue())
                progress.update(1)
            pairs = None if labels is None else [list(pair) for pair in zip(names, labels, strict=True)]
            _add(archive, LABELS, json.dumps({"labels": pairs}).encode())
        comment = image_zip_comment(temporary)
        with zipfile.ZipFile(temporary, "a") as archive:
            archive.comment = comment


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    member = zipfile.ZipInfo(name, WRITTEN)
    member.external_attr = 0o644 << 16
    # Otherwise it depends on the system.
    member.create_system = 3
    archive.writestr(member, data)
