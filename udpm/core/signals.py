"""A polite request to stop (SIGTERM, SIGUSR1, SIGINT), remembered until the work reaches a point where it can."""

from __future__ import annotations

import atexit
import signal

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopRequest:
    """Becomes true when a signal arrives. Install before slow imports, so that an early signal also ends well.

    A second SIGINT interrupts at once, so that Ctrl-C twice always works.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._interrupts = 0

    @classmethod
    def install(cls) -> StopRequest:
        """Handle SIGTERM, SIGUSR1 and SIGINT of this process from now on."""
        request = cls()
        for number in SIGNALS:
            signal.signal(number, request._remember)
        # While the interpreter takes itself apart, a signal would end it with another exit code than its own.
        atexit.register(_ignore)
        return request

    def __bool__(self) -> bool:
        return self._received is not None

    def __str__(self) -> str:
        return self._received.name if self._received else "no request"

    def _remember(self, number: int, _frame: object) -> None:
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
