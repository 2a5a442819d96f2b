"""``udpm extractor``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FOLDER, OutputFile, Verb, Whole
from udpm.core import kinds


@click.command(cls=Verb, epilog="Example: udpm extractor results/datasets/digits --output results/extractors/digits.pt")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--output",
    type=OutputFile(kinds.EXTRACTOR, sides={".json": kinds.EXTRACTOR_RECORD}),
    required=True,
    help="TorchScript file; its record goes beside it, .json.",
)
@click.option("--seed", type=Whole(0, 2**63 - 1), default=0, show_default=True, help="Seed of the training.")
@click.option("--threads", type=Whole(1, 1024), default=2, show_default=True, help="CPU threads.")
def command(dataset: Path, output: Path, seed: int, threads: int) -> None:
    """Train the small classifier whose features score digits.

    It learns on the training split of DATASET; its accuracy on the test split is recorded.
    """
    from udpm.core import runtime
    from udpm.data.store import open_store
    from udpm.scoring.classifier import train_classifier

    runtime.configure("cpu", threads)
    accuracy = train_classifier(open_store(dataset), seed, output)
    click.echo(f"{output}: held-out accuracy {accuracy:.1%}")
