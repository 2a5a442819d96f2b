"""Command groups, and options shared by several verbs."""

from __future__ import annotations

import csv
import difflib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click

from udpm.core.folders import FolderKind
from udpm.core.hub import is_address
from udpm.core.kinds import FileKind, KeptFolder
from udpm.core.outputs import Input, Output, guard, nothing
from udpm.core.reading import NO_TEXT
from udpm.runs import layout


def usage_error(message: str) -> click.UsageError:
    """Return an error that names the running command and its help."""
    return click.UsageError(message, click.get_current_context())


class Group(click.Group):
    """A group that reports mistakes like all other commands."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Print the help if no arguments are given."""
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            raise click.UsageError("a command is missing", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find a command by name, or raise an error that suggests the closest match."""
        name = args[0]
        # Completion asks for words that are not finished.
        if ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if not name.startswith("-") and self.get_command(ctx, name) is None:
            commands = self.list_commands(ctx)
            near = difflib.get_close_matches(name, commands, n=1)
            hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(commands)}"
            raise click.UsageError(f"No such command {name!r}; {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands, each with its whole first sentence, which click would cut off."""
        found = {name: self.get_command(ctx, name) for name in self.list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.get_short_help_str(1000)) for name, command in found.items() if command])


def complete_configs(part: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """Return a function that completes names of the files in a folder of the configuration, such as experiments."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        # Loads pydantic.
        from udpm.config.validation import list_configs

        names = list_configs(Path(ctx.params.get("config") or "config") / part)
        return [name for name in names if name.startswith(incomplete)]

    return complete


CONFIG_PARTS = ("config.yaml", "cluster.yaml", "experiments", "datasets", "sweeps", "published")
"""Files and folders that are read in a configuration folder."""

MOST_IMAGES = 10_000_000


class Whole(click.IntRange):
    """Integers of at least `least`. The upper bound, shown only in errors, keeps a typo from using all memory."""

    name = "integer"

    def __init__(self, least: int, most: int = 2**31 - 1) -> None:
        super().__init__(least, most)
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number."""
        number: int = click.INT.convert(value, param, ctx)
        if not self.least <= number <= self.most:
            self.fail(f"{number} is not in the range {self.least}<=x<={self.most}.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return f"x>={self.least}"


class Duration(click.FloatRange):
    """Finite times from 0; `click.FloatRange` takes NaN, which is on neither side of a bound."""

    def __init__(self, *, above: bool = False) -> None:
        super().__init__(0, min_open=above)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number."""
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


class InputPath(click.Path):
    """A file or folder that a command reads; no output may be the same path, contain it or be inside it.

    An output inside it is allowed if `holds` returns True, given the folder and the relative path.
    """

    def __init__(
        self, *, files: bool = True, folders: bool = True, holds: Callable[[Path, Path], bool] = nothing
    ) -> None:
        super().__init__(path_type=Path, dir_okay=folders, file_okay=files)
        self.holds = holds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path. Where files and folders are read, the address of a model on the Hub stands for its weights.

        Raises:
            UserError: the model cannot be downloaded.
        """
        if NO_TEXT.search(os.fspath(value)):
            # It could be read, but no record could name it.
            reason = "its name is not UTF-8 text; rename it, or set LC_ALL=C.UTF-8 if it is"
            self.fail(f"{os.fspath(value)!r}: {reason}", param, ctx)
        if self.file_okay and self.dir_okay and is_address(value) and not (ctx and ctx.resilient_parsing):
            # Loads NumPy, which `udpm --help` does not need.
            from udpm.runs.records import find_weights

            return find_weights(value)
        path: Any = super().convert(value, param, ctx)
        return path


class WeightsPath(InputPath):
    """A weight file, or a folder that stands for one, which is replaced by the file: see `find_weights`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the weight file.

        Raises:
            UserError: the folder has no weights, or those of several runs.
        """
        # Loads NumPy, which `udpm --help` does not need.
        from udpm.runs.records import find_weights

        return find_weights(super().convert(value, param, ctx))


def _config_holds(folder: Path, name: Path) -> bool:
    """Allow files that are not read, but only if the current folder is inside it."""
    return Path.cwd().is_relative_to(folder) and bool(name.parts) and name.parts[0] not in CONFIG_PARTS


def _results_hold(folder: Path, name: Path) -> bool:
    return not name.parts or name.parts[0] not in layout.READ


def _run_holds(folder: Path, name: Path) -> bool:
    """Allow the model card."""
    return name.suffix == ".md" and len(name.parts) == 1


FILE = InputPath(folders=False)
FOLDER = InputPath(files=False)
ANY = InputPath()
WEIGHTS = WeightsPath()
CONFIG = InputPath(files=False, holds=_config_holds)
RESULTS = InputPath(files=False, holds=_results_hold)
RUN = InputPath(files=False, holds=_run_holds)

CONFIG_FOLDER = click.option("--config", type=CONFIG, default="config", help="Folder of the configuration.")
RESULTS_FOLDER = click.option("--results", type=RESULTS, default="results", help="Folder of the results.")


SETTINGS = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Use this value of a key, such as training.batch=32 or process.sigmas[3]=0.6; repeat for more keys.",
)


class OutputPath(click.Path):
    """An output path. `Verb` checks it against all inputs and existing files before any work."""

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        """Yield all files and folders to be written, given all parameters of the command."""
        raise NotImplementedError


class OutputFile(OutputPath):
    """One file, and additional files with the same name: `sides` has their kinds by suffix.

    `alone` has other kinds of the file by suffix, which have no additional files.
    """

    def __init__(
        self,
        kind: FileKind,
        *suffixes: str,
        sides: dict[str, FileKind] | None = None,
        alone: dict[str, FileKind] | None = None,
    ) -> None:
        super().__init__(path_type=Path, dir_okay=False)
        self.kind, self.sides, self.alone = kind, sides or {}, alone or {}
        self.suffixes = (*suffixes, *self.alone)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path: Any = super().convert(value, param, ctx)
        if self.suffixes and path.suffix.lower() not in self.suffixes:
            self.fail(f"{path} must end in {' or '.join(self.suffixes)}", param, ctx)
        return path

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        other = self.alone.get(path.suffix.lower())
        yield Output(option, path, other or self.kind)
        for suffix, kind in self.sides.items() if other is None else ():
            yield Output(f"{option} ({suffix})", path.with_suffix(suffix), kind)


class OutputStem(OutputPath):
    """Several files whose paths are one stem plus a suffix."""

    def __init__(self, kinds: dict[str, FileKind]) -> None:
        super().__init__(path_type=Path)
        self.kinds = kinds

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        path: Any = super().convert(value, param, ctx)
        if path.name in ("", ".."):
            self.fail(f"{path} is a folder; expected a file without its suffix, such as {path / 'NAME'}", param, ctx)
        if path.suffix in self.kinds:
            self.fail(f"{path} must have no suffix, since {', '.join(self.kinds)} are added", param, ctx)
        return path

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        for suffix, kind in self.kinds.items():
            yield Output(option, Path(f"{path}{suffix}"), kind)


class OutputFolder(OutputPath):
    """A folder that is replaced as a whole, or that keeps files for later calls.

    Args:
        kind: kind of the folder, or a function that returns it, given all parameters of the command.
    """

    def __init__(self, kind: FolderKind | KeptFolder | Callable[[dict[str, Any]], FolderKind]) -> None:
        super().__init__(path_type=Path, file_okay=False)
        self.kind = kind

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        yield Output(option, path, self.kind(params) if callable(self.kind) else self.kind)


class OutputFolderOr(OutputFolder):
    """A folder as in `OutputFolder`, or one file of another kind if the path ends in `suffix`."""

    def __init__(self, kind: Callable[[dict[str, Any]], FolderKind], suffix: str, file: FileKind) -> None:
        super().__init__(kind)
        self._suffix, self._file = suffix, OutputFile(file, suffix)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        if Path(value).suffix.lower() == self._suffix:
            return self._file.convert(value, param, ctx)
        path: Any = super().convert(value, param, ctx)
        return path

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        named = path.suffix.lower() == self._suffix
        yield from self._file.outputs(option, path, params) if named else super().outputs(option, path, params)


class SharedFolder(OutputPath):
    """A folder in which a command writes files with certain names and leaves all others unchanged.

    Args:
        kinds: kinds of the files that it always writes, by name. The command must `check` other files that may exist,
            whose names depend on other parameters.
    """

    def __init__(self, kinds: dict[str, FileKind] | None = None) -> None:
        super().__init__(path_type=Path, file_okay=False)
        self.kinds = kinds or {}

    def outputs(self, option: str, path: Path, params: dict[str, Any]) -> Iterator[Output]:
        yield Output(option, path, None)
        for name, kind in self.kinds.items():
            yield Output(option, path / name, kind)


class Verb(click.Command):
    """A command that runs only if its outputs overwrite nothing of value: see `udpm.core.outputs.guard`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse and check the arguments; measure usage from here on with --usage."""
        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:
            return rest
        check(ctx=ctx)
        root = ctx.find_root()
        usage = root.params.get("usage")
        if usage is not None:
            from udpm.core.provenance import measured

            ctx.with_resource(measured(usage, root.invoked_subcommand or ""))
        return rest


class Verbs(Group):
    """A group whose commands are `Verb`s."""

    command_class = Verb


def check(
    reads: Mapping[str, str | Path | None] | None = None,
    writes: list[Output] | None = None,
    ctx: click.Context | None = None,
) -> None:
    """Check a command's outputs against its inputs and existing files.

    Args:
        reads: inputs that are not options, by the name to show in errors, such as a configuration key.
        writes: outputs that are not options.
        ctx: context of the command; default: the running one.

    Raises:
        UserError: an output is refused.
    """
    context = ctx or click.get_current_context()
    inputs = [Input(name, Path(path)) for name, path in (reads or {}).items() if path]
    outputs = list(writes or [])
    for running in (context, context.find_root()):
        for param in running.command.params:
            value = running.params.get(param.name)
            for path in value if isinstance(value, tuple) else (value,):
                if not isinstance(path, Path):
                    continue
                option = param.opts[0] if isinstance(param, click.Option) else param.human_readable_name
                if isinstance(param.type, InputPath):
                    inputs.append(Input(option, path, param.type.holds))
                elif isinstance(param.type, OutputPath):
                    outputs += param.type.outputs(option, path, running.params)
    guard(outputs, inputs)


class Classes(click.ParamType):
    """Comma-separated names or numbers of classes, such as cat,dog or 3,5; quote a name that contains a comma.

    Any of `words` is allowed instead of a list, and returned unchanged.
    """

    name = "classes"

    def __init__(self, *words: str) -> None:
        self.words = words

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> str | list[str]:
        if isinstance(value, list) or value in self.words:
            return value
        try:
            (labels,) = csv.reader([str(value)], skipinitialspace=True, strict=True)
        except (ValueError, csv.Error):
            labels = []
        labels = [label.strip() for label in labels]
        if not labels or not all(labels):
            self.fail(f"{value!r} is not a comma-separated list of classes, such as cat,dog or 0,3", param, ctx)
        return labels


class Numbers(click.ParamType):
    """Comma-separated numbers of one type, such as 0,1,2."""

    name = "numbers"

    def __init__(self, number: type[int] | type[float]) -> None:
        self.number = number

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> list:
        if isinstance(value, list):
            return value
        try:
            return [self.number(part) for part in str(value).split(",")]
        except ValueError:
            kind = "whole numbers" if self.number is int else "numbers"
            self.fail(f"{value!r} is not a comma-separated list of {kind}, such as 0,1", param, ctx)
