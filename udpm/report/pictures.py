"""Pictures inside pages: the first samples of runs."""

from __future__ import annotations

import base64
import html
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from udpm.core.arrays import image_grid
from udpm.sampling.sample_set import first_samples

COUNT, SIDE, GAP = 12, 64, 4
"""Images of a strip, and pixels: largest side of an image that is shown, and between images."""


@dataclass(frozen=True)
class Strips:
    """Strips of images, each under its caption: a part of a page.

    Attributes:
        title: of the part.
        strips: .png files by caption.
    """

    title: str
    strips: dict[str, bytes]

    def html(self) -> str:
        """Return the strips under their title, with the images inside the text."""
        parts = [f'<h2 style="font: bold 16px sans-serif">{html.escape(self.title)}</h2>']
        for caption, png in self.strips.items():
            source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
            text = html.escape(caption)
            parts.append(f'<p style="font: 12px sans-serif">{text}<br><img alt="{text}" src="{source}"></p>')
        return "\n".join(parts)


def draw_strip(record: str | Path) -> bytes:
    """Return the first images of a sample set side by side, as a .png; small ones are enlarged.

    Args:
        record: of the sample set (.json).

    Raises:
        UserError: no readable sample set.
    """
    images = first_samples(record, COUNT)
    height, width = images.shape[1:3]
    picture = Image.fromarray(image_grid([images], len(images), GAP, max(1, SIDE // max(height, width))))
    if max(height, width) > SIDE:
        shrunk = SIDE / max(height, width)
        picture = picture.resize((round(picture.width * shrunk), round(picture.height * shrunk)), Image.Resampling.BOX)
    target = io.BytesIO()
    picture.save(target, format="PNG", optimize=True)
    return target.getvalue()
