"""Why an attempt failed: the line that is recorded, and what of it tells one kind of failure from another."""

from __future__ import annotations

import errno
import os
import re

from udpm.core.errors import StoppedEarly, UserError, first_line

NO_ROOM = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT))
"""What a full disk says: one kind of failure, whichever file did not fit."""

_UNIT = r"(?:\s?(?:[kKMGTP]i?B|bytes?|[kMG]?Hz|ms|s|seconds?|minutes?|min|h|hours?|%))?"
_WORD = r"[^\s:;,'\"`()/]"
_SIGNS = [
    # Quoted paths, which may hold spaces.
    (r"""(?<!\w)(['"`])(?:(?!\1).)*/(?:(?!\1).)*\1""", "PATH"),
    # Files that are being written: their names are random, or hold the host and the process.
    (r"""(?<!\w)(['"`])(?:\.|tmp)(?:(?!\1).)*\1""", "PATH"),
    # An absolute path. A relative one has two slashes, or a character that words with a slash lack: "Input/output
    # error" and "generator/lpips" are no paths.
    (r"(?<![\w/.])(?:~|\.{1,2})?/[^\s:;,'\"`()]+", "PATH"),
    (rf"(?<![\w/.-]){_WORD}+(?:/{_WORD}*){{2,}}", "PATH"),
    (rf"(?<![\w/.-])(?=(?:{_WORD}|/)*(?:\d|[._-]\w)){_WORD}+/{_WORD}*", "PATH"),
    (r"(?<![\w.])(?:\.[\w.-]+\.tmp-[\w.-]+|\.?tmp[\w.-]*|[\w.-]+\.(?:tmp|part|partial)\b)", "PATH"),
    # Addresses, and hosts with a port.
    (r"\[[\w.:-]+\]:\d+|\b[a-zA-Z][\w-]*(?:\.[\w-]+)+:\d+\b", "HOST"),
    (r"(?<![\w:])(?:[\da-fA-F]{0,4}:){2,}[\da-fA-F]{0,4}(?![\w:])", "HOST"),
    # Numbers: of a UUID, decimal ones with their units, hexadecimal ones, and what stands in a word such as "node3".
    (r"\b[\da-fA-F]{8}(?:-[\da-fA-F]{4}){3}-[\da-fA-F]{12}\b|\b0[xX][\da-fA-F]+\b", "#"),
    (rf"(?<![\w.])[-+]?\d[\d_]*(?:[.,:]\d+)*(?:[eE][-+]?\d+)?{_UNIT}(?!\w)", "#"),
    (r"(?<![\w.])(?=[a-fA-F]*\d)[\da-fA-F]{8,}(?!\w)", "#"),
    (r"\d+", "#"),
    (rf"#(?:[.,:-]#)*{_UNIT}(?!\w)", "#"),
]
_PATTERNS = [(re.compile(pattern), sign) for pattern, sign in _SIGNS]


def reason_of(error: BaseException) -> str:
    """One line on what ended an attempt, as it is recorded."""
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
    """What two failures of one kind have in common: a reason without paths, numbers, hosts and temporary files.

    Args:
        reason: one line.
        host: where it was recorded, whose name is left out.
    """
    for text in NO_ROOM:
        if re.search(rf"{re.escape(text)}(?: \(os error \d+\))?(?:: ['\"]?[^\s'\"]*['\"]?)?\.?$", reason):
            return text
    for name in sorted({host, host.partition(".")[0]} if host else (), key=len, reverse=True):
        reason = re.sub(rf"(?<![\w-]){re.escape(name)}(?![\w-])", "HOST", reason)
    for pattern, sign in _PATTERNS:
        reason = pattern.sub(sign, reason)
    return " ".join(reason.split())
