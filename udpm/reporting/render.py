"""A table with notes under it, as markdown, LaTeX and html."""

from __future__ import annotations

import pandas as pd

MISSING = "–"


def markdown(table: pd.DataFrame, notes: list[str]) -> str:
    """The table, and the notes as a list."""
    return table.to_markdown(index=False, disable_numparse=True) + "\n\n" + "".join(f"- {note}\n" for note in notes)


def latex(table: pd.DataFrame, notes: list[str], words: int) -> str:
    """A booktabs tabular and small paragraphs.

    Args:
        table: of text.
        notes: under it.
        words: number of leading columns that are set to the left.
    """
    styled = table.style.hide(axis="index").format(escape="latex").format_index(escape="latex", axis=1)
    body = styled.to_latex(hrules=True, column_format="l" * words + "r" * (table.shape[1] - words))
    escaped = pd.DataFrame({"note": notes}).style.format(escape="latex")
    lines = [escaped._display_funcs[(row, 0)](note) for row, note in enumerate(notes)]
    return "% needs \\usepackage{booktabs}\n" + body + "".join(f"\\par\\footnotesize {line}\n" for line in lines)


def html(table: pd.DataFrame, notes: list[str], words: int, title: str) -> str:
    """A page of its own.

    Args:
        table: of text.
        notes: under it.
        words: number of leading columns that are set to the left.
        title: of the page.
    """
    left = ", ".join(f"td.col{column}" for column in range(words))
    rules = [
        {"selector": "", "props": "border-collapse: collapse; font: 14px sans-serif"},
        {"selector": "th, td", "props": "padding: 4px 12px; text-align: right; border-bottom: 1px solid #ddd"},
        {"selector": left, "props": "text-align: left"},
    ]
    styled = table.style.hide(axis="index").format(escape="html").set_table_styles(rules).set_uuid(title.lower())
    listed = pd.DataFrame({"": notes}).style.hide(axis="index").hide(axis="columns").format(escape="html")
    listed = listed.set_table_styles([{"selector": "", "props": "font: 12px sans-serif"}]).set_uuid("notes")
    page = styled.to_html() + "<p></p>" + listed.to_html()
    return f'<!doctype html><meta charset="utf-8"><title>{title}</title>\n{page}\n'
