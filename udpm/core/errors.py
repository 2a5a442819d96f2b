"""The two ways a command ends that are neither success nor a bug."""

from __future__ import annotations

EXIT_USER_ERROR = 2
EXIT_STOPPED_EARLY = 75


class UserError(Exception):
    """A mistake of the user's (input, configuration, missing file), told in one line; exit code 2.

    The message says what is wrong, where, and what would be right.
    """


class StoppedEarly(Exception):
    """Work was interrupted on request with its state saved; exit code 75: run the same command again."""
