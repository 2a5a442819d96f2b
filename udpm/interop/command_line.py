"""Command lines of the published code: words to flags."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

from udpm.core.errors import UserError
from udpm.interop.flags import BY_NAME, LOSS_WEIGHTS, Flag, is_placeholder

SHELL = re.compile(r"[|&;]+|&?\d*>{1,2}(&\d|[^<>]*)")
"""Words of a shell that end a command or send its output elsewhere."""


TRUTH = {"": True, "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}


NUMBERS = {int: "a whole number", float: "a number"}


def parse_command(text: str, gpus: int | None = None) -> tuple[dict[str, Any], int]:
    """A published command line, pasted as it stands: flag to value, and the number of GPUs it was started on.

    Args:
        text: with or without what stands before the script's name; lines may end in backslashes.
        gpus: the number of GPUs, where it is known; else torchrun's options tell, and without them it is 1.

    Raises:
        UserError: unknown flags, or values that are not what a flag takes.
    """
    try:
        words = shlex.split(re.sub(r"\\[ \t]*\r?\n|[\r\n]", " ", text))
    except ValueError as problem:
        raise UserError(f"a published command line: {problem}") from None
    if not words:
        raise UserError("a published command line: is empty")
    script = next((index for index, word in enumerate(words) if word.endswith(".py")), -1)
    flags = _collect(_whole(words[script + 1 :]))
    given = {flag: _value(BY_NAME[flag], values) for flag, values in flags.items()}
    return given, gpus or _processes(words[: max(script, 0)])


def only_samples(flags: dict[str, Any]) -> bool:
    """Whether flags are those of a sampling or latents command, which say nothing of a training."""
    trains = any(flags.get(name) is not None for name in LOSS_WEIGHTS)
    return not trains and any(BY_NAME[name].command != "training" for name in flags)


def checkpoint_name(flags: dict[str, Any]) -> str:
    """The file that a published sampling command reads, as far as its flags tell."""
    kind = "model_ema_state" if flags.get("use_ema") else "model_state"
    suffix = flags.get("suffix") or "SUFFIX"
    iteration = f"_epoch_E_itr_{flags['from_itrs']}" if flags.get("from_itrs") else ""
    return f"{kind}_{'SUFFIX' if is_placeholder(suffix) else suffix}{iteration}.pt"


def _whole(words: list[str]) -> list[str]:
    """Words with what was torn apart put together: "-- name", and placeholders of several words."""
    found: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if SHELL.fullmatch(word):
            break
        while word.count("<") > word.count(">"):
            more = next(waiting, None)
            if more is None or more.startswith("-"):
                raise UserError(f"{word}: a placeholder that does not end; write a value instead")
            word = f"{word} {more}"
        word = re.sub(r"^[–—](?=\w)", "--", word)
        if word in {"--", "–", "—"}:
            name = next(waiting, None)
            if name is None or name.startswith("-"):
                raise UserError("--: no flag's name follows; write it right after the dashes")
            word = f"--{name}"
        found.append(word)
    return found


def _collect(words: list[str]) -> dict[str, list[str]]:
    flags: dict[str, list[str]] = {}
    current: list[str] | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            if name not in BY_NAME:
                near = difflib.get_close_matches(name, BY_NAME, n=1)
                hint = f"; did you mean --{near[0]}?" if near else ""
                raise UserError(f"--{name}: not a flag of the published commands{hint}")
            current = flags[BY_NAME[name].name] = [value] if equals else []
        elif word[1:].partition("=")[0] in BY_NAME and word.startswith("-"):
            raise UserError(f"{word}: flags begin with two dashes; did you mean -{word}?")
        elif current is None:
            raise UserError(f"{word}: stands before any flag; expected a published command line")
        else:
            current.append(word)
    return flags


def _value(flag: Flag, words: list[str]) -> Any:
    text = " ".join(words)
    if flag.kind is not str and is_placeholder(text):
        raise UserError(
            f"--{flag.name}: {text} is a placeholder; write {NUMBERS.get(flag.kind, 'true or false')} instead"
        )
    if flag.kind is bool:
        if text.lower() not in TRUTH:
            raise UserError(f"--{flag.name}: expected true or false, got {text!r}")
        return TRUTH[text.lower()]
    if flag.may_be_none and text.lower() == "none":
        return None
    if not words or (len(words) > 1 and not flag.many):
        wanted = "values" if flag.many else "one value"
        raise UserError(f"--{flag.name}: expected {wanted}, got {text or 'none'}")
    try:
        found = [flag.kind(word) for word in words]
    except ValueError:
        raise UserError(f"--{flag.name}: expected {flag.kind.__name__}, got {text!r}") from None
    return found if flag.many else found[0]


def _processes(words: list[str]) -> int:
    """GPUs that torchrun was told of: processes on a node, times nodes.

    Raises:
        UserError: their number cannot be read.
    """
    counts = {"nproc_per_node": 1, "nnodes": 1}
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in counts:
            value = value or (words[index + 1] if index + 1 < len(words) else "")
            if not re.fullmatch("[1-9][0-9]{0,5}", value):
                raise UserError(
                    f"--{name}: expected a whole number of 1 or more, got {value!r}; say the number of GPUs with --gpus"
                )
            counts[name] = int(value)
    return counts["nproc_per_node"] * counts["nnodes"]
