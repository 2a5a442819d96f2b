"""Commands end with one line if the system fails them: standard output, memory, a file."""

import errno
import io
import json
import shutil
import subprocess
import sys

import click
import pytest
import tiny

import udpm.cli
from udpm.cli import main
from udpm.cli.score import _remembered
from udpm.config import Generator, Latents, Sampling
from udpm.config.validation import validate
from udpm.core.errors import UserError


def ended(command):
    """Run a shell command, in which UDPM is the program."""
    program = f"{sys.executable} -m udpm"
    done = subprocess.run(
        ["bash", "-c", command.replace("UDPM", program)], capture_output=True, text=True, cwd=tiny.ROOT
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", ["UDPM --help", "UDPM schema --help"])
def test_standard_output_on_a_full_disk(command):
    assert ended(f"{command} > /dev/full") == (2, "error: standard output: No space left on device\n")


def test_a_closed_pipe_is_no_error():
    assert ended("UDPM --help | true; exit ${PIPESTATUS[0]}") in [(0, ""), (1, "")]
    assert ended("UDPM --help >&-") == (0, "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), "error: /x/y: Permission denied"),
        (OSError(errno.EMFILE, "Too many open files"), "error: Too many open files"),
        (MemoryError(), "error: "),
        (RecursionError("maximum recursion depth exceeded"), "error: an input is nested too deep"),
    ],
)
def test_reports_system_errors_in_one_line(monkeypatch, capsys, error, expected):
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
    assert lines[0].startswith(expected)


def test_shows_the_traceback_of_a_bug(monkeypatch):
    @click.command()
    def command():
        raise KeyError("x")

    monkeypatch.setattr(udpm.cli.udpm, "get_command", lambda context, name: command)
    with pytest.raises(KeyError):
        main(["status"])


HUGE = 10**30
NUMBERS = {
    f"prepare c.json --output {{}}/x --workers {10**9}": "--workers",
    f"resolve digits --seed {HUGE}": "--seed",
    f"extractor d --output {{}}/x.pt --threads {10**9}": "--threads",
    f"score --heldout --output {{}}/x.json --count {HUGE}": "--count",
    f"bench data --threads {10**9}": "--threads",
    f"bench data --batch {HUGE}": "--batch",
}


@pytest.mark.parametrize("command", NUMBERS)
def test_refuses_absurd_numbers(tmp_path, capsys, command):
    tiny.assert_refused(tmp_path, command.format(tmp_path), f"'{NUMBERS[command]}': ", capsys)


def test_names_both_bounds_of_a_number(tmp_path, capsys):
    command = f"prepare c.json --output {tmp_path}/x --workers 5000"
    tiny.assert_refused(tmp_path, command, "5000 is not in the range 1<=x<=1024", capsys)


@pytest.mark.parametrize("option", ["--max-minutes nan", "--max-minutes inf", "--stale-after nan"])
def test_refuses_times_that_are_not_finite(tmp_path, capsys, option):
    tiny.assert_refused(tmp_path, f"train run.json --dry-run {option}", "is not a finite number", capsys)


@pytest.mark.parametrize("name", ["img\udce9", "a\0b"])
def test_refuses_an_input_whose_name_is_no_text(tmp_path, capsys, name):
    command = f"prepare {name} --side 16 --output {tmp_path}/x"
    tiny.assert_refused(tmp_path, command, f"{name!r}: its name is not UTF-8 text", capsys)


def test_escapes_characters_that_the_terminal_lacks(monkeypatch):
    shown = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(shown, "latin-1", write_through=True))
    assert not tiny.call("schedule", "--alphas", "0.5", "--sigmas", "0.1")
    assert b"\\u03b1" in shown.getvalue()


@pytest.mark.parametrize("stem", [".", "/", "{}/.."])
def test_refuses_a_folder_as_the_stem_of_files(tmp_path, capsys, stem):
    command = f"cost digits --config {tiny.ROOT}/config --output {stem.format(tmp_path)}"
    tiny.assert_refused(tmp_path, command, "is a folder; expected a file without its suffix", capsys)


@pytest.mark.parametrize("wrong", [{"count": HUGE}, {"threads": 10**9}, {"seed": HUGE}, {"seed": -1}, {"batch": 10**9}])
def test_refuses_absurd_settings(wrong):
    """Options of udpm sample are validated here too."""
    (key,) = wrong
    with pytest.raises(UserError, match=f"x: {key}: input should be"):
        validate(Sampling, wrong, "x")


def test_refuses_a_grid_of_a_million_points(tmp_path, capsys):
    shutil.copytree(tiny.ROOT / "config", tmp_path / "config")
    axes = {name: {"key": key, "values": [n / 1000 for n in range(1, 101)]} for name, key in AXES.items()}
    (tmp_path / "config/sweeps/big.yaml").write_text(json.dumps({"base": "digits", "grids": {"g": axes}}))
    command = f"sweep plan big --config {tmp_path}/config --output {tmp_path}/plan"
    tiny.assert_refused(tmp_path, command, "grids: 1000000 points, more than 5000", capsys)


AXES = {"a": "process.sigmas[1]", "b": "process.sigmas[2]", "c": "process.sigmas[3]"}


REQUEST = dict.fromkeys(("samples", "images", "selection", "extractor", "dataset", "noise", "count"))
REQUEST |= {"reference": "r.npz", "heldout": True, "scoring": {}}


@pytest.mark.parametrize("wrong", [{"samples": 3}, {"count": "x"}, {"scoring": []}, {"noise": -1}, {"reference": None}])
def test_refuses_a_score_with_an_invalid_request(tmp_path, monkeypatch, wrong):
    (key,) = wrong
    monkeypatch.setattr("udpm.metrics.protocol.read_score", lambda path: {"request": REQUEST | wrong})
    with pytest.raises(UserError, match=f"a.json: request: {key}: input should be"):
        _remembered("a.json", {})


@pytest.mark.parametrize("wrong", [{"strengths": 1001}, {"grid": 101}, {"pca_images": 10_001}])
def test_refuses_more_latents_than_fit_in_memory(wrong):
    (key,) = wrong
    with pytest.raises(UserError, match=f"x: {key}: input should be less than or equal to"):
        validate(Latents, wrong, "x")


def test_refuses_an_absurd_batch():
    with pytest.raises(UserError, match=r"training.batch: input should be less than or equal to 10000000"):
        tiny.run_config(training__batch=2**63 - 1)


@pytest.mark.parametrize("wrong", [{"channels": 10**9}, {"blocks": 10**8}, {"channel_multipliers": [1, 10**9]}])
def test_refuses_absurd_networks(wrong):
    (key,) = wrong
    with pytest.raises(UserError, match=rf"x: {key}\S*: input should be less than or equal to"):
        validate(Generator, {"channels": 32, "channel_multipliers": [1, 2]} | wrong, "x")
