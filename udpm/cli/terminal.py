"""Coloured lines on the terminal: errors, and states in tables."""

from __future__ import annotations

import os

import click

STATES = {
    "ok": "green",
    "complete": "green",
    "running": "cyan",
    "warning": "yellow",
    "stalled": "yellow",
    "stopped": "yellow",
    "wrong": "red",
    "failed": "red",
    "unreadable": "red",
}
"""Colours of states in tables, on terminals."""


def color() -> bool | None:
    """Return click's switch of colours: off if NO_COLOR is set (https://no-color.org), else on for terminals only."""
    return False if os.environ.get("NO_COLOR") else None


def echo_error(line: str) -> None:
    """Print a line to stderr; on a terminal, "error:" at its beginning is red."""
    word = "error:"
    if line.startswith(word):
        line = click.style(word, fg="red", bold=True) + line.removeprefix(word)
    click.echo(line, err=True, color=color())


def echo_states(table: str) -> None:
    """Print a table with aligned columns, one of which is `state`; on a terminal, states are coloured."""
    lines = table.splitlines()
    start = lines[0].index("state")
    for line in lines:
        state = line[start:].partition("  ")[0]
        shown = click.style(state, fg=STATES[state]) if state in STATES else state
        click.echo(line[:start] + shown + line[start + len(state) :], color=color())
