"""Paths as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from udpm.core.errors import UserError

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def expanded(path: str, key: str) -> Path:
    """A path with `~`, `$NAME` and `${NAME}` replaced. A path that exists as it is written is left alone.

    Args:
        path: as written.
        key: of the configuration, for the error.

    Raises:
        UserError: a variable or a user that does not exist.
    """
    if os.path.lexists(path):
        return Path(path)

    def value(found: re.Match) -> str:
        name = found[1].strip("{}")
        if not os.environ.get(name):
            raise UserError(f"{key}: {path!r} has ${name} in it, which is not set; set it or write the path out")
        return os.environ[name]

    replaced = os.path.expanduser(_VARIABLE.sub(value, path))
    if path.startswith("~") and replaced.startswith("~"):
        raise UserError(f"{key}: {path!r} begins with ~, but no home folder of that user is known; write the path out")
    return Path(replaced)
