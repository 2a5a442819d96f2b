"""Command lines: options in, one call, exit code out.

A verb's module is imported when the verb is called; it defines the command as VERB_command.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import click

from udpm import __version__
from udpm.cli.options import Group, OutputFile
from udpm.core import kinds
from udpm.core.devices import as_user_errors
from udpm.core.errors import EXIT_STOPPED_EARLY, EXIT_USER_ERROR, StoppedEarly, UserError, first_line
from udpm.core.identify import what_is, with_kind
from udpm.core.processes import use_private_cache_dirs

WRONG_CHOICE = re.compile(r"'([^']*)' is not one of")
WRONG_PLACE = re.compile(r"(?:File|Directory|Path) '(.*)' is a (directory|file)")
FITTING = {
    **dict.fromkeys(("weights", "checkpoints"), "weights.safetensors"),
    **dict.fromkeys(("config", "schedule", "forward"), "config.json"),
    "curves": "metrics.jsonl",
}
"""What a run's folder has for an argument or a command of a name."""
# Help lines stand here, not in the modules, so that `udpm --help` imports none of them.
VERBS = {
    "resolve": "Validate a configuration and write it out complete.",
    "schema": "Write the JSON schemas of the configuration files.",
    "fetch": "Bring weights and data sets here beforehand.",
    "prepare": "Turn a source of images into a checked, memory-mapped store.",
    "cache": "Write the downsampled levels of a prepared data set.",
    "train": "Train a model; resumes by itself.",
    "status": "Say where training runs stand.",
    "clean": "Remove checkpoints of finished runs.",
    "sample": "Draw a sample set from trained weights.",
    "join": "Make one sample set of its shards.",
    "export": "Write a sample set as image files.",
    "latents": "Explore what each noise map of a model's latent controls.",
    "extractor": "Train the small classifier whose features score digits.",
    "reference": "Feature statistics of a data set, to score against.",
    "score": "Score a sample set or a yardstick against a reference.",
    "select": "Choose a run's best milestone by its score.",
    "table": "Render scores as a table (csv, md, tex, html).",
    "paper": "Render the paper's tables, published numbers beside measured ones.",
    "summary": "Say on one page what ran, what came of it, and what is missing.",
    "card": "Write a run's model card.",
    "figure": "Render a figure (svg, png, csv of the data behind it).",
    "schedule": "Show a noise schedule's numbers, and how well sampling starts.",
    "sweep": "Plan, watch and rank a sweep of experiments.",
    "cost": "Count what an image costs: multiply-adds and parameters.",
    "import": "Bring over published checkpoints, configurations and command lines.",
    "bench": "Measure speed on this machine.",
    "info": "Say what a file or folder made by udpm is.",
}


MODULES = {
    "config": ("resolve", "schema", "import"),
    "data": ("fetch", "prepare", "cache"),
    "train": ("train", "status", "clean"),
    "sample": ("sample", "join", "export", "latents"),
    "score": ("extractor", "reference", "score", "select"),
    "report": ("table", "paper", "summary", "card", "figure"),
    "inspect": ("schedule", "cost", "info"),
}
"""The verbs of each module; the others have a module of their own name."""


class _Verbs(Group):
    """Loads a verb's module when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module = next((module for module, verbs in MODULES.items() if name in verbs), name)
        return getattr(importlib.import_module(f"udpm.cli.{module}"), f"{name}_command")

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(__version__, prog_name="udpm")
@click.option(
    "--usage", type=OutputFile(kinds.USAGE), help="Append to this .jsonl what the command used: time, memory, GPU."
)
def udpm(usage: Path | None) -> None:
    """Train, sample, score and report Upsampling Diffusion Probabilistic Models.

    Exit codes: 0 done; 2 a mistake in what was asked for, each told in one line; 75 stopped early with everything
    saved: run the same command again.
    """
    # `Verb` measures, once it knows that `usage` may be written.


LONGEST = 2000
"""Characters of an error: what it shows of a file may be long."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point: run a verb and exit with its code."""
    # Read when OpenMP is loaded, so before torch is. Threads that spin while they wait take the core from whatever else
    # runs, and from each other: training beside one busy process was four times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    use_private_cache_dirs()
    try:
        with as_user_errors():
            done = udpm.main(arguments, prog_name="udpm", standalone_mode=False)
        # Else it fails when the interpreter ends, which tells of it at length.
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
        _stop(" ".join(f"error: {_told(error)}".split()), EXIT_USER_ERROR)
    except (click.Abort, KeyboardInterrupt):
        _stop("interrupted", 130)
    except OSError as error:
        _stop_for(error)
    except ImportError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "udpm"):
            raise
        _stop(f"error: {package} cannot be imported here: {first_line(error)}", EXIT_USER_ERROR)
    except RecursionError:
        _stop("error: something that was read is nested too deep", EXIT_USER_ERROR)


def _stop_for(error: OSError) -> None:
    """End for what the system refused: a reader that went away, a full disk, a file that cannot be opened."""
    # What is left to write cannot be written any more.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):
        sys.exit(1)
    reason, where = error.strerror or str(error), error.filename
    if where is None and error.errno in (errno.ENOSPC, errno.EIO, errno.EBADF):
        where = "standard output"
    _stop(f"error: {f'{where}: ' * (where is not None)}{reason}", EXIT_USER_ERROR)


def _told(error: click.ClickException) -> str:
    """What is wrong in a command line, with what would be right."""
    message = error.format_message()
    if isinstance(error, click.BadParameter) and (wrong := WRONG_PLACE.search(message)):
        return _place(Path(wrong[1]), wrong[2] == "directory", error)
    choices = getattr(getattr(error, "param", None), "type", None)
    if isinstance(choices, click.Choice) and (wrong := WRONG_CHOICE.search(message)):
        near = difflib.get_close_matches(wrong[1], map(str, choices.choices), n=1)
        message += f" Did you mean {near[0]!r}?" if near else ""
    where = f" (see {error.ctx.command_path} --help)" if isinstance(error, click.UsageError) and error.ctx else ""
    return f"{message}{where}"


def _place(path: Path, is_folder: bool, error: click.BadParameter) -> str:
    """A folder where a file is wanted, or the other way round, with what there is of the right kind."""
    assert error.ctx is not None
    assert error.param is not None
    option, command = isinstance(error.param, click.Option), error.ctx.command.name
    name = error.param.opts[0] if option else error.param.human_readable_name
    if is_folder:
        near = [path / FITTING[word] for word in (name.lower(), command) if word in FITTING]
        fits = next((file for file in near if file.is_file()), None)
        found = f"{name}: {path} is a folder; a file is wanted"
    else:
        fits = path.parent if what_is(path.parent) is not None else None
        found = f"{name}: {path} is a file; a folder is wanted"
    kind = what_is(path)
    return f"{found}: {fits}" if fits else f"{found} (it is {kind})" if kind else found


def _stop(message: str, code: int) -> None:
    # On a full disk there may be nowhere to say it; the exit code still does.
    with suppress(OSError):
        for line in message.splitlines():
            text = " ".join(line.split())
            click.echo(text if len(text) <= LONGEST else f"{text[:LONGEST]} …", err=True)
    sys.exit(code)
