"""Call the workflow as a user does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tiny import ROOT

BIN = Path(sys.executable).parent


SOURCES = ("config", "workflow", "slurm", "envs")


def run(*command, cwd=ROOT, **options):
    return subprocess.run(list(map(str, command)), cwd=cwd, capture_output=True, text=True, **options)


def snakemake(*arguments, cwd=ROOT):
    return run(BIN / "snakemake", *arguments, cwd=cwd)
