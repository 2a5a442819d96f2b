"""Resolve classes by name and by number."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from udpm.core.errors import UserError

NAMES_SHOWN = 8
LONGEST_FOLDER = 60
_UNSAFE = re.compile(r"[/\\:*?\"<>|\x00-\x1f\x7f]|^\.+|^-|[. ]+$")
"""Characters that are unsafe in a folder's name."""


def class_number(label: int | str, names: Sequence[str], classes: int, where: str = "labels") -> int:
    """Resolve a label to a class: by name, else by number.

    If classes are named by numbers, a number is always a name: `10` is never the eleventh class.

    Args:
        label: name or number.
        names: of the classes; empty if unknown.
        classes: number of classes.
        where: option or key that the label came from, for the error.

    Raises:
        UserError: no class has that name or number.
    """
    text = str(label)
    if text in names:
        return names.index(text)
    plain = not any(name.isdecimal() for name in names)
    if text.isdecimal() and (plain or list(names) == [str(number) for number in range(classes)]):
        if int(text[:18]) >= classes:
            raise UserError(
                f"{where}: must be in 0..{classes - 1}, got {text[:18]}{_list_names(names) if plain else ''}"
            )
        return int(text)
    if not names:
        raise UserError(f"{where}: the class names are unknown; expected numbers 0..{classes - 1}, got {text!r}")
    near = difflib.get_close_matches(text, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else _list_names(names)
    raise UserError(f"{where}: no class is called {text!r}{hint}")


def _list_names(names: Sequence[str]) -> str:
    """List the class names, for the end of an error."""
    if not names:
        return ""
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return f"; the classes are {', '.join(names[:NAMES_SHOWN])}{more}"


def class_title(label: int, names: Sequence[str]) -> str:
    """Return the title of a class in figures: its name, or "class 3" if it has none or its name is a number."""
    name = names[label] if label < len(names) else str(label)
    return f"class {name}" if name.isdecimal() else name


def class_folders(names: Sequence[str], classes: int, taken: Iterable[str] = ()) -> list[str]:
    """Return folder names for classes: their names without unsafe characters, or all numbers if those would collide.

    Args:
        names: of the classes; empty if unknown.
        classes: number of classes.
        taken: names already used in the same folder.
    """
    folders = [_UNSAFE.sub("_", name) or str(number) for number, name in enumerate(names)]
    different = {name.casefold() for name in folders} - {name.casefold() for name in taken}
    if len(folders) != classes or len(different) != classes or max(map(len, folders), default=0) > LONGEST_FOLDER:
        return [str(number) for number in range(classes)]
    return folders
