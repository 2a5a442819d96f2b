"""Program around Snakemake that interrupts it and its jobs when SIGHUP says that `udpm run` was killed.

python -m udpm.study.guard COMMAND…
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys


def main() -> None:
    """Run the command of the arguments and exit with its code."""
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGHUP, _interrupt)
    sys.exit(subprocess.call(sys.argv[1:]))


def _interrupt(*_: object) -> None:
    # The signal comes once for each thread of the killed process, and a second SIGINT saves no state.
    signal.signal(signal.SIGHUP, lambda *_: None)
    os.killpg(0, signal.SIGINT)


if __name__ == "__main__":
    main()
