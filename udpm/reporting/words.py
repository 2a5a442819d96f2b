"""What the records of results say, in words that several tables and figures share."""

from __future__ import annotations

from typing import Any

from udpm.core.classes import class_title
from udpm.scoring.records import used_tf32

LONGEST_CLASS = 14


def run(record: dict[str, Any]) -> str:
    """Which run, "digits, seed 0"; what a record does not say is left out."""
    seed = "" if record.get("run_seed") is None else f", seed {record['run_seed']}"
    return f"{record.get('experiment') or 'weights without a run'}{seed}"


def weights(record: dict[str, Any]) -> str:
    """Which weights, "ema weights of iteration 1200" or "imported ema weights"."""
    imported = "imported " if record.get("origin") else ""
    iteration = "" if record.get("iteration") is None else f" of iteration {record['iteration']}"
    return f"{imported}{record.get('weights') or 'unknown'} weights{iteration}"


def calls(record: dict[str, Any]) -> str:
    """How many network calls an image took."""
    known = record.get("nfe")
    return "an unknown number of network calls per image" if known is None else f"{known} network calls per image"


def of_class(record: dict[str, Any], label: int) -> str:
    """A class, "cat", or "class 3" where it has no name or a number for one; a long name is cut."""
    name = class_title(int(label), record.get("class_names") or [])
    return name if len(name) <= LONGEST_CLASS else f"{name[: LONGEST_CLASS - 1]}…"


def noise(record: dict[str, Any]) -> str:
    """Where a sample set's noise came from: "sampling seed 0" or "noise of FILE"."""
    file = record.get("noise")
    if file is None:
        return f"sampling seed {'unknown' if record.get('seed') is None else record['seed']}"
    return f"noise of {file['file']} (SHA-256 {file['sha256'][:12]})"


def drawing(record: dict[str, Any]) -> str:
    """How a sample set was drawn, "scalar posterior, guidance 2, bfloat16 network"; what is usual is left out."""
    told = [f"{record.get('posterior') or 'unknown'} posterior"]
    if record.get("guidance") not in (None, 1):
        told.append(f"guidance {record['guidance']:g}")
    if record.get("precision") not in (None, "float32"):
        told.append(f"{record['precision']} network")
    if used_tf32(record):
        told.append("TF32")
    if record.get("compiled"):
        told.append("compiled")
    return ", ".join(told)
