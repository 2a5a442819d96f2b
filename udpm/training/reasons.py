"""Why an attempt failed: the recorded line, and the part of it that identifies the kind of failure."""

from __future__ import annotations

import errno
import os
import re

from udpm.core.errors import StoppedEarly, UserError, first_line

NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""Messages of a full disk: the same kind of failure for every file."""

_UNIT = r"(?:\s?(?:[kKMGTP]i?B|bytes?|[kMG]?Hz|ms|s|seconds?|minutes?|min|h|hours?|%))?"
_WORD = r"[^\s:;,'\"`()/]"
_SIGNS = [
    # Quoted paths, which may contain spaces.
    (r"""(?<!\w)(['"`])(?:(?!\1).)*/(?:(?!\1).)*\1""", "PATH"),
    # Temporary files: their names are random, or contain the host and the process.
    (r"""(?<!\w)(['"`])(?:\.|tmp)(?:(?!\1).)*\1""", "PATH"),
    # Absolute paths; relative ones with two slashes, or with a digit, dot, underscore or hyphen, so that "Input/output
    # error" and "generator/lpips" are kept.
    (r"(?<![\w/.])(?:~|\.{1,2})?/[^\s:;,'\"`()]+", "PATH"),
    (rf"(?<![\w/.-]){_WORD}+(?:/{_WORD}*){{2,}}", "PATH"),
    (rf"(?<![\w/.-])(?=(?:{_WORD}|/)*(?:\d|[._-]\w)){_WORD}+/{_WORD}*", "PATH"),
    (r"(?<![\w.])(?:\.[\w.-]+\.tmp-[\w.-]+|\.?tmp[\w.-]*|[\w.-]+\.(?:tmp|part|partial)\b)", "PATH"),
    # Addresses, and hosts with a port.
    (r"\[[\w.:-]+\]:\d+|\b[a-zA-Z][\w-]*(?:\.[\w-]+)+:\d+\b", "HOST"),
    (r"(?<![\w:])(?:[\da-fA-F]{0,4}:){2,}[\da-fA-F]{0,4}(?![\w:])", "HOST"),
    # Numbers: UUIDs, decimal ones with units, hexadecimal ones, and digits within a word such as "node3".
    (r"\b[\da-fA-F]{8}(?:-[\da-fA-F]{4}){3}-[\da-fA-F]{12}\b|\b0[xX][\da-fA-F]+\b", "#"),
    (rf"(?<![\w.])[-+]?\d[\d_]*(?:[.,:]\d+)*(?:[eE][-+]?\d+)?{_UNIT}(?!\w)", "#"),
    (r"(?<![\w.])(?=[a-fA-F]*\d)[\da-fA-F]{8,}(?!\w)", "#"),
    (r"\d+", "#"),
    (rf"#(?:[.,:-]#)*{_UNIT}(?!\w)", "#"),
]
_PATTERNS = [(re.compile(pattern), sign) for pattern, sign in _SIGNS]


def reason_of(error: BaseException) -> str:
    """Return one line about the exception that ended an attempt."""
    if isinstance(error, UserError):
        told = "; ".join(error.mistakes)
    elif isinstance(error, KeyboardInterrupt):
        told = "interrupted"
    elif isinstance(error, StoppedEarly):
        told = str(error)
    elif isinstance(error, OSError) and error.strerror:
        told = f"{error.filename}: {error.strerror}" if error.filename is not None else error.strerror
    else:
        kind, text = type(error).__name__, first_line(error)
        told = text if text == kind else f"{kind}: {text}"
    return " ".join(told.split())


def kind_of(reason: str, host: str | None = None) -> str:
    """Return a reason without paths, numbers, hosts and temporary files: equal for failures of the same kind.

    Args:
        reason: one line.
        host: name of the host it was recorded on, which is removed too.
    """
    for text in NO_ROOM:
        if re.search(rf"{re.escape(text)}(?: \(os error \d+\))?(?:: ['\"]?[^\s'\"]*['\"]?)?\.?$", reason):
            return text
    for name in sorted({host, host.partition(".")[0]} if host else (), key=len, reverse=True):
        reason = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "HOST", reason)
    for pattern, sign in _PATTERNS:
        reason = pattern.sub(sign, reason)
    return " ".join(reason.split())
