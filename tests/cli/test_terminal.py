"""Completion of words, and colours, which are for terminals only."""

import os
import pty
import re
import subprocess
import sys

import click
import pytest
import tiny
from click.shell_completion import BashComplete, FishComplete, ZshComplete

from udpm.cli import VERBS, terminal, udpm
from udpm.config import list_configs


def completed(monkeypatch, words, shell=BashComplete):
    """Return the words that a shell would offer for the last word of a command line, without their kinds."""
    *before, last = words.split(" ")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", last if shell is FishComplete else str(len(before)))
    found = shell(udpm, {}, "udpm", "_UDPM_COMPLETE").complete().split("\n")
    width, at = (3, 1) if shell is ZshComplete else (1, 0)
    return [line.partition("\t")[0].rpartition(",")[2] for line in found[at::width]]


@pytest.mark.parametrize("shell", [BashComplete, ZshComplete, FishComplete])
def test_commands_options_and_names_complete(monkeypatch, shell):
    monkeypatch.chdir(tiny.ROOT)
    assert completed(monkeypatch, "udpm s", shell) == [verb for verb in VERBS if verb.startswith("s")]
    assert completed(monkeypatch, "udpm sweep st", shell) == ["status", "strip"]
    assert completed(monkeypatch, "udpm doctor --", shell) == ["--results", "--json", "--help"]
    assert completed(monkeypatch, "udpm fetch in", shell) == ["inception"]
    assert "digits-smoke" in completed(monkeypatch, "udpm resolve digits-s", shell)
    assert "cifar10" in completed(monkeypatch, "udpm resolve --dataset c", shell)
    assert "schedules-digits" in completed(monkeypatch, "udpm sweep plan sched", shell)


def test_names_are_those_of_the_folder_that_was_given_and_the_shipped_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert completed(monkeypatch, "udpm resolve ") == list_configs(tiny.ROOT / "config/experiments")
    assert completed(monkeypatch, "udpm resolve m") == [""]
    (tmp_path / "other/experiments").mkdir(parents=True)
    (tmp_path / "other/experiments/mine.yaml").touch()
    assert completed(monkeypatch, "udpm resolve --config other m") == ["mine"]


@pytest.mark.parametrize("words", ["udpm nothing ", "udpm sweep nothing ", "udpm sample nowhere "])
def test_words_that_are_wrong_complete_to_nothing_harmful(monkeypatch, words):
    assert isinstance(completed(monkeypatch, words), list)


@pytest.mark.parametrize("words", ["udpm s", "udpm resolve dig", "udpm train --"])
def test_completion_imports_no_torch(words):
    environment = os.environ | {"_UDPM_COMPLETE": "bash_complete", "COMP_WORDS": words}
    environment["COMP_CWORD"] = str(words.count(" "))
    command = [sys.executable, "-X", "importtime", "-m", "udpm"]
    done = subprocess.run(command, env=environment, cwd=tiny.ROOT, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "plain," in done.stdout
    assert "click" in imported
    assert not {name for name in imported if name.partition(".")[0] == "torch"}
    if words == "udpm s":
        assert {name for name in imported if name.startswith("udpm.cli.")} == {"udpm.cli.options", "udpm.cli.terminal"}


def test_the_lines_of_the_manual_print_a_script():
    manual = (tiny.ROOT / "docs/commands.md").read_text()
    for shell, cls in (("bash", BashComplete), ("zsh", ZshComplete), ("fish", FishComplete)):
        assert f"_UDPM_COMPLETE={shell}_source udpm" in manual
        assert cls.name == shell
    environment = os.environ | {"_UDPM_COMPLETE": "zsh_source"}
    done = subprocess.run(
        [sys.executable, "-m", "udpm"], env=environment, capture_output=True, text=True, cwd=tiny.ROOT
    )
    assert done.returncode == 0
    assert "#compdef udpm" in done.stdout


# --- colours ---------------------------------------------------------------------------------------------------------


def on_terminal(*arguments, **environment):
    """Run a command on a terminal and return what it shows."""
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "udpm", *map(str, arguments)],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=tiny.ROOT,
        env={key: value for key, value in os.environ.items() if key != "NO_COLOR"} | environment,
    )
    os.close(terminal)
    shown = b""
    # Linux reports the end of a terminal as an error.
    try:
        while part := os.read(master, 1 << 16):
            shown += part
    except OSError:
        pass
    process.wait()
    os.close(master)
    return shown.decode()


RED, GREEN = "\x1b[31m", "\x1b[32m"


def test_errors_and_states_are_coloured_on_a_terminal(trained):
    assert on_terminal("resolve", "nothing").startswith(f"{RED}\x1b[1merror:\x1b[0m ")
    shown = on_terminal("status", trained)
    assert f"  {GREEN}complete\x1b[0m  " in shown
    ages = re.compile(r"[\d.]+ \w+ ago")
    uncoloured = ages.sub("", click.unstyle(shown)).replace("\r\n", "\n")
    assert uncoloured == ages.sub("", plain("status", trained).stdout)


def test_no_color_switches_colours_off(trained):
    assert "\x1b" not in on_terminal("resolve", "nothing", NO_COLOR="1")
    assert "\x1b" not in on_terminal("status", trained, NO_COLOR="1")


def plain(*arguments):
    command = [sys.executable, "-m", "udpm", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT)


def test_files_and_pipes_stay_plain(trained):
    assert plain("resolve", "nothing").stderr.startswith("error: ")
    assert "\x1b" not in plain("status", trained).stdout


@pytest.mark.parametrize("state", terminal.STATES)
def test_every_state_keeps_its_column(monkeypatch, capsys, state):
    monkeypatch.setattr(terminal, "color", lambda: True)
    table = f"run      state{' ' * (len(state) - 5)}  note\na/seed0  {state}  why\n"
    terminal.echo_states(table)
    shown = capsys.readouterr().out
    assert click.unstyle(shown) == table
    assert shown.count("\x1b[0m") == 1


def test_the_states_of_doctor_are_coloured(monkeypatch, capsys):
    monkeypatch.setattr(terminal, "color", lambda: True)
    terminal.echo_states("check  state     note\nSLURM  not here  state wrong\nPython  ok  3\n")
    assert capsys.readouterr().out.splitlines()[1] == "SLURM  not here  state wrong"
