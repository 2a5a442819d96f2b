"""``udpm score``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, FOLDER


@click.command(
    epilog="Example: udpm score --samples results/samples/digits/seed0.npz --reference results/references/digits.npz "
    "--extractor results/extractors/digits.pt --dataset results/datasets/digits "
    "--config results/configs/digits/scoring.json --output results/scores/digits/seed0.json"
)
@click.option("--samples", type=FILE, help="Score a sample set (.npz of udpm sample).")
@click.option("--heldout", is_flag=True, help="Score the data set's test split: the floor.")
@click.option("--noise", type=click.IntRange(2), metavar="N", help="Score N images of noise: the ceiling.")
@click.option("--reference", type=FILE, required=True, help="What to measure against (.npz of udpm reference).")
@click.option("--extractor", type=FILE, required=True, help="The reference's extractor.")
@click.option("--dataset", type=FOLDER, required=True, help="The reference's prepared data set.")
@click.option("--config", type=FILE, required=True, help="Resolved scoring section (udpm resolve --part scoring).")
@click.option("--output", type=FILE, required=True, help="The score, .json.")
def command(
    samples: Path | None,
    heldout: bool,
    noise: int | None,
    reference: Path,
    extractor: Path,
    dataset: Path,
    config: Path,
    output: Path,
) -> None:
    """Score a sample set or a yardstick: exactly one of --samples, --heldout and --noise."""
    if (samples is not None) + heldout + (noise is not None) != 1:
        raise click.UsageError("give exactly one of --samples, --heldout and --noise", click.get_current_context())
    from udpm.config import Scoring, read_resolved
    from udpm.core import runtime
    from udpm.core.files import write_json
    from udpm.data.samples import load_samples
    from udpm.data.store import open_store
    from udpm.scoring import score as scores
    from udpm.scoring.extractor import load_extractor
    from udpm.scoring.reference import load_reference

    scoring = read_resolved(Scoring, config)
    device = runtime.configure(scoring.device, scoring.threads)
    store = open_store(dataset)
    if samples is not None:
        subject = scores.sampled(load_samples(samples))
    else:
        subject = scores.heldout(store) if heldout else scores.noise(store, noise)
    network = load_extractor(extractor, device)
    found = scores.score(subject, store, load_reference(reference), network, scoring)
    write_json(output, found)
    known = [metric for metric in found["metrics"].values() if metric["value"] is not None]
    shown = [f"{metric['label']} {metric['value']:.4g}" for metric in known]
    click.echo(f"{output}: " + ", ".join(shown))
