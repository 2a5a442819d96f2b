"""A table with notes under it, as markdown, LaTeX and html."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from udpm.core.files import write_text
from udpm.core.kinds import mark, seal_text

MISSING = "–"
CODE = re.compile("`([^`]*)`")
IN_LATEX, IN_HTML = r"\\texttt{\1}", r"<code>\1</code>"
"""What markdown writes between backticks, in LaTeX and in html."""
SMALL = "{\\footnotesize\\setlength{\\tabcolsep}{3pt}%\n"
"""Begins the group of a table: so many columns would not fit on a page otherwise. What follows it keeps its size."""
PAGE = 40
"""Rows that surely fit on one page of print."""
SYMBOLS = {
    symbol: f"\\ensuremath{{\\{name}}}"
    for symbol, name in zip("αβγλσ≥≤", ("alpha", "beta", "gamma", "lambda", "sigma", "ge", "le"), strict=True)
}
"""Characters that LaTeX's own fonts lack, by what it calls them."""


def markdown(table: pd.DataFrame, notes: list[str]) -> str:
    """The table, and the notes as a list."""
    return table.to_markdown(index=False, disable_numparse=True) + "\n\n" + "".join(f"- {note}\n" for note in notes)


def latex(table: pd.DataFrame, notes: list[str], words: int) -> str:
    """A booktabs tabular, or longtable where a page would not hold it, and small paragraphs.

    Args:
        table: of text.
        notes: under it.
        words: number of leading columns that are set to the left.
    """
    styled = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    columns = "l" * words + "r" * (table.shape[1] - words)
    long = len(table) > PAGE
    body = styled.to_latex(hrules=True, column_format=columns, environment="longtable" if long else None)
    head = next(line for line in body.splitlines() if line.endswith(r"\\"))
    body = SMALL + body.replace(head, _stacked(head, words)) + "}\\par\\smallskip\n"
    escaped = pd.DataFrame({"note": notes}).style.format(escape="latex")
    lines = [escaped._display_funcs[(row, 0)](note) for row, note in enumerate(notes)]
    text = body + "".join(f"\n{{\\footnotesize\\raggedright {CODE.sub(IN_LATEX, line)}\\par}}\n" for line in lines)
    # Two hyphens of an option would be set as one dash.
    packages = "booktabs,longtable" if long else "booktabs"
    return f"% needs \\usepackage{{{packages}}}\n" + text.replace("--", "-{}-").translate(str.maketrans(SYMBOLS))


def _stacked(head: str, words: int) -> str:
    """A head whose numbers' names stand on several lines: numbers are narrow."""
    cells = head.removesuffix(r" \\").split(" & ")
    lines = [cell.replace(" ", r"\\") for cell in cells[words:]]
    numbers = [rf"\shortstack[r]{{{line}}}" if r"\\" in line else line for line in lines]
    return " & ".join([*cells[:words], *numbers]) + r" \\"


def html(table: pd.DataFrame, notes: list[str], words: int, title: str) -> str:
    """A page of its own.

    Args:
        table: of text.
        notes: under it.
        words: number of leading columns that are set to the left.
        title: of the page.
    """
    return html_page(title, [html_section(table, notes, words, title)])


def write_table(
    stem: str | Path, everything: pd.DataFrame, shown: pd.DataFrame, notes: list[str], words: int, title: str
) -> str:
    """Write ``STEM.csv`` (everything), and to read ``STEM.md``, ``STEM.tex`` and ``STEM.html``.

    Args:
        stem: path without suffix.
        everything: in full precision.
        shown: of text.
        notes: under what is shown.
        words: number of leading columns of it that are set to the left.
        title: of the page.

    Returns:
        The markdown.
    """
    text = markdown(shown, notes)
    write_set(stem, everything, text, latex(shown, notes, words), html(shown, notes, words, title))
    return text


def write_set(stem: str | Path, everything: pd.DataFrame, md: str, tex: str, page: str) -> None:
    """Write the four files of a table. Those to read carry a mark: which .csv belongs to them, and their own digest.

    Args:
        stem: path without suffix.
        everything: in full precision.
        md: the table to read.
        tex: the same.
        page: the same, html.
    """
    csv = everything.to_csv(index=False)
    write_text(f"{stem}.html", marked_page(page, csv))
    # Between those that know it: whenever this is killed, one of them knows the .csv that is there.
    write_text(f"{stem}.csv", csv)
    write_text(f"{stem}.md", seal_text(f"{md}\n<!-- {mark(csv)} -->\n"))
    write_text(f"{stem}.tex", seal_text(f"% {mark(csv)}\n{tex}"))


def marked_page(page: str, csv: str | None = None) -> str:
    """A page of html with the mark of udpm.

    Args:
        page: as `html_page` gives it.
        csv: contents of the .csv that is written with it, if any.
    """
    return seal_text(page.replace("<title>", f'<meta name="generator" content="{mark(csv)}"><title>', 1))


def html_page(title: str, parts: list[str]) -> str:
    """A page of its own.

    Args:
        title: of the page.
        parts: html of what stands in it, each as `html_section` gives it.
    """
    return f'<!doctype html><meta charset="utf-8"><title>{title}</title>\n' + "".join(f"{part}\n" for part in parts)


def html_section(table: pd.DataFrame, notes: list[str], words: int, title: str) -> str:
    """A table under its title, for a page that holds several.

    Args:
        table: of text; may be empty.
        notes: under it.
        words: number of leading columns that are set to the left.
        title: plain words.
    """
    return f'<h2 style="font: bold 16px sans-serif">{title}</h2>\n' + _html_part(table, notes, words, title)


def _html_part(table: pd.DataFrame, notes: list[str], words: int, title: str) -> str:
    left = ", ".join(f"{cell}.col{column}" for cell in ("th", "td") for column in range(words))
    rules = [
        {"selector": "", "props": "border-collapse: collapse; font: 14px sans-serif"},
        {"selector": "th, td", "props": "padding: 4px 12px; text-align: right; border-bottom: 1px solid #ddd"},
        {"selector": left, "props": "text-align: left"},
    ]
    name = _identifier(title)
    styled = table.style.hide(axis="index").format(escape="html").set_table_styles(rules).set_uuid(name)
    listed = pd.DataFrame({"": notes}).style.hide(axis="index").hide(axis="columns").format(escape="html")
    small = [{"selector": "", "props": "font: 12px sans-serif"}]
    shown = "" if table.empty else styled.to_html() + "<p></p>"
    return shown + CODE.sub(IN_HTML, listed.set_table_styles(small).set_uuid(f"{name}-notes").to_html())


def _identifier(title: str) -> str:
    """A title as the name that a page's style refers to its table by."""
    return re.sub("[^a-z0-9]+", "-", title.lower())
