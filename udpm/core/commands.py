"""Other programs' answers, in bounded time and size: SLURM's commands, and Python in another process."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass

PATIENCE = 20.0
"""Seconds that one command may take."""
MAX_OUTPUT = 64 * 1024**2
"""Bytes of a command's output that are read."""


@dataclass(frozen=True)
class Answer:
    """The lines that a command printed, or, in one line, the reason of its failure."""

    lines: tuple[str, ...] = ()
    trouble: str | None = None


def ask(command: tuple[str, ...], seconds: float = PATIENCE) -> Answer:
    """Run a command for at most `seconds` and return its output, or the reason of its failure."""
    name = command[0]
    if shutil.which(name) is None:
        return Answer(trouble=f"{name} not found in PATH")
    # SINFO_PARTITION, SQUEUE_STATES and others would change the output.
    unwanted = ("SINFO_", "SQUEUE_", "SACCT_")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    # Files, not pipes: a child that outlives the command would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=errors, env=environment, start_new_session=True
            )
        except OSError as error:
            return Answer(trouble=f"{name}: {error.strerror or error}")
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return Answer(trouble=f"{name} did not answer in {seconds:g} s")
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read(MAX_OUTPUT).decode(errors="replace"))
    if code:
        said = next((line.strip() for line in "\n".join(reversed(texts)).splitlines() if line.strip()), f"code {code}")
        return Answer(trouble=said if said.startswith(f"{name}:") else f"{name}: {said}")
    return Answer(tuple(line for line in texts[0].splitlines() if line.strip()))
