"""A sample set as image files."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from udpm.core.files import atomic_folder, write_json
from udpm.data.samples import load_samples

FORMAT = "udpm-images/1"
RECORD = "export.json"
JPEG_QUALITY = 95


def export_images(samples: Path, folder: Path, layout: str, image_format: str) -> int:
    """Write one file per image, named by its number; outputs of other levels go into folders ``level_l``.

    Args:
        samples: .npz of a sample set.
        folder: where to; an export that is there is replaced once the new one is whole, anything else is refused.
        layout: "flat", or "classes" for a folder for each class.
        image_format: "png" (lossless) or "jpg" (quality 95).

    Returns:
        The number of files.

    Raises:
        UserError: no readable sample set, or the folder holds something else.
    """
    found = load_samples(samples)
    sets = {"": found.images} | {f"level_{level}": images for level, images in found.outputs.items()}
    digits = max(5, len(str(len(found.images) - 1)))
    total = len(found.images) * len(sets)
    by_class = layout == "classes" and found.record.get("classes", 0) > 0
    with (
        atomic_folder(folder, RECORD) as building,
        tqdm(total=total, unit="file", desc="export", disable=not sys.stderr.isatty()) as progress,
    ):
        for name, images in sets.items():
            for number, (image, label) in enumerate(zip(images, found.labels, strict=True)):
                place = building / name / (str(label) if by_class else "")
                place.mkdir(parents=True, exist_ok=True)
                _write(image, place / f"{number:0{digits}d}.{image_format}")
                progress.update()
        write_json(building / RECORD, {"format": FORMAT, "layout": layout, "samples": found.record})
    return total


def _write(image: np.ndarray, path: Path) -> None:
    options = {"quality": JPEG_QUALITY, "subsampling": 0} if path.suffix == ".jpg" else {}
    Image.fromarray(image).save(path, **options)
