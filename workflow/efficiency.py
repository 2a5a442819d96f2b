"""Keep the efficiency report of Snakemake's plugin for SLURM (2.8) from failing a finished study.

The plugin handles no error of the report: without sacct, or on a line that it cannot parse, a study that succeeded
would end in a traceback. It also waits for sacct without a limit.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

PATIENCE = 60.0
"""Seconds that the report may take."""


def install() -> None:
    """Write the report if possible; ignore its failures."""
    import snakemake_executor_plugin_slurm as plugin

    create = plugin.create_efficiency_report

    def create_if_possible(*, logger, **options):
        # Its warnings about single jobs repeat what the report contains.
        quiet = SimpleNamespace(info=logger.info, debug=logger.debug, warning=logger.debug, error=logger.debug)

        def write() -> None:
            try:
                create(logger=quiet, **options)
            except Exception as error:
                logger.debug(f"no efficiency report: {error!r}")

        writer = threading.Thread(target=write, daemon=True)
        writer.start()
        writer.join(PATIENCE)

    plugin.create_efficiency_report = create_if_possible
