"""Parser of the published code's command lines."""

from __future__ import annotations

import difflib
import re
import shlex
from typing import Any

from udpm.core.errors import UserError
from udpm.interop.flags import BY_NAME, LOSS_WEIGHTS, Flag, is_placeholder

SHELL = re.compile(r"[|&;]+|&?\d*>{1,2}(&\d|[^<>]*)")
"""Shell operators that end a command or redirect its output."""
TRUTH = {"": True, "true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
NUMBERS = {int: "a whole number", float: "a number"}


def parse_command(text: str, gpus: int | None = None) -> tuple[dict[str, Any], int]:
    """Parse a pasted command line of the published code.

    Args:
        text: the command line, with or without the part before the script's name; lines may end in backslashes.
        gpus: number of GPUs; default: from torchrun's options, else 1.

    Returns:
        Values by flag, and the number of GPUs.

    Raises:
        UserError: unknown flags or invalid values.
    """
    try:
        words = shlex.split(re.sub(r"\\[ \t]*\r?\n|[\r\n]", " ", text))
    except ValueError as problem:
        raise UserError(f"a published command line: {problem}") from None
    if not words:
        raise UserError("a published command line: empty")
    script = next((index for index, word in enumerate(words) if word.endswith(".py")), -1)
    flags = _collect(_whole(words[script + 1 :]))
    given = {flag: _value(BY_NAME[flag], values) for flag, values in flags.items()}
    return given, gpus or _processes(words[: max(script, 0)])


def only_samples(flags: dict[str, Any]) -> bool:
    """Return True for the flags of a sampling or latents command, which do not describe a training."""
    trains = any(flags.get(name) is not None for name in LOSS_WEIGHTS)
    return not trains and any(BY_NAME[name].command != "training" for name in flags)


def checkpoint_name(flags: dict[str, Any]) -> str:
    """Return the name of the checkpoint that a sampling command reads, with placeholders for unknown parts."""
    kind = "model_ema_state" if flags.get("use_ema") else "model_state"
    suffix = flags.get("suffix") or "SUFFIX"
    iteration = f"_epoch_E_itr_{flags['from_itrs']}" if flags.get("from_itrs") else ""
    return f"{kind}_{'SUFFIX' if is_placeholder(suffix) else suffix}{iteration}.pt"


def _whole(words: list[str]) -> list[str]:
    """Rejoin words that were split: "-- name", and placeholders of several words."""
    found: list[str] = []
    waiting = iter(words)
    for word in waiting:
        if SHELL.fullmatch(word):
            break
        while word.count("<") > word.count(">"):
            more = next(waiting, None)
            if more is None or more.startswith("-"):
                raise UserError(f"{word}: unterminated placeholder; write a value instead")
            word = f"{word} {more}"
        word = re.sub(r"^[–—](?=\w)", "--", word)
        if word in {"--", "–", "—"}:
            name = next(waiting, None)
            if name is None or name.startswith("-"):
                raise UserError("--: expected the name of a flag directly after the dashes")
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
            raise UserError(f"{word}: unexpected before the first flag; expected a published command line")
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
    """Return the number of GPUs from torchrun's options: processes per node times nodes.

    Raises:
        UserError: the number cannot be parsed.
    """
    counts = {"nproc_per_node": 1, "nnodes": 1}
    for index, word in enumerate(words):
        name, _, value = word.partition("=")
        name = name.lstrip("-").replace("-", "_")
        if name in counts:
            value = value or (words[index + 1] if index + 1 < len(words) else "")
            if not re.fullmatch("[1-9][0-9]{0,5}", value):
                raise UserError(
                    f"--{name}: expected a whole number of 1 or more, got {value!r}; give the number of GPUs by --gpus"
                )
            counts[name] = int(value)
    return counts["nproc_per_node"] * counts["nnodes"]
