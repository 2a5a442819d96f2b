"""One thing that Snakemake's plugin for SLURM (2.8) does not see: a job that somebody cancelled.

sacct says "CANCELLED by 1000"; the plugin knows only the word alone, and waits for such a job for ever.
"""

from __future__ import annotations


def mend() -> None:
    """Let the plugin see the first word of each state."""
    import snakemake_executor_plugin_slurm as plugin

    ask = plugin.query_job_status

    async def first_words(*arguments, **options):
        states, seconds = await ask(*arguments, **options)
        return states and {job: state.split(maxsplit=1)[0] for job, state in states.items() if state}, seconds

    plugin.query_job_status = first_words
