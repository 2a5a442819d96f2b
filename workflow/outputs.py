"""The files of figures and tables as outputs of rules, with their place in Snakemake's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments import one_line

from udpm.core.errors import UserError


def drawn(stem: str, caption: str, category: str, **labels: str) -> list[Any]:
    """Return the files of a figure as outputs of a rule; the report shows the .svg, which is sharp at any size.

    `stem` is their path without suffix, `caption` the name of its explanation in the folder report.
    """
    from snakemake.io import multiext, report

    svg = report(f"{stem}.svg", f"../report/{caption}.rst", category=category, labels=labels)
    return [f"{stem}.png", svg, *multiext(stem, ".pdf", ".csv")]


def drawn_of(stem: str, caption: str, figure: str, seed: str = "{seed}") -> list[Any]:
    """Return the files of a figure of an experiment, as `drawn` does."""
    return drawn(stem, caption, "3 Figures", figure=figure, experiment="{experiment}", seed=seed)


def tabled(stem: str, caption: str, category: str, readable: dict[str, str], full: dict[str, str]) -> list[Any]:
    """Return the files of a table as outputs of a rule, as `drawn` does for figures.

    In the report, `readable` labels the rounded table, and `full` that in full precision.
    """
    from snakemake.io import multiext, report

    html = report(f"{stem}.html", f"../report/{caption}.rst", category=category, labels=readable)
    csv = report(f"{stem}.csv", f"../report/{caption}.rst", category=category, labels=full)
    return [html, csv, *multiext(stem, ".md", ".tex")]


def check_report() -> None:
    """Make `snakemake --report` end in one line if files of the report are not made yet."""
    from snakemake import report
    from snakemake.io import is_flagged

    collect = report.auto_report

    @one_line
    def check_then_collect(dag, *arguments, **options):
        files = {str(file) for job in dag.jobs for file in job.output if is_flagged(file, "report")}
        missing = sorted(file for file in files if not Path(file).exists())
        if missing:
            raise UserError(
                f"--report: {len(missing)} of its {len(files)} files are missing, such as {missing[0]}; make them "
                "first, without --report, and give the report the same targets and --config"
            )
        return collect(dag, *arguments, **options)

    report.auto_report = check_then_collect
