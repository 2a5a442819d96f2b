"""``udpm reference``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import ANY, FILE, MOST_IMAGES, OutputFile, OutputFolder, Verb, Whole, check
from udpm.core import kinds


@click.command(
    cls=Verb,
    epilog="Example: udpm reference results/datasets/digits --extractor results/extractors/digits.pt "
    "--config results/configs/digits/scoring.json --output results/references/digits.npz",
)
@click.argument("source", type=ANY)
@click.option("--extractor", type=FILE, help="TorchScript file, a program that is run; default: the configuration's.")
@click.option("--config", type=FILE, required=True, help="Resolved scoring section (udpm resolve --part scoring).")
@click.option(
    "--count", type=Whole(2, MOST_IMAGES), metavar="N", help="Take N of a plain folder's images; default: all."
)
@click.option("--flips", is_flag=True, help="Also every mirror image, whatever the configuration says.")
@click.option("--import", "published", is_flag=True, help="SOURCE is an .npz of published statistics, mu and sigma.")
@click.option(
    "--features", type=OutputFolder(kinds.FEATURES), help="Folder that keeps features, so that no pass is made twice."
)
@click.option(
    "--output",
    type=OutputFile(kinds.REFERENCE),
    required=True,
    help="The reference, .npz with mu, sigma, features, record.",
)
def command(
    source: Path,
    extractor: Path | None,
    config: Path,
    count: int | None,
    flips: bool,
    published: bool,
    features: Path | None,
    output: Path,
) -> None:
    """Compute feature statistics of images, to score against.

    SOURCE is a prepared data set, of which the configured split is taken, or a folder, .zip or .npz of images, all of
    one size. Statistics that others published (--import) are taken for the configured extractor's; they have no
    features, so nothing scored against them has a kernel distance, precision or recall.
    """
    from udpm.config import Scoring, read_resolved
    from udpm.core import runtime
    from udpm.data.images import open_images
    from udpm.data.store import RECORD, open_store
    from udpm.scoring import reference
    from udpm.scoring.extractor import extractor_files, open_extractor

    scoring = read_resolved(Scoring, config)
    check(extractor_files(scoring))
    device = runtime.configure(scoring.device, scoring.threads)
    network = open_extractor(scoring, extractor, device)
    options = {"flips": flips or scoring.reference_flips, "cache": features}
    if published:
        reference.import_reference(source, network, output)
    elif (source / RECORD).exists():
        reference.write_reference(
            open_store(source), scoring.reference_split, network, scoring.batch, output, **options
        )
    else:
        images = open_images(source, count)
        reference.write_image_reference(images, source.stem, network, scoring.batch, output, **options)
    click.echo(f"{output}: {_told(output)}")


def _told(output: Path) -> str:
    """What a reference holds, in a few words."""
    import json

    from udpm.data.npz import unpack

    arrays = unpack(output, "reference", ("record", "mu"))
    record = json.loads(str(arrays["record"]))
    made_of = f" of {record['n']} images" if record.get("n") else ""
    return f"mean and covariance of {len(arrays['mu'])} features{made_of}"
