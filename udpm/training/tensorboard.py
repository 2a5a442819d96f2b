"""TensorBoard: the values of ``metrics.jsonl`` and the previews as event files."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from udpm.core.errors import UserError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10**9
"""The writer's own thread writes nothing of its own accord: only whoever owns the folder may write."""


def writer_class() -> type[SummaryWriter]:
    """TensorBoard's writer.

    Raises:
        UserError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError("training.tensorboard: needs the tensorboard extra: pip install 'udpm[tensorboard]'") from None
    return SummaryWriter


class Events:
    """Event files in a run's folder, one for each attempt; nothing is written before the first value comes.

    Every call ends with all of it on its way to the disk, so that nothing is left to be written later.

    Args:
        folder: of the event files.
        start: iteration that training starts from; readers drop what earlier attempts told of later ones.
    """

    def __init__(self, folder: Path, start: int) -> None:
        self._folder, self._start = folder, start
        self._writer: SummaryWriter | None = None

    def add_line(self, line: dict[str, Any]) -> None:
        """A line of ``metrics.jsonl``.

        Raises:
            UserError: it cannot be written.
        """

        def add(writer: SummaryWriter) -> None:
            for key, value in line.items():
                if key != "iteration":
                    writer.add_scalar(key, value, line["iteration"])

        self._add(add)

    def add_image(self, image: np.ndarray, iteration: int) -> None:
        """A preview, (height, width, 3) uint8.

        Raises:
            UserError: it cannot be written.
        """
        self._add(lambda writer: writer.add_image("preview", image, iteration, dataformats="HWC"))

    def close(self) -> None:
        """Let go of the file; all that belongs in it is there already."""
        if self._writer is not None:
            with suppress(OSError):
                self._writer.close()

    def _add(self, add: Callable[[SummaryWriter], None]) -> None:
        try:
            if self._writer is None:
                folder, purged = str(self._folder), self._start + 1
                self._writer = writer_class()(folder, purge_step=purged, flush_secs=FLUSH_SECONDS)
            add(self._writer)
            self._writer.flush()
        except OSError as error:
            raise UserError(f"{self._folder}: cannot be written: {error.strerror or error}") from None
