"""Commands end in one line where the system refuses something: standard output, memory, a file."""

import errno
import subprocess
import sys

import click
import pytest
import tiny

import udpm.cli
from udpm.cli import main


def ended(command):
    """A command of a shell; UDPM stands for the program."""
    program = f"{sys.executable} -m udpm"
    done = subprocess.run(
        ["bash", "-c", command.replace("UDPM", program)], capture_output=True, text=True, cwd=tiny.ROOT
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["UDPM --help", "UDPM schema --help"])
def test_standard_output_on_a_full_disk(command):
    assert ended(f"{command} > /dev/full") == (2, "error: standard output: No space left on device\n")


def test_a_reader_that_went_away_is_no_news():
    assert ended("UDPM --help | true; exit ${PIPESTATUS[0]}") in [(0, ""), (1, "")]
    assert ended("UDPM --help >&-") == (0, "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "error: /x/y: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files"),
        (MemoryError(), "error: "),
        (RecursionError("maximum recursion depth exceeded"), "error: something that was read is nested too deep"),
    ],
)
def test_what_the_system_refuses_is_one_line(monkeypatch, capsys, error, told):
    @click.command()
    def command():
        raise error

    monkeypatch.setattr(udpm.cli.udpm, "get_command", lambda context, name: command)
    monkeypatch.setattr(udpm.cli.os, "dup2", lambda *_: None)
    with pytest.raises(SystemExit) as stop:
        main(["status"])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(told)


def test_bugs_are_not_hidden(monkeypatch):
    @click.command()
    def command():
        raise KeyError("x")

    monkeypatch.setattr(udpm.cli.udpm, "get_command", lambda context, name: command)
    with pytest.raises(KeyError):
        main(["status"])
