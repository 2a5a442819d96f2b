"""Decode one encoded image to RGB pixels of a given side."""

from __future__ import annotations

import io
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import BmpImagePlugin, Image, ImageOps, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from udpm.config.dataset import DatasetConfig

FORMATS = [
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
    )
]
"""The only decoders that may open a file."""

STEPS = (
    "first frame; turned as EXIF says; transparency over the background; RGB (16 bits: the high byte); shorter side to "
    "the given side (bicubic, antialiased, Pillow); centre crop"
)
PNG_SIGNATURE, PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
BITS_PER_SAMPLE, PHOTOMETRIC = TiffImagePlugin.BITSPERSAMPLE, TiffImagePlugin.PHOTOMETRIC_INTERPRETATION
_ORIENTED = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
_TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
_OPAQUE = ("1", "L", "P", "RGB", "CMYK", "YCbCr")
_STANDARD_ERROR = threading.Lock()


class ImageError(Exception):
    """An image that cannot be used; the message gives a short reason."""


@dataclass(frozen=True)
class Preprocessing:
    """Settings that determine an image's pixels, and limits on decoding; see `DatasetConfig`."""

    side: int
    background: tuple[int, int, int] = (255, 255, 255)
    max_pixels: int = 100_000_000
    max_file_bytes: int = 268_435_456

    @classmethod
    def from_config(cls, config: DatasetConfig) -> Preprocessing:
        """Take the settings of a configured data set."""
        red, green, blue = config.background
        return cls(config.side, (red, green, blue), config.max_pixels, config.max_file_bytes)


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Replace Pillow's pixel limit by this module's, and suppress warnings, which name no file."""
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def to_rgb(content: bytes | np.ndarray, recipe: Preprocessing) -> tuple[Image.Image, str]:
    """Decode one image; call it inside `quiet_decoders`.

    Args:
        content: an encoded file, or (height, width, 3) uint8 pixels.

    Returns:
        The upright RGB image, and the mode it was stored in.

    Raises:
        ImageError: unreadable, too large, smaller than the side, or of a mode that RGB cannot hold.
    """
    if not isinstance(content, bytes):
        _check_size((content.shape[1], content.shape[0]), recipe)
        return Image.fromarray(content), "RGB"
    image = _decoded(content, recipe)
    mode = image.mode
    if any(key in image.info for key in _ORIENTED):
        image = _upright(image)
    return _opaque_rgb(image, recipe.background), mode


def _decoded(content: bytes, recipe: Preprocessing) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(content), formats=FORMATS)
        _check_size(image.size, recipe)
        _check_samples(image)
        with _silent(image):
            image.load()
    except ImageError:
        raise
    except Exception as error:  # Damaged bytes make decoders raise errors of any type.
        if "MAX_TEXT" in str(error) and (bare := _without_texts(content)) != content:
            return _decoded(bare, recipe)
        raise ImageError(f"not a readable image{_because(error)}") from None
    return image


def fit(image: Image.Image, side: int) -> np.ndarray:
    """Scale the shorter side to `side` (bicubic, antialiased when shrinking), then crop the centre.

    Returns:
        (side, side, 3) uint8.
    """
    width, height = image.size
    factor = side / min(width, height)
    if factor != 1:
        size = (max(side, round(width * factor)), max(side, round(height * factor)))
        image = image.resize(size, Image.Resampling.BICUBIC)
    if image.size != (side, side):
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    return np.asarray(image)


def _check_size(size: tuple[int, int], recipe: Preprocessing) -> None:
    width, height = size
    if width * height > recipe.max_pixels:
        raise ImageError(f"claims {width}×{height} pixels, more than max_pixels {recipe.max_pixels}")
    if min(size) < recipe.side:
        raise ImageError(f"has {width}×{height} pixels, smaller than side {recipe.side}")


@contextmanager
def _silent(image: Image.Image) -> Iterator[None]:
    """Silence libtiff, which writes about damaged data to standard error without naming the file; Pillow raises too."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        yield
        return
    with _STANDARD_ERROR:
        sys.stderr.flush()
        kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        try:
            os.dup2(nowhere, 2)
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            os.close(nowhere)


def _check_samples(image: Image.Image) -> None:
    """Refuse TIFFs whose values Pillow returns without the scale or sign needed to convert them to grey levels."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile) or not image.mode.startswith("I"):
        return
    bits, inverted = image.tag_v2.get(BITS_PER_SAMPLE, (1,))[0], image.tag_v2.get(PHOTOMETRIC) == 0
    if bits != 16 or image.mode == "I" or inverted:
        kind = "inverted" if inverted else "signed" if bits == 16 else "grey"
        raise ImageError(f"is a TIFF of {bits}-bit {kind} values, which cannot be turned into RGB faithfully")


def _without_texts(content: bytes) -> bytes:
    """Remove texts and colour profile from a PNG: Pillow refuses the image if one of them unpacks to a megabyte."""
    if not content.startswith(PNG_SIGNATURE):
        return content
    kept, start = [PNG_SIGNATURE], len(PNG_SIGNATURE)
    while start + 12 <= len(content):
        end = start + 12 + int.from_bytes(content[start : start + 4], "big")
        if content[start + 4 : start + 8] not in PNG_TEXTS:
            kept.append(content[start:end])
        start = end
    return b"".join(kept)


def _upright(image: Image.Image) -> Image.Image:
    """Rotate and mirror as the metadata says; ignore unreadable metadata."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image


def _opaque_rgb(image: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith("I"):
        image = _high_byte(image)
    if image.mode in _TRANSPARENT or (image.mode in _OPAQUE and "transparency" in image.info):
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), layer).convert("RGB")
    if image.mode not in _OPAQUE:
        raise ImageError(f"mode {image.mode} cannot be turned into RGB faithfully")
    return image if image.mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> Image.Image:
    """Convert 16-bit grey to 8 bits by the high byte, as Pillow does for colour; for grey it would clip at 255."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(f"mode {image.mode} cannot be turned into RGB faithfully: values beyond 16 bits")
    grey = Image.fromarray((values >> 8).astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        # Only one 16-bit value is transparent, not all with the same high byte.
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _because(error: Exception) -> str:
    text = " ".join(str(error).split())
    return "" if not text or "BytesIO" in text else f" ({text})"
