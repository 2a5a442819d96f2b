"""The two ways a command ends that are neither success nor a bug."""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_STOPPED_EARLY = 75


class UserError(Exception):
    """Mistakes of the user's (input, configuration, missing file), each told in one line; exit code 2.

    Args:
        mistakes: one, or several of one file; each says what is wrong, where, and what would be right.
    """

    def __init__(self, *mistakes: str) -> None:
        super().__init__(*mistakes)

    def __str__(self) -> str:
        return "\n".join(self.mistakes)

    @property
    def mistakes(self) -> list[str]:
        """One line each."""
        return [" ".join(str(mistake).split()) for mistake in self.args]


def first_line(error: BaseException) -> str:
    """The first line of what a library says of an error; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class StoppedEarly(Exception):
    """Work was interrupted on request with its state saved; exit code 75: run the same command again."""
