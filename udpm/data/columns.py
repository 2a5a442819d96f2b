"""Find columns of a label file that assign images to splits: test images must not be trained on unnoticed."""

from __future__ import annotations

import json
import re
from typing import Any

from udpm.core.errors import UserError
from udpm.data.layout import Layout, split_word
from udpm.data.source import shown

READ = ("file_name", "label")
"""Columns that are used for something else."""
MOST_VALUES = 8
"""A column of more distinct values does not hold splits."""
SPLIT_WORDS = ("split", "partition")
"""Ends of words in the names of columns that hold splits under any values, such as 0, 1 and 2 in CelebA's."""
TRUTH = {"0", "1", "0.0", "1.0", "true", "false", "yes", "no", "t", "f", "y", "n", ""}


class Columns:
    """Distinct values in the columns of one label file, of the images that would be trained on.

    Args:
        layout: splits of the images.
    """

    def __init__(self, layout: Layout):
        # Images that are held out by chance come from all of them.
        self._trains = set(layout.splits["train"].tolist()) if layout.folders else None
        self._passed = set(READ)
        self._rows = 0
        self._counts: dict[str, int] = {}
        self._found: dict[str, dict[str, str]] = {}

    def note(self, where: str, number: int, values: dict[str, Any]) -> None:
        """Record the values of a row.

        Args:
            where: file and line, for errors.
            number: index of the image.
            values: by column.
        """
        if self._trains is not None and number not in self._trains:
            return
        self._rows += 1
        for column, value in values.items():
            if column in self._passed:
                continue
            self._counts[column] = self._counts.get(column, 0) + 1
            found = self._found.setdefault(column, {})
            found.setdefault(_text(value), where)
            if len(found) > MOST_VALUES:
                self._passed.add(column)
                del self._found[column]

    def check(self) -> None:
        """Check that no column assigns the training images to several splits.

        Raises:
            UserError: one does.
        """
        for column, found in sorted(self._found.items()):
            absent = {"": "other rows"} if self._counts[column] < self._rows else {}
            values = absent | found
            if 2 <= len(values) <= MOST_VALUES and _tells_of_splits(column, set(values)):
                (one, first), (other, second) = list(values.items())[:2]
                ignore = "{train: …, test: …} to go by these folders" if self._trains else "none to train on all"
                raise UserError(
                    f"{second}: {shown(column)} is {_quoted(other)}, but {_quoted(one)} in "
                    f"{first.rpartition(': ')[2]}; columns make no splits, so both would be trained on: sort the "
                    f"images into train/ and test/, or set splits: {ignore}"
                )


def _tells_of_splits(column: str, values: set[str]) -> bool:
    if any(word.endswith(SPLIT_WORDS) for word in re.findall(r"[a-z]+", column.lower())):
        return True
    word = split_word(column)
    if word and word.rest in ("", "is") and not word.short and values <= TRUTH:
        return True
    read = [split_word(value) for value in values if value]
    return all(found and not found.rest for found in read) and len({found.split for found in read if found}) > 1


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip().lower()[:60]


def _quoted(value: str) -> str:
    return shown(json.dumps(value, ensure_ascii=False))
