"""``udpm diagnose``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import FILE, FOLDER, MOST_IMAGES, RUN, OutputFile, OutputFolder, OutputStem, Verb, Whole, check
from udpm.cli.sample import HOW
from udpm.core import kinds
from udpm.core.devices import as_user_errors
from udpm.core.errors import UserError
from udpm.core.files import write_json
from udpm.core.outputs import Output
from udpm.runs.layout import Layout, results_of
from udpm.runs.records import WEIGHTS


def _how(function: Callable) -> Callable:
    for option in reversed(HOW):
        function = option(function)
    return function


@click.command(cls=Verb, epilog="Example: udpm diagnose results/runs/digits/seed0")
@click.argument("run", type=RUN)
@click.option("--dataset", type=FOLDER, help="The run's prepared data set, with a test split.")
@click.option("--reference", type=FILE, help="Reference of its scores (.npz of udpm reference).")
@click.option("--extractor", type=FILE, help="TorchScript file, executed as a program; default: the configuration's.")
@click.option("--config", type=FILE, help="Resolved scoring section (udpm resolve --part scoring).")
@click.option("--count", type=Whole(2, MOST_IMAGES), default=1000, metavar="N", help="Use at most N held-out images.")
@click.option("--draws", type=Whole(1, 1000), default=3, help="Draws of each image; their spread is shown.")
@click.option("--seed", type=Whole(0, 2**31), default=0, help="Sampling seed of the first draw.")
@_how
@click.option("--table", type=OutputStem(kinds.TABLE), metavar="STEM", help="Also STEM.csv, .md, .tex and .html.")
@click.option("--features", type=OutputFolder(kinds.FEATURES), help="Folder that caches features for later passes.")
@click.option(
    "--output",
    type=OutputFile(kinds.DIAGNOSIS),
    help="The diagnosis, .json; default: diagnoses/ in the folder of results.",
)
def diagnose_command(
    run: Path, extractor: Path | None, count: int, draws: int, features: Path | None, table: Path | None, **given: Any
) -> None:
    """Find where a finished run loses quality and variety, by level, and what its discriminator contributes.

    The chain starts from real held-out images at every level, so that each level's share of the loss shows; the
    discriminator is that of the newest checkpoint. Trains nothing. Files that are not given are those next to the run,
    if it is in a folder of results, RESULTS/runs/EXPERIMENT/seedN.
    """
    from udpm.config import RunConfig, Sampling, Scoring, read_resolved
    from udpm.config.validation import validate
    from udpm.data.store import open_store
    from udpm.diagnosis.diagnose import diagnose
    from udpm.diagnosis.record import findings
    from udpm.metrics.extractor import extractor_files
    from udpm.metrics.reference import load_reference

    about = kinds.weights_description(run / WEIGHTS)
    if not about:
        raise UserError(f"{run}: has no {WEIGHTS}; expected the folder of a finished run")
    # Imported weights have none.
    resolved = run / "config.json"
    trained = read_resolved(RunConfig, resolved) if resolved.exists() else None
    usual = _usual(run, about)

    def path(name: str) -> Path:
        found = given.pop(name) or usual.get(name)
        if found is None:
            raise UserError(f"{run}: is not in a folder of results, RESULTS/runs/EXPERIMENT/seedN; give --{name}")
        if name != "output" and not found.exists():
            raise UserError(f"{found}: not found; make it, or give --{name}")
        return found

    # The guard of options knows a given output already.
    chosen = given["output"] is not None
    dataset, reference, config, output = map(path, ("dataset", "reference", "config", "output"))
    scoring = read_resolved(Scoring, config)
    if extractor is None and scoring.extractor == "digits":
        extractor = usual.get("extractor")
    reads = {"dataset": dataset, "reference": reference, "config": config, "extractor": extractor}
    check(reads | extractor_files(scoring), [] if chosen else [Output("--output", output, kinds.DIAGNOSIS)])
    sampling = validate(Sampling, {key: value for key, value in given.items() if value is not None}, "options")
    with as_user_errors(f"lower --batch (is {sampling.batch})"):
        found = diagnose(
            run, trained, open_store(dataset), load_reference(reference), extractor, scoring, sampling, count, draws,
            features,
        )  # fmt: skip
    if table is not None:
        from udpm.report.figures.diagnosis import diagnosis_table

        diagnosis_table(found).write(table)
    write_json(output, found)
    click.echo(f"{output}: {found['protocol']['n']} held-out images, {draws} draws")
    for text in findings(found):
        click.echo(f"- {text}")


def _usual(run: Path, about: dict[str, Any]) -> dict[str, Path]:
    """Return the paths in the folder of results that a run belongs to; empty for a run elsewhere."""
    layout = Layout(results_of(run))
    experiment, seed, dataset = (str(about.get(key)) for key in ("experiment", "run_seed", "dataset"))
    if Path(layout.run(experiment, seed)).resolve() != run.resolve():
        return {}
    paths = {
        "dataset": layout.dataset(dataset),
        "reference": layout.reference(experiment),
        "config": layout.section("scoring", experiment),
        "extractor": layout.extractor(dataset),
        "output": layout.diagnosis(experiment, seed),
    }
    return {name: Path(path) for name, path in paths.items()}
