"""Metrics, previews and configuration as TensorBoard's event files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from udpm.runs.layout import tracker_folder
from udpm.training.trackers.base import Tracker

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FLUSH_SECONDS = 10**9
"""Keeps the writer's thread from flushing: only the folder's holder may write."""
LARGEST = 2**16
"""Bytes of a record that may hold a scalar; images have more, and are skipped unread."""


class TensorBoard(Tracker):
    """Event files in the run's folder, one for each attempt. Every call flushes."""

    package = "tensorboard"
    _writer: SummaryWriter

    def open(self) -> int:
        from torch.utils.tensorboard import SummaryWriter

        folder = tracker_folder(self.run.folder, "tensorboard")
        # The last iteration may lack values: readers drop it, and it is written again.
        purged = min(self.run.start + 1, _last_step(folder))
        self._writer = SummaryWriter(str(folder), purge_step=purged, flush_secs=FLUSH_SECONDS)
        text = json.dumps(self.run.parameters, indent=2, ensure_ascii=False)
        self._writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)
        self._writer.flush()
        return max(0, purged - 1)

    def add(self, iteration: int, values: Mapping[str, float], image: np.ndarray | None) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, iteration)
        if image is not None:
            self._writer.add_image("preview", image, iteration, dataformats="HWC")
        self._writer.flush()

    def close(self, complete: bool) -> None:
        self._writer.close()


def _last_step(folder: Path) -> int:
    """Return the last step of the newest event file that has a scalar; 0 if none does."""
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        last = 0
        for data in _records(path):
            # Damaged: what follows is written again.
            with suppress(DecodeError):
                event = Event.FromString(data)
                if any(value.tag != "config/text_summary" for value in event.summary.value):
                    last = event.step
        if last:
            return last
    return 0


def _records(path: Path) -> Iterator[bytes]:
    """Yield the small records of an event file: each is its length, a checksum, the data, and a checksum.

    TensorBoard's reader computes the checksums of all images in Python.
    """
    with open(path, "rb") as file:
        end = path.stat().st_size
        while len(head := file.read(12)) == 12:
            size = int.from_bytes(head[:8], "little")
            if file.tell() + size + 4 > end:
                # Cut by a kill.
                return
            if size <= LARGEST:
                yield file.read(size)
                file.seek(4, 1)
            else:
                file.seek(size + 4, 1)
