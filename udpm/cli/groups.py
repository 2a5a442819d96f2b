"""Groups of commands: without a command they show their help, and a mistyped command gets a suggestion."""

from __future__ import annotations

import difflib

import click


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
