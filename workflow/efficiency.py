"""The report on what jobs used that Snakemake's plugin for SLURM (2.8) writes when all is done.

The plugin lets every error of it through: without sacct, or of a line that it cannot read, a finished study would end
in a traceback. It also waits for sacct for ever, and warns of each job.
"""

from __future__ import annotations

import threading
from types import SimpleNamespace

PATIENCE = 60.0
"""Seconds that the report may take."""


def mend() -> None:
    """Write the report if that is possible, and let nothing depend on it."""
    import snakemake_executor_plugin_slurm as plugin

    create = plugin.create_efficiency_report

    def create_if_possible(*, logger, **options):
        # What the plugin says of single jobs stands in the report.
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
