"""Exceptions that end a command without being a bug."""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_STOPPED_EARLY = 75


class UserError(Exception):
    """User mistakes (input, configuration, missing file), each reported as one line; exit code 2.

    Args:
        mistakes: one, or several in one file; each says what is wrong, where, and what would be right.
    """

    def __str__(self) -> str:
        return "\n".join(self.mistakes)

    @property
    def mistakes(self) -> list[str]:
        """One line for each mistake."""
        return [" ".join(str(mistake).split()) for mistake in self.args]


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class StoppedEarly(Exception):
    """Work was interrupted on request and its state saved; exit code 75: run the same command again."""
