"""What one call of the workflow builds: ``config/config.yaml``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from udpm.config.base import Section, WorkflowPath


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Study(Section):
    """``config/config.yaml``; any key can be overridden with ``snakemake --config key=value``."""

    experiments: Annotated[list[str], BeforeValidator(_one_or_many), Field(min_length=1)]
    """Experiments to run: names of files in ``config/experiments/``. One name may stand without a list."""
    sweep: str | None = None
    """Sweep that the targets `sweep` and `sweep_plan` build: a file in ``config/sweeps/``."""
    results: WorkflowPath = "results"
    """Folder for everything that is made, relative to the folder in which `snakemake` is called."""
