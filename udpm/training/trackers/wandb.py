"""Metrics, previews and configuration in Weights & Biases, offline unless the user asks for the network."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from udpm.training.trackers.base import Tracker

if TYPE_CHECKING:
    from wandb import Run

QUIET = {
    "save_code": False,
    "disable_code": True,
    "disable_git": True,
    "disable_job_creation": True,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
    "console": "off",
    "silent": True,
}
"""Settings that keep code, packages, machine, and printed lines out of W&B."""
SECONDS = {"x_transaction_log_flush_interval": 1.0, "finish_timeout": 15.0, "init_timeout": 60.0, "login_timeout": 1.0}
"""Settings with which a kill loses little, and a network that does not answer delays no end of a training."""
PROJECT = re.compile(r"[/\\#?%:]")
"""Characters that no project's name may have."""
KILLED = 255
"""Exit code that W&B shows as "killed", not as "failed"."""
HEADER, BLOCK = 7, 2**15
"""Bytes at the start of a .wandb file, and of its blocks; it is a log of LevelDB's format."""


class WandB(Tracker):
    """A W&B run, of one id in every attempt. Offline, each attempt has a folder, and no iteration is in two of them."""

    package = "wandb"
    _log: Run

    def open(self) -> int:
        # Otherwise W&B reports to its makers, offline too.
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        import wandb

        run, mode = self.run, os.environ.get("WANDB_MODE") or "offline"
        settings = {key: value for key, value in (QUIET | SECONDS).items() if key in wandb.Settings.model_fields}
        folder = os.environ.get("WANDB_DIR") or run.folder
        self._log = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT.sub("-", run.config.experiment)[:128],
            name=os.environ.get("WANDB_NAME") or run.name,
            id=run.id,
            resume="allow",
            config=run.parameters,
            allow_val_change=True,
            dir=str(folder),
            # The process may track another run, too.
            reinit="create_new",
            settings=wandb.Settings(mode=mode, **settings),
        )
        if mode == "online":
            return self._log.starting_step - 1
        return _last_step(Path(folder) / "wandb", run.id, Path(self._log.dir).parent)

    def add(self, iteration: int, values: Mapping[str, float], image: np.ndarray | None) -> None:
        import wandb

        shown = {} if image is None else {"preview": wandb.Image(image)}
        self._log.log({**values, **shown}, step=iteration, commit=True)

    def close(self, complete: bool) -> None:
        self._log.finish(exit_code=0 if complete else KILLED)

    def abandon(self) -> None:
        # Python's end would wait for W&B's process, for which there is no public way out. Importing may hang, too.
        with suppress(Exception):
            connection: Any = sys.modules["wandb"].setup()._connection
            connection._cleanup()
            connection._proc._process.kill()


def _last_step(folder: Path, run_id: str, own: Path) -> int:
    """Return the last iteration in the folders of a run's earlier attempts, and remove those that hold nothing.

    `wandb sync` stops at an empty file.
    """
    last = 0
    for path in sorted(folder.glob(f"*run-*-{run_id}/run-{run_id}.wandb")):
        if path.parent == own or path.parent.is_symlink():
            continue
        if path.stat().st_size <= HEADER:
            shutil.rmtree(path.parent, ignore_errors=True)
            continue
        last = max(last, *_steps(path))
    return last


def _steps(path: Path) -> Iterator[int]:
    """Yield 0, and the steps in a .wandb file up to its end or its first damage."""
    from google.protobuf.message import DecodeError
    from wandb.proto.wandb_internal_pb2 import Record

    yield 0
    with suppress(DecodeError):
        for data in _records(path):
            record = Record.FromString(data)
            if record.HasField("history"):
                yield record.history.step.num


def _records(path: Path) -> Iterator[bytes]:
    """Yield the records of a .wandb file. Parts of one are in blocks, each with a checksum, its size and its kind."""
    begun = b""
    with open(path, "rb") as file:
        file.seek(HEADER)
        while True:
            left = BLOCK - file.tell() % BLOCK
            if left < 7:
                file.seek(left, 1)
            head = file.read(7)
            size, kind = int.from_bytes(head[4:6], "little"), head[6:]
            data = file.read(size)
            if len(head) < 7 or len(data) < size or kind not in b"\1\2\3\4":
                return
            begun += data
            if kind in b"\1\4":
                yield begun
                begun = b""
