"""``udpm doctor``: check what udpm needs from the machine, in bounded time. A check that fails is a line, too."""

from __future__ import annotations

import difflib
import getpass
import io
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import click

from udpm.cli import software
from udpm.cli.options import RESULTS, Verb
from udpm.cli.software import Finding
from udpm.cli.terminal import echo_states
from udpm.cli.train import FILES, default_folder
from udpm.core import gpus
from udpm.core.commands import ask
from udpm.core.errors import UserError, first_line
from udpm.core.files import EXTRACTOR_WEIGHTS, OFFLINE, fetch, writable

Check = Callable[[], Finding]

SLURM_SECONDS = 10.0
"""Seconds that each of SLURM's commands may take."""
SLURM = ("sbatch", "sinfo", "squeue", "sacct", "sacctmgr")
HASHED_BYTES = 2 << 30
"""Largest file whose SHA-256 is computed, which takes a few seconds."""
LITTLE_BYTES, MUCH_TOO_LITTLE_BYTES = 5e9, 1e8
"""Free space below which a training may fill the disk, and below which it cannot start."""
TEXT = "α ≥ 1 × …"
"""Characters that udpm prints."""
VARIABLES = {
    OFFLINE: "nothing is downloaded",
    gpus.POLICY: "exclusive: processes wait for a free GPU; share: they share one",
    "UDPM_SERIES": "set by snakemake for its jobs",
}


def check_slurm() -> Finding:
    """Look for SLURM's commands, and ask for partitions and for ended jobs."""
    missing = [name for name in SLURM if shutil.which(name) is None]
    if len(missing) == len(SLURM):
        return Finding("not here", "no SLURM on this machine")
    if needed := [name for name in missing if name in ("sbatch", "sinfo", "squeue")]:
        return Finding("wrong", f"{', '.join(needed)} not in PATH", "load the module of SLURM that your site documents")
    answer = ask(("sinfo", "--noheader", "--format=%R"), SLURM_SECONDS)
    if answer.trouble:
        return Finding("wrong", answer.trouble, "ask who runs this cluster; `snakemake` alone needs no SLURM")
    accounting = ask(("sacct", "--noheader", "--allocations", "--starttime=now", "--format=JobID"), SLURM_SECONDS)
    found = f"partitions: {', '.join(dict.fromkeys(answer.lines))}"
    if accounting.trouble:
        advice = "set slurm-status-command: squeue in slurm/config.yaml"
        return Finding("warning", f"{found}; {accounting.trouble}", advice)
    return Finding("ok", found)


def check_cluster() -> Finding:
    """Compare account and partition of config/cluster.yaml with those that SLURM knows."""
    from udpm.config.load import load_cluster, source_of

    cluster = load_cluster()
    keys = ("account", "partition")
    set_here = {key: value for key in keys if (value := getattr(cluster, key)) is not None}
    shown = ", ".join(f"{key}: {value}" for key, value in set_here.items()) or "no account or partition is set"
    if shutil.which("sinfo") is None:
        return Finding("not here", f"{shown}; no SLURM on this machine")
    known = {
        "account": ("sacctmgr", "-nP", "show", "assoc", f"user={getpass.getuser()}", "format=account"),
        "partition": ("sinfo", "--all", "--noheader", "--format=%R"),
    }
    for key, value in set_here.items():
        names = list(dict.fromkeys(ask(known[key], SLURM_SECONDS).lines))
        # SLURM knows accounts in lower case. Without an answer, which `check_slurm` reports, any name may be right.
        if names and value.lower() not in map(str.lower, names):
            return Finding("wrong", f"{source_of(key)}: {value} not found", f"set one of: {', '.join(names)}")
    return Finding("ok", shown if len(set_here) == len(keys) else f"{shown}; what is not set is the scheduler's choice")


def check_file(name: str, folder: Path) -> Finding:
    """Look for a file that can be downloaded, and compare its SHA-256 with the published one."""
    file = FILES[name]
    path = folder / file.name
    if not path.exists():
        return Finding(
            "not here",
            f"{path} is missing",
            f"`udpm fetch {name}` downloads it, as does the first command that needs it",
        )
    size = path.stat().st_size
    if file.sha256 is None:
        return Finding("ok", f"{path}, {size / 1e6:.0f} MB; no SHA-256 is published")
    if size > HASHED_BYTES:
        return Finding(
            "warning", f"{path}: not checked, {size / 1e9:.1f} GB", f"`udpm fetch {name} --offline` checks it"
        )
    # Raises for another digest.
    return Finding("ok", str(fetch(file, folder, download=False)))


@software.with_torch
def check_vgg(found: dict[str, Any]) -> Finding:
    """Look for the weights of LPIPS, which torchvision downloads to a folder that PyTorch knows."""
    return check_file("vgg", Path(found["hub"]) / "checkpoints")


def check_folder(folder: Path, advice: str) -> Finding:
    """Create and delete a file in a folder, or in the one that it would be created in, and look for free space."""
    here = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(here).free
    shown = f"{folder}: {free / 1e9:.1f} GB free"
    try:
        writable(here / "file")
    except UserError as error:
        return Finding("wrong", f"{folder}: cannot be written: {str(error).rpartition(': ')[2]}", advice)
    if free < LITTLE_BYTES:
        return Finding("wrong" if free < MUCH_TOO_LITTLE_BYTES else "warning", shown, f"make room, or {advice}")
    return Finding("ok", shown)


def check_terminal() -> Finding:
    """Look whether the characters that udpm prints can be printed here."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        TEXT.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return Finding("warning", f"output is encoded as {encoding}", "export PYTHONUTF8=1 LC_ALL=C.UTF-8")
    return Finding("ok", encoding.lower())


def check_variables() -> Finding:
    """List the environment variables of udpm that are set."""
    from udpm.config.study import ClusterConfig

    cluster = {f"UDPM_{key.upper()}": f"{key} of config/cluster.yaml" for key in ClusterConfig.model_fields}
    known = VARIABLES | cluster
    found = {name: value for name, value in sorted(os.environ.items()) if name.startswith("UDPM_")}
    if not found:
        return Finding("ok", "no UDPM_* is set")
    shown = "; ".join(f"{name}={value}: {known.get(name, 'has no effect')}" for name, value in found.items())
    unknown = [name for name in found if name not in known]
    # Raises for a value that no command would take.
    gpus.is_exclusive()
    if unknown:
        near = difflib.get_close_matches(unknown[0], known, n=1)
        return Finding("warning", shown, f"did you mean {near[0]}?" if near else f"variables: {', '.join(known)}")
    return Finding("ok", shown)


def checks(results: Path) -> dict[str, Check]:
    """Return all checks by their names, in the order of the table."""
    return {
        "Python": software.check_python,
        "packages": software.check_packages,
        "extras": software.check_extras,
        "tested versions": software.check_versions,
        "PyTorch": software.check_torch,
        "CUDA": software.check_cuda,
        "GPUs": software.check_gpus,
        "NCCL": software.check_nccl,
        "SLURM": check_slurm,
        "cluster.yaml": check_cluster,
        **{f"weights {name}": partial(check_file, name, default_folder(name)) for name in EXTRACTOR_WEIGHTS},
        "weights vgg": check_vgg,
        "data cifar10": partial(check_file, "cifar10", default_folder("cifar10")),
        "results": partial(check_folder, results, "name another folder: `results` in config/config.yaml"),
        "temporary files": lambda: check_folder(Path(tempfile.gettempdir()), "export TMPDIR=FOLDER"),
        "terminal": check_terminal,
        "variables": check_variables,
    }


def run(check: Check) -> Finding:
    """Return what a check found. An error in it is something found, too."""
    try:
        return check()
    except UserError as error:
        return Finding("wrong", "; ".join(error.mistakes))
    except Exception as error:
        return Finding("wrong", f"the check failed: {type(error).__name__}: {first_line(error)}")


def _note(one: Finding) -> str:
    """Join what was found and what to do in one line."""
    return " ".join("; ".join(filter(None, (one.found, one.advice))).split())


@click.command(cls=Verb, epilog="Example: udpm doctor --results results")
@click.option("--results", type=RESULTS, default="results", help="Folder of the results; it need not exist.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list.")
def doctor_command(results: Path, as_json: bool) -> None:
    """Check this machine: Python, packages, GPUs, SLURM, downloaded files, disks.

    Run it in the folder from which you run `snakemake`, on the machine that has the problem, such as a node of a
    cluster. Nothing is downloaded or changed.

    \b
    ok        as it should be
    warning   works, but perhaps not as you expect
    wrong     must be fixed; the exit code is 2
    not here  absent, and only some work needs it
    """
    from udpm.runs.status import aligned

    wanted = checks(results)
    with ThreadPoolExecutor(len(wanted)) as threads:
        findings = dict(zip(wanted, threads.map(run, wanted.values()), strict=True))
    if as_json:
        click.echo(json.dumps([{"check": name, **asdict(one)} for name, one in findings.items()], indent=2))
    else:
        # The check of the terminal is for those that cannot show a folder's name.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        lines = [(name, one.state, _note(one)) for name, one in findings.items()]
        echo_states(aligned([("check", "state", "found; what to do"), *lines]))
    wrong = [name for name, one in findings.items() if one.state == "wrong"]
    if wrong:
        raise UserError(f"{len(wanted)} checks, {len(wrong)} wrong: {', '.join(wrong)}")
