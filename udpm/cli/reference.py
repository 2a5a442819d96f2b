"""``udpm reference``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER


@click.command(
    epilog="Example: udpm reference results/datasets/digits --extractor results/extractors/digits.pt "
    "--config results/configs/digits/scoring.json --output results/references/digits.npz"
)
@click.argument("dataset", type=FOLDER)
@click.option("--extractor", type=FILE, required=True, help="TorchScript file: (N, 3, h, w) in [0, 255] to features.")
@click.option("--config", type=FILE, required=True, help="Resolved scoring section (udpm resolve --part scoring).")
@click.option("--output", type=FILE, required=True, help="The reference, .npz with mu, sigma, features, record.")
def command(dataset: Path, extractor: Path, config: Path, output: Path) -> None:
    """Compute feature statistics of a prepared data set, to score against."""
    from udpm.config import Scoring, read_resolved
    from udpm.core import runtime
    from udpm.data.store import open_store
    from udpm.scoring.extractor import load_extractor
    from udpm.scoring.reference import write_reference

    scoring = read_resolved(Scoring, config)
    device = runtime.configure(scoring.device, scoring.threads)
    network = load_extractor(extractor, device)
    write_reference(open_store(dataset), scoring.reference_split, network, scoring.batch, output)
