"""``udpm sample``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE


@click.command(
    epilog="Example: udpm sample results/runs/digits/seed0/weights.safetensors "
    "--config results/configs/digits/sampling.json --output results/samples/digits/seed0.npz"
)
@click.argument("weights", type=FILE)
@click.option("--config", type=FILE, required=True, help="Resolved sampling section (udpm resolve --part sampling).")
@click.option("--output", type=FILE, required=True, help="The sample set, .npz; its record goes beside it, .json.")
@click.option("--chain", type=FILE, help="Also write the sampling chain of one image per class, .npz.")
def command(weights: Path, config: Path, output: Path, chain: Path | None) -> None:
    """Draw a sample set from trained weights.

    WEIGHTS is a run's weights.safetensors; it says itself what network it belongs to. The n-th image is the same
    whatever the batch size.
    """
    from udpm.config import Sampling, read_resolved
    from udpm.sampling.run import draw_samples

    draw_samples(weights, read_resolved(Sampling, config), output, chain)
