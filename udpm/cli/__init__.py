"""Command line: parse options, make one call, return an exit code.

A verb's module is imported only when the verb is called; it defines the command as VERB_command.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import re
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import click
from click.shell_completion import CompletionItem

from udpm.cli.options import Group, OutputFile
from udpm.cli.terminal import echo_error
from udpm.core import kinds
from udpm.core.devices import as_user_errors
from udpm.core.errors import EXIT_STOPPED_EARLY, EXIT_USER_ERROR, StoppedEarly, UserError, first_line
from udpm.core.identify import what_is, with_kind
from udpm.core.work import SIGNALS

WRONG_CHOICE = re.compile(r"'([^']*)' is not one of")
WRONG_PLACE = re.compile(r"(?:File|Directory|Path) '(.*)' is a (directory|file)")
FITTING = {
    **dict.fromkeys(("config", "schedule", "forward"), "config.json"),
    "curves": "metrics.jsonl",
}
"""File in a run's folder that matches an argument or a command, by its name."""
# Help lines are here, not in the modules, so that `udpm --help` imports none of them.
MODULES = {
    "study": {
        "run": "Train on images of your own in one call, and sample, score and draw.",
        "init": "Write a new study: a folder in which snakemake runs the installed workflow.",
    },
    "config": {
        "resolve": "Validate a configuration and write it with all defaults.",
        "schema": "Write the JSON schemas of the configuration files.",
        "import": "Import published checkpoints, configurations and command lines.",
        "schedule": "Show the numbers of a noise schedule, and how well sampling starts.",
        "cost": "Count the multiply-adds and parameters of an image.",
    },
    "train": {
        "fetch": "Download weights and data sets in advance.",
        "prepare": "Convert images to a data set: checked, of one size, memory-mapped.",
        "cache": "Write the downsampled levels of a prepared data set.",
        "train": "Train a model, or resume its training.",
        "status": "Show the status of training runs.",
        "clean": "Remove checkpoints of finished runs.",
        "average": "Reconstruct an average of a run's weights, of any width.",
    },
    "info": {"info": "Describe a file or folder, and show the next command to run."},
    "sample": {
        "sample": "Sample images from trained weights.",
        "join": "Join shards to a sample set.",
        "export": "Write images as files, a run as one folder, or its networks for other programs.",
        "latents": "Explore what each noise map of a model's latent controls.",
    },
    "score": {
        "extractor": "Train the small classifier whose features score digits.",
        "reference": "Compute feature statistics of a data set, to score against.",
        "score": "Score a sample set or a baseline against a reference.",
        "select": "Choose a run's best milestone by its score.",
    },
    "diagnose": {"diagnose": "Find where a run loses quality and variety, by level."},
    "report": {
        "table": "Render scores as a table (csv, md, tex, html).",
        "paper": "Render the paper's tables with published and measured numbers.",
        "summary": "Summarize on one page what ran, its results, and what is missing.",
        "card": "Write a run's model card.",
        "compare": "Compare runs, sample sets, scores and images.",
        "figure": "Render a figure (svg, pdf, png, and csv of its data).",
        "sweep": "Plan, watch and rank a sweep of experiments.",
    },
    "push": {"push": "Upload a run to the Hugging Face Hub, to share it."},
    "doctor": {"doctor": "Check this machine: Python, packages, GPUs, SLURM, files, disks."},
    "bench": {"bench": "Measure speed on this machine."},
}
"""Verbs of each module, with their help."""
VERBS = {verb: text for verbs in MODULES.values() for verb, text in verbs.items()}


class _Verbs(Group):
    """Group that imports a verb's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = next(module for module, verbs in MODULES.items() if name in verbs)
        return getattr(importlib.import_module(f"udpm.cli.{module}"), f"{name}_command")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete verbs without importing their modules."""
        found = [CompletionItem(verb, help=text) for verb, text in VERBS.items() if verb.startswith(incomplete)]
        # The group's own method imports all of them.
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True}
)
# Named, not imported: the package's functions call this module.
@click.version_option(resolve_name("udpm:__version__"), prog_name="udpm")
@click.option("--usage", type=OutputFile(kinds.USAGE), help="Append time, memory and GPU use to this .jsonl file.")
def udpm(usage: Path | None) -> None:
    """Train, sample, score and report Upsampling Diffusion Probabilistic Models.

    Exit codes: 0 done; 2 a mistake in the command or its input, each reported as one line; 75 stopped early with
    everything saved: run the same command again.
    """
    # `Verb` measures usage, after checking that the file may be written.


LONGEST = 2000
"""Longest error in characters; it may quote a file."""


def main(arguments: list[str] | None = None) -> None:
    """Run a verb and exit with its code."""
    # OpenMP reads it when torch loads it. Threads that spin while waiting take the core from other processes and from
    # each other: training next to one busy process was four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if "SLURM_JOB_ID" in os.environ:
        # Slow to import.
        from udpm.core.work import use_private_cache_dirs

        use_private_cache_dirs()
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        # Characters that the terminal's encoding lacks are escaped, as on standard error.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with as_user_errors():
            done = udpm.main(arguments, prog_name="udpm", standalone_mode=False)
        # Otherwise a failure would occur at interpreter exit, with a traceback.
        if sys.stdout is not None:
            sys.stdout.flush()
        sys.exit(done or 0)
    except UserError as error:
        _stop("\n".join(f"error: {with_kind(mistake)}" for mistake in error.mistakes), EXIT_USER_ERROR)
    except StoppedEarly as stop:
        _stop(str(stop), EXIT_STOPPED_EARLY)
    except click.exceptions.Exit as finished:
        sys.exit(finished.exit_code)
    except click.ClickException as error:
        _stop(" ".join(f"error: {_usage_error(error)}".split()), EXIT_USER_ERROR)
    except (click.Abort, KeyboardInterrupt):
        _stop("interrupted", 130)
    except OSError as error:
        _stop_for(error)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "udpm"):
            raise
        _stop(f"error: cannot import {package}: {first_line(error)}", EXIT_USER_ERROR)
    except RecursionError:
        _stop("error: an input is nested too deep", EXIT_USER_ERROR)


def call(verb: str, *arguments: Any, **options: Any) -> None:
    """Run a verb in this process, as if it was typed; handlers of signals are restored.

    Args:
        arguments: in the order of the command line.
        options: values of the options that these names belong to; True for a flag, None and False to leave one out.

    Raises:
        UserError: a mistake in the arguments or their files, or a call from another thread than the main one.
        StoppedEarly: work was interrupted and its state saved.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UserError(f"udpm.{verb}: must be called in the main thread, the only one that can be stopped by signals")
    given = {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    words = [
        name if value is True else f"{name}={value}"
        for name, value in given.items()
        if value is not None and value is not False
    ]
    before = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        with as_user_errors():
            udpm.main([verb, *words, "--", *map(str, arguments)], prog_name="udpm", standalone_mode=False)
    except UserError as error:
        raise UserError(*map(with_kind, error.mistakes)) from None
    except click.ClickException as error:
        raise UserError(_usage_error(error)) from None
    except click.Abort:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            # None is a handler that was not installed by Python.
            if handler is not None:
                signal.signal(number, handler)


def _stop_for(error: OSError) -> None:
    """Exit after a system error: a closed pipe, a full disk, a file that cannot be opened."""
    # Discard buffered output, which can no longer be written.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        sys.exit(1)
    reason, where = error.strerror or str(error), error.filename
    if where is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        where = "standard output"
    _stop(f"error: {f'{where}: ' * (where is not None)}{reason}", EXIT_USER_ERROR)


def _usage_error(error: click.ClickException) -> str:
    """Describe a mistake in a command line and its correction."""
    message = error.format_message()
    if isinstance(error, click.BadParameter) and (wrong := WRONG_PLACE.search(message)):
        return _wrong_kind(Path(wrong[1]), wrong[2] == "directory", error)
    choices = getattr(getattr(error, "param", None), "type", None)
    if isinstance(choices, click.Choice) and (wrong := WRONG_CHOICE.search(message)):
        near = difflib.get_close_matches(wrong[1], map(str, choices.choices), n=1)
        message += f" Did you mean {near[0]!r}?" if near else ""
    where = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
    return f"{message}{where}"


def _wrong_kind(path: Path, is_folder: bool, error: click.BadParameter) -> str:
    """Describe a folder given instead of a file, or vice versa, and suggest a path of the right kind."""
    assert error.ctx is not None
    assert error.param is not None
    option, command = isinstance(error.param, click.Option), error.ctx.command.name
    name = error.param.opts[0] if option else error.param.human_readable_name
    if is_folder:
        near = [path / FITTING[word] for word in (name.lower(), command) if word in FITTING]
        fits = next((file for file in near if file.is_file()), None)
        found = f"{name}: {path} is a folder, expected a file"
    else:
        around = what_is(path.parent)
        fits = path.parent if around is not None and not around.images else None
        found = f"{name}: {path} is a file, expected a folder"
    kind = what_is(path)
    return f"{found}: {fits}" if fits else f"{found} (it is {kind})" if kind else found


def _stop(message: str, code: int) -> None:
    # On a full disk the message may be lost, but not the exit code.
    with suppress(OSError):
        for line in message.splitlines():
            text = " ".join(line.split())
            echo_error(text if len(text) <= LONGEST else f"{text[:LONGEST]} …")
    sys.exit(code)
