"""Checks of ``udpm doctor`` on Python, packages, PyTorch and GPUs. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from udpm.core import gpus
from udpm.core.commands import Answer, ask
from udpm.core.errors import UserError
from udpm.core.reading import read_text

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, if udpm runs from one."""
SECONDS = 60.0
"""Patience with importing torch and initializing CUDA, which may hang with a broken driver."""
SURVEY = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
try:
    from udpm.core.devices import survey
    print(json.dumps(survey()))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
"""
"""Program for another process, with the modules of this one: a broken driver ends the process that initializes it."""
TEXT_BYTES = 1 << 20
BUILDS = "https://pytorch.org/get-started/locally"
HIDING = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
FREE_SHARE = 0.1
"""A GPU with less of its memory free is probably in use."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        state: ok; warning: works, but perhaps not as expected; wrong: must be fixed; not here: absent, and only some
            work needs it.
        found: what there is.
        advice: what to do; may be empty.
    """

    state: Literal["ok", "warning", "wrong", "not here"]
    found: str
    advice: str = ""


@dataclass(frozen=True)
class Requirements:
    """Requirements in pyproject.toml: Python, packages, and packages by the name of the extra (those of users)."""

    python: str
    packages: list[str]
    extras: dict[str, list[str]]


def is_checkout() -> bool:
    """Return whether udpm runs from a checkout, where its project file and the tested versions are."""
    return (ROOT / "pyproject.toml").is_file() and (ROOT / "envs/constraints.txt").is_file()


def requirements() -> Requirements:
    """Read what udpm needs: from the checkout, whose installation may be older, else from the installation.

    Raises:
        UserError: neither exists.
    """
    if is_checkout():
        # Slow to import.
        import tomllib

        project = tomllib.loads(read_text(ROOT / "pyproject.toml", "project file", TEXT_BYTES))["project"]
        extras, packages = project["optional-dependencies"], project["dependencies"]
        python = project["requires-python"]
    else:
        try:
            about = metadata.metadata("udpm")
        except metadata.PackageNotFoundError:
            raise UserError("udpm is not installed, and this is no checkout of it") from None
        listed = [re.split(r"; *extra == ", text) for text in metadata.requires("udpm") or []]
        extras = {name: [] for name in about.get_all("Provides-Extra") or []}
        packages, python = [parts[0] for parts in listed if len(parts) == 1], about["Requires-Python"] or ""
        for text, *extra in listed:
            for name in extra:
                extras[name.strip("\"'")].append(text)
    # `all` is the others together.
    shown = {name: texts for name, texts in extras.items() if name not in ("all", "dev")}
    return Requirements(python, packages, {name: _flat(texts, extras) for name, texts in shown.items()})


def _flat(texts: list[str], extras: Mapping[str, list[str]]) -> list[str]:
    """Replace udpm[EXTRA] by the extra's packages."""
    found: list[str] = []
    for text in texts:
        own = re.fullmatch(r"udpm\[(.*)\]", text)
        found += [text] if own is None else [part for name in own[1].split(",") for part in _flat(extras[name], extras)]
    return found


def _installed(requirement: Requirement) -> str | None:
    """Return a required package's installed version; None: it is not installed."""
    try:
        return metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return None


def _unmet(wanted: list[str]) -> list[str]:
    """Describe the packages that are missing or whose versions are out of bounds."""
    found = []
    for requirement in map(Requirement, wanted):
        version = _installed(requirement)
        if version is None:
            found.append(f"{requirement.name} is missing")
        elif not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{requirement.name} {version} is not {requirement.specifier}")
    return found


def pip_command(*extras: str) -> str:
    """Return the command that installs udpm with extras, as this one was installed."""
    listed = f"[{','.join(extras)}]" if extras else ""
    return f"pip install -c envs/constraints.txt -e '.{listed}'" if is_checkout() else f"pip install 'udpm{listed}'"


def check_python() -> Finding:
    """Compare Python's version with the one that udpm needs."""
    wanted, version = requirements().python, platform.python_version()
    if not SpecifierSet(wanted).contains(version, prereleases=True):
        return Finding("wrong", f"{version} ({sys.executable})", f"udpm needs {wanted}")
    return Finding("ok", f"{version} ({sys.executable})")


def check_packages() -> Finding:
    """Look for the packages that every installation needs."""
    wanted = requirements().packages
    if unmet := _unmet(wanted):
        return Finding("wrong", ", ".join(unmet), pip_command())
    return Finding("ok", f"{len(wanted)} required packages")


def check_extras() -> Finding:
    """Look for the packages of the extras. A missing extra is no mistake."""
    unmet = {name: found for name, texts in requirements().extras.items() if (found := _unmet(texts))}
    if not unmet:
        return Finding("ok", ", ".join(requirements().extras))
    shown = "; ".join(f"{name}: {', '.join(found)}" for name, found in unmet.items())
    missing = all(text.endswith("is missing") for found in unmet.values() for text in found)
    return Finding("not here" if missing else "warning", shown, pip_command(*unmet))


def check_versions() -> Finding:
    """Compare installed versions with those that were tested together."""
    if not is_checkout():
        return Finding("not here", "envs/constraints.txt is in a checkout only")
    pins = read_text(ROOT / "envs/constraints.txt", "list of versions", TEXT_BYTES)
    tested = {name.lower(): version for name, version in re.findall(r"^([\w.-]+)==(\S+)", pins, re.M)}
    needs = requirements()
    wanted = dict.fromkeys([*needs.packages, *(text for texts in needs.extras.values() for text in texts)])
    versions = {one.name.lower(): version for one in map(Requirement, wanted) if (version := _installed(one))}
    differing = [
        f"{name} {version} (tested: {tested[name]})"
        for name, version in sorted(versions.items())
        if name in tested and version.partition("+")[0] != tested[name]
    ]
    if differing:
        return Finding("warning", ", ".join(differing), pip_command("all"))
    return Finding("ok", f"{len(versions)} packages as in envs/constraints.txt")


@cache
def _answer() -> Answer:
    return ask((sys.executable, "-c", SURVEY, json.dumps(sys.path)), SECONDS)


_asking = threading.Lock()
"""Lets the first check ask, and the others wait for its answer."""


def survey() -> dict[str, Any]:
    """Return what PyTorch says about itself and its GPUs: see `udpm.core.devices.survey`.

    Raises:
        UserError: it cannot be imported, ends the process, or does not answer.
    """
    with _asking:
        answer = _answer()
    if answer.trouble or not answer.lines:
        raise UserError((answer.trouble or "nothing was printed").removeprefix(f"{sys.executable}: "))
    return json.loads(answer.lines[-1])


def with_torch(check: Callable[[dict[str, Any]], Finding]) -> Callable[[], Finding]:
    """Give a check the answer of PyTorch; without one, whose reason `check_torch` gives, there is nothing to check."""

    def checked() -> Finding:
        try:
            found = survey()
        except UserError:
            return Finding("not here", "needs PyTorch")
        return check(found)

    return checked


def check_torch() -> Finding:
    """Name PyTorch's version and the devices that it was built for."""
    found = survey()
    build = f"for CUDA {found['cuda']}" if found["cuda"] else f"for ROCm {found['hip']}" if found["hip"] else "for CPUs"
    return Finding("ok", f"{found['torch']}, {build}")


@with_torch
def check_cuda(found: dict[str, Any]) -> Finding:
    """Compare the CUDA of PyTorch with that of the driver."""
    if not found["cuda"]:
        if not found["hip"] and any(Path("/dev").glob("nvidia[0-9]*")):
            return Finding(
                "warning", "a GPU of NVIDIA is here, but this PyTorch is for CPUs", f"another build: {BUILDS}"
            )
        return Finding("not here", "this PyTorch is not for CUDA")
    if not found["driver"]:
        return Finding("not here", f"PyTorch has {found['cuda']}, but there is no driver of NVIDIA")
    driver = f"{found['driver'] // 1000}.{found['driver'] % 1000 // 10}"
    shown = f"PyTorch has {found['cuda']}, the driver takes up to {driver}"
    # Within a major version, an older driver runs newer builds.
    if Version(found["cuda"]).major > Version(driver).major:
        return Finding("wrong", shown, f"update the driver, or install PyTorch for CUDA {driver}: {BUILDS}")
    return Finding("ok", shown)


@with_torch
def check_gpus(found: dict[str, Any]) -> Finding:
    """Name the GPUs with their memory and users, or say why there is none."""
    names = gpus.visible()
    if not found["gpus"]:
        reason = found["trouble"] or "PyTorch sees none"
        if names and (found["cuda"] or found["hip"]):
            return Finding("wrong", f"{len(names)} expected, but: {reason}", "compare with nvidia-smi")
        hiding = next((name for name in HIDING if name in os.environ), None)
        if hiding and not names:
            return Finding("not here", f"{hiding} is {os.environ[hiding]!r}", f"unset {hiding} to use GPUs")
        return Finding("not here", reason, "everything runs on the CPU")
    shown, busy = [], False
    for index, gpu in enumerate(found["gpus"]):
        users = gpus.users_of(names[index]) if index < len(names) else 0
        free = gpu["free"]
        busy |= free is None or free < FREE_SHARE * gpu["memory"]
        room = "free memory unknown" if free is None else f"{free / 1e9:.1f} of {gpu['memory'] / 1e9:.1f} GB free"
        used = f", used by {users} process{'es' * (users > 1)} of udpm" if users else ""
        shown.append(f"{index}: {gpu['name']}, {room}{used}")
    advice = "wait for the processes that use it, or set CUDA_VISIBLE_DEVICES" if busy else ""
    return Finding("warning" if busy else "ok", "; ".join(shown), advice)


@with_torch
def check_nccl(found: dict[str, Any]) -> Finding:
    """Look for NCCL, which training on several GPUs needs."""
    if found["nccl"]:
        return Finding("ok", found["nccl"])
    missing = "not in this PyTorch; only training on several GPUs needs it"
    if len(found["gpus"]) > 1:
        return Finding("warning", missing, f"another build: {BUILDS}")
    return Finding("not here", missing)
