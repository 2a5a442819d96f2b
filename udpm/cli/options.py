"""Options that several verbs share."""

from __future__ import annotations

import csv
from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


class Classes(click.ParamType):
    """Names or numbers of classes with commas between them, such as cat,dog or 3,5; quotes keep a comma in a name.

    Args:
        words: that may stand instead of a list, and are left as they are.
    """

    name = "classes"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str | list[str]:
        """One of the words, or the list."""
        if isinstance(value, list) or value in self.words:
            return value
        try:
            (labels,) = csv.reader([str(value)], skipinitialspace=True, strict=True)
        except (ValueError, csv.Error):
            labels = []
        labels = [label.strip() for label in labels]
        if not labels or not all(labels):
            self.fail(f"{value!r} is no list of classes with commas between them, such as cat,dog or 0,3", param, ctx)
        return labels


class Numbers(click.ParamType):
    """Numbers with commas between them, such as 0,1,2.

    Args:
        number: int or float, what each is.
    """

    name = "numbers"

    def __init__(self, number: type[int] | type[float]) -> None:
        self.number = number

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list:
        """The list."""
        if isinstance(value, list):
            return value
        try:
            return [self.number(part) for part in str(value).split(",")]
        except ValueError:
            kind = "whole numbers" if self.number is int else "numbers"
            self.fail(f"{value!r} is no list of {kind} with commas between them, such as 0,1", param, ctx)
