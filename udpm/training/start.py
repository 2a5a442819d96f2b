"""The start of an attempt at a run: it is recorded before torch, the data or the device can fail."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from udpm.config.experiment import RunConfig
from udpm.core.device_errors import as_user_errors
from udpm.core.errors import UserError
from udpm.core.ranks import Place, launched, start_of
from udpm.training.attempts import SERIES, Attempt, alike, recorded
from udpm.training.claim import claim
from udpm.training.finished import may_be_finished
from udpm.training.owner import identity


@contextmanager
def attempted(
    run: Path,
    config: RunConfig,
    allow_world_size_change: bool = False,
    environment: Mapping[str, str] = os.environ,
) -> Iterator[Attempt]:
    """Record an attempt at a run from its first moment to its end. Creates the run's folder.

    Nothing is written if the folder holds anything but this run. The attempt begins only when the caller calls
    `Attempt.begin` if the run may be finished, or if a user starts a new run by hand. Nothing retries that, and a
    mistyped command should leave no folder.

    Args:
        run: the run's folder.
        config: of the run.
        allow_world_size_change: see `claim`.
        environment: variables; those of the launcher and `SERIES` are read.

    Raises:
        UserError: there is nothing to train, the folder holds something else (`claim`, `is_finished`) or cannot be
            created, or two attempts of the same `snakemake` failed alike.
    """
    if config.training == "imported":
        raise UserError(f"{run}: training is imported, so there is nothing to train; `udpm import` makes this run")
    claim(run, config, allow_world_size_change, writes=False)
    finished, who, series = may_be_finished(run, config.training), identity(), environment.get(SERIES)
    if not finished:
        _check_series(run, who, series)
    begins = not finished and bool(run.exists() or series or who["job"])
    if begins:
        make_folder(run)
    place = launched(config.training.processes, environment) or Place()
    start = start_of(place, environment)
    with recorded(run, who, place.rank, start, begins=begins) as attempt, as_user_errors():
        yield attempt


def make_folder(run: Path) -> None:
    """Create a run's folder.

    Raises:
        UserError: it cannot be created.
    """
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{run}: cannot be made: {error.strerror or error}") from None


def _check_series(run: Path, who: dict[str, Any], series: str | None) -> None:
    """Refuse a third attempt after two that failed alike, unless the user requeued the job that failed."""
    last = alike(run, series) if series else None
    if last is None or _requeued(last.record, who):
        return
    raise UserError(
        f"{run}: failed twice alike ({last.reason}); fix the cause, then run snakemake again, or udpm train by hand, "
        "to try once more"
    )


def _requeued(before: dict[str, Any], now: dict[str, Any]) -> bool:
    same = now["job"] is not None and before.get("job") == now["job"]
    return same and before.get("attempt") != now["attempt"]
