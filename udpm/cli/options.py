"""Groups of commands, and the options that several verbs share."""

from __future__ import annotations

import csv
import difflib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from udpm.core.folders import FolderKind
from udpm.core.kinds import FileKind, KeptFolder
from udpm.core.outputs import Input, Output, guard, nothing
from udpm.core.usage import measured
from udpm.runs import layout


class Group(click.Group):
    """A group whose mistakes are told as those of all commands are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """The help, where nothing else is given."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            raise click.UsageError("a command is missing", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command of a name, or an error with the nearest one."""
        name = args[0]
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            there = self.list_commands(ctx)
            near = difflib.get_close_matches(name, there, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(there)}"
            raise click.UsageError(f"No such command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)


CONFIG_PARTS = ("config.yaml", "cluster.yaml", "experiments", "datasets", "sweeps", "published")
"""What is read of a folder of the configuration."""

MOST_IMAGES = 10_000_000


class Whole(click.IntRange):
    """Whole numbers from `least` on. The bound above keeps a slip from taking all memory; only errors tell of it."""

    def __init__(self, least: int, most: int = 2**31 - 1) -> None:
        super().__init__(least, most)

    def _describe_range(self) -> str:
        return f"x>={self.min}"


class InputPath(click.Path):
    """A file or folder that a command reads: none of its outputs may be, hold or lie in it.

    Args:
        files: whether a file will do.
        folders: whether a folder will do.
        holds: whether an output may have a name all the same, given the folder and the name relative to it.
    """

    def __init__(
        self, *, files: bool = True, folders: bool = True, holds: Callable[[Path, Path], bool] = nothing
    ) -> None:
        super().__init__(path_type=Path, dir_okay=folders, file_okay=files)
        self.holds = holds


def _config_holds(folder: Path, name: Path) -> bool:
    """Only where one works in the folder itself, what is not read of it."""
    return Path.cwd().is_relative_to(folder) and bool(name.parts) and name.parts[0] not in CONFIG_PARTS


def _results_hold(folder: Path, name: Path) -> bool:
    return not name.parts or name.parts[0] not in layout.READ


def _run_holds(folder: Path, name: Path) -> bool:
    """Its card."""
    return name.suffix == ".md" and len(name.parts) == 1


FILE = InputPath(folders=False)
FOLDER = InputPath(files=False)
ANY = InputPath()
CONFIG = InputPath(files=False, holds=_config_holds)
RESULTS = InputPath(files=False, holds=_results_hold)
RUN = InputPath(files=False, holds=_run_holds)


class OutputPath(click.Path):
    """What a command writes. `Verb` holds it against all inputs, and against what is there, before any work."""

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        """All files and folders that come of it, given all parameters of the command."""
        raise NotImplementedError


class OutputFile(OutputPath):
    """One file.

    Args:
        kind: what it is.
        suffixes: of which its name must have one, if any.
        sides: by suffix, kinds of files that get the same name.
    """

    def __init__(self, kind: FileKind, *suffixes: str, sides: dict[str, FileKind] | None = None) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self.kind, self.suffixes, self.sides = kind, suffixes, sides or {}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """The path."""
        path: Any = super().convert(value, param, ctx)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            self.fail(f"{path} must end in {' or '.join(self.suffixes)}", param, ctx)
        return path

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        """The file, and those of the same name."""
        yield Output(option, path, self.kind)
        for suffix, kind in self.sides.items():
            yield Output(f"{option} ({suffix})", path.with_suffix(suffix), kind)


class OutputStem(OutputPath):
    """Several files that differ by what is added to one path.

    Args:
        kinds: by suffix.
    """

    def __init__(self, kinds: dict[str, FileKind]) -> None:
        super().__init__(path_type=Path)
        self.kinds = kinds

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        """The files."""
        for suffix, kind in self.kinds.items():
            yield Output(option, Path(f"{path}{suffix}"), kind)


class OutputFolder(OutputPath):
    """A folder that is replaced as a whole, or that keeps what a command needs again.

    Args:
        kind: what it is, or tells that from all parameters of the command.
    """

    def __init__(self, kind: FolderKind | KeptFolder | Callable[[dict[str, Any]], FolderKind]) -> None:
        super().__init__(path_type=Path, file_okay=False)
        self.kind = kind

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        """The folder."""
        yield Output(option, path, self.kind(params) if callable(self.kind) else self.kind)


class OutputPlace(OutputPath):
    """A folder in which a command writes files of certain names, and leaves all others alone.

    Args:
        kinds: by name, files that it always writes. Others, which other parameters name, are for the command to check
            (`check`), unless it writes none that exists.
    """

    def __init__(self, kinds: dict[str, FileKind] | None = None) -> None:
        super().__init__(path_type=Path, file_okay=False)
        self.kinds = kinds or {}

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        """The folder, and the files."""
        yield Output(option, path, None)
        for name, kind in self.kinds.items():
            yield Output(option, path / name, kind)


class Verb(click.Command):
    """A command that is run only if its outputs harm nothing: see `udpm.core.outputs.guard`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and check; what the command uses is measured from here on where that is asked for."""
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        check(ctx=ctx)
        root = ctx.find_root()
        usage = root.params.get("usage")
        if usage is not None:
            ctx.with_resource(measured(usage, root.invoked_subcommand or ""))
        return rest


class Verbs(Group):
    """A group of such commands."""

    command_class = Verb


def check(
    reads: Mapping[str, str | Path | None] | None = None,
    writes: list[Output] | None = None,
    ctx: click.Context | None = None,
) -> None:
    """Hold a command's outputs against its inputs.

    Args:
        reads: what it reads besides its options, by what names it, such as a configuration's key; None: nothing.
        writes: what it writes besides.
        ctx: default: of the command that is running.

    Raises:
        UserError: an output is refused.
    """
    context = ctx or click.get_current_context()
    inputs = [Input(name, Path(path)) for name, path in (reads or {}).items() if path]
    outputs = list(writes or [])
    for running in (context, context.find_root()):
        for param in running.command.params:
            for path in _paths(running.params.get(param.name)):
                option = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
                if isinstance(param.type, InputPath):
                    inputs.append(Input(option, path, param.type.holds))
                elif isinstance(param.type, OutputPath):
                    outputs += param.type.outputs(option, path, running.params)
    guard(outputs, inputs)


def _paths(value: Any) -> list[Path]:
    parts = value if isinstance(value, tuple) else (value,)
    return [part for part in parts if isinstance(part, Path)]


class Classes(click.ParamType):
    """Names or numbers of classes with commas between them, such as cat,dog or 3,5; quotes keep a comma in a name.

    Args:
        words: that may stand instead of a list, and are left as they are.
    """

    name = "classes"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str | list[str]:
        """One of the words, or the list."""
        if isinstance(value, list) or value in self.words:
            return value
        try:
            (labels,) = csv.reader([str(value)], skipinitialspace=True, strict=True)
        except (ValueError, csv.Error):
            labels = []
        labels = [label.strip() for label in labels]
        if not labels or not all(labels):
            self.fail(f"{value!r} is no list of classes with commas between them, such as cat,dog or 0,3", param, ctx)
        return labels


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
