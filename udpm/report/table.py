"""A table with notes under it, as markdown, LaTeX and html."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd

from udpm.core.files import write_text
from udpm.core.kinds import mark, seal_text

MISSING = "–"
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?(%| .*)?")
ABSENT = re.compile(rf"({MISSING}|none|not \w+)( \[\d+\])*")
"""Cells of columns of numbers: a number and perhaps more words, or none."""
CODE = re.compile("`([^`]*)`")
LINK = re.compile(r"\[([^]]+)\]\(([^):\s]+)\)")
IN_LATEX, IN_HTML = r"\\texttt{\1}", r"<code>\1</code>"
"""Markdown's backticks and links, and replacements of the former in LaTeX and html."""
SMALL = "{\\footnotesize\\setlength{\\tabcolsep}{3pt}%\n"
"""Begins the group of a table, whose columns would not fit on a page at the normal size."""
PAGE = 40
"""Rows that fit on one printed page."""
SYMBOLS = {
    symbol: f"\\ensuremath{{\\{name}}}"
    for symbol, name in zip(
        "αβγλσ≥≤†", ("alpha", "beta", "gamma", "lambda", "sigma", "ge", "le", "dagger"), strict=True
    )
}
"""LaTeX commands of characters that its default fonts lack."""


@dataclass(frozen=True)
class Table:
    """A table with notes under it.

    Attributes:
        shown: the readable table, all of it text; if empty, only notes are written.
        full: table of the .csv, in full precision; None: as shown.
        titled: whether markdown and LaTeX contain the title, too.
    """

    shown: pd.DataFrame
    notes: list[str]
    title: str
    full: pd.DataFrame | None = None
    titled: bool = False

    def markdown(self) -> str:
        """Return the table, and the notes as a list."""
        notes = "".join(f"- {note}\n" for note in self.notes)
        sides = ["right" if number else "left" for number in self._numbers()]
        table = "" if self.shown.empty else self.shown.to_markdown(index=False, disable_numparse=True, colalign=sides)
        table += "\n\n" if table else ""
        return (f"**{self.title}**\n\n" if self.titled else "") + table + notes

    def latex(self) -> str:
        """Return a booktabs tabular, or a longtable if it exceeds a page, and notes as small paragraphs."""
        styled = self.shown.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
        numbers = self._numbers()
        columns = "".join("r" if number else "l" for number in numbers)
        long = len(self.shown) > PAGE
        body = styled.to_latex(hrules=True, column_format=columns, environment="longtable" if long else None)
        head = next(line for line in body.splitlines() if line.endswith(r"\\"))
        body = SMALL + body.replace(head, _stacked(head, numbers)) + "}\\par\\smallskip\n"
        escaped = pd.DataFrame({"note": self.notes}).style.format(escape="latex")
        lines = [escaped._display_funcs[(row, 0)](note) for row, note in enumerate(self.notes)]
        text = body + "".join(f"\n{{\\footnotesize\\raggedright {CODE.sub(IN_LATEX, line)}\\par}}\n" for line in lines)
        # LaTeX would typeset the two hyphens of an option as one dash.
        packages = "booktabs,longtable" if long else "booktabs"
        text = f"% needs \\usepackage{{{packages}}}\n" + text.replace("--", "-{}-").translate(str.maketrans(SYMBOLS))
        return f"% {self.title}\n{text}" if self.titled else text

    def html(self) -> str:
        """Return the table under its title, a part of `html_page`."""
        texts = [column for column, number in enumerate(self._numbers()) if not number]
        left = ", ".join(f"{cell}.col{column}" for cell in ("th", "td") for column in texts)
        rules = [
            {"selector": "", "props": "border-collapse: collapse; font: 14px sans-serif"},
            {"selector": "th, td", "props": "padding: 4px 12px; text-align: right; border-bottom: 1px solid #ddd"},
            {"selector": left, "props": "text-align: left"},
        ]
        # The page's style refers to this table by name.
        name = re.sub("[^a-z0-9]+", "-", self.title.lower())
        styled = self.shown.style.hide(axis="index").format(escape="html").set_table_styles(rules).set_uuid(name)
        listed = pd.DataFrame({"": self.notes}).style.hide(axis="index").hide(axis="columns").format(escape="html")
        small = [{"selector": "", "props": "font: 12px sans-serif"}]
        notes = CODE.sub(IN_HTML, listed.set_table_styles(small).set_uuid(f"{name}-notes").to_html())
        notes = LINK.sub(r'<a href="\2">\1</a>', notes)
        table = "" if self.shown.empty else styled.to_html() + "<p></p>"
        return f'<h2 style="font: bold 16px sans-serif">{self.title}</h2>\n{table}{notes}'

    def _numbers(self) -> list[bool]:
        """Return which columns are numbers, some of them perhaps missing; they are right-aligned, all others left."""
        return [_is_number(column.astype(str)) for _, column in self.shown.items()]

    def write(self, stem: str | Path) -> str:
        """Write ``STEM.csv`` (the full table) and the readable ``STEM.md``, ``STEM.tex`` and ``STEM.html``.

        Readable files contain a mark with the digests of their .csv and of themselves. Returns the markdown.
        """
        csv = (self.shown if self.full is None else self.full).to_csv(index=False)
        text = self.markdown()
        write_text(f"{stem}.html", html_page(self.title, [self], csv))
        # Written between files that contain its digest: after a kill at any time, one of them matches the .csv.
        write_text(f"{stem}.csv", csv)
        write_text(f"{stem}.md", seal_text(f"{text}\n<!-- {mark(csv)} -->\n"))
        write_text(f"{stem}.tex", seal_text(f"% {mark(csv)}\n{self.latex()}"))
        return text


def _is_number(cells: Iterable[str]) -> bool:
    present = [text for text in cells if not ABSENT.fullmatch(text)]
    return bool(present) and all(map(NUMBER.fullmatch, present))


def cell(value: Any, pattern: str = "{}") -> str:
    """Format a value, or return `MISSING` for None."""
    return MISSING if value is None else pattern.format(value)


class Part(Protocol):
    """A part of a page, such as a table."""

    def html(self) -> str:
        """Return the part under its title."""


def html_page(title: str, parts: Iterable[Part], csv: str | None = None) -> str:
    """Return a page of parts with the mark of udpm, given the contents of the .csv that is written with it, if any."""
    head = f'<!doctype html><meta charset="utf-8"><meta name="generator" content="{mark(csv)}"><title>{title}</title>\n'
    return seal_text(head + "".join(f"{part.html()}\n" for part in parts))


def _stacked(head: str, numbers: list[bool]) -> str:
    """Return a table head with the names of numeric columns broken into lines, since numbers are narrow."""
    cells = head.removesuffix(r" \\").split(" & ")
    for column, name in enumerate(cells):
        if numbers[column] and " " in name:
            cells[column] = r"\shortstack[r]{" + name.replace(" ", r"\\") + "}"
    return " & ".join(cells) + r" \\"
