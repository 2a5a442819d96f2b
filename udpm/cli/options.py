"""Options that several verbs share."""

from __future__ import annotations

from pathlib import Path

import click

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)


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
