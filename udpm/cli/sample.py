"""``udpm sample``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import FILE, Classes, OutputFile, Verb, check
from udpm.core import kinds

CASUAL_COUNT = 64


def _shard(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", value or "1/1")
    if not found:
        raise click.BadParameter(f"{value!r} is not of the form 2/4")
    return int(found[1]), int(found[2])


@click.command(
    cls=Verb, epilog="Example: udpm sample weights.safetensors --count 100 --labels 3,5 --output threes-and-fives.npz"
)
@click.argument("weights", type=FILE)
@click.option("--config", type=FILE, help="Resolved sampling section (udpm resolve --part sampling); options win.")
@click.option(
    "--output",
    type=OutputFile(kinds.SAMPLES, ".npz", sides={".json": kinds.SAMPLE_RECORD}),
    help="The sample set, .npz; its record goes beside it, .json.",
)
@click.option(
    "--chain", type=OutputFile(kinds.CHAIN, ".npz"), help="Also write the sampling chain of one image per class, .npz."
)
@click.option("--shard", callback=_shard, help="Draw one part: 2/4 is the second of four. udpm join makes them one.")
@click.option("--count", type=int, help=f"Number of images; {CASUAL_COUNT} where no --config says otherwise.")
@click.option("--batch", type=int, help="Images per network call; has no influence on the images.")
@click.option("--seed", type=int, help="The n-th image's noise is a function of (seed, n) alone.")
@click.option(
    "--labels",
    type=Classes("balanced", "none"),
    metavar="CLASS,…",
    help="balanced, none, or classes to take in turn, by name (cat,dog) or number (3,5); a name wins.",
)
@click.option("--posterior", type=click.Choice(["scalar", "exact"]), help="Covariance of the posterior.")
@click.option("--guidance", type=float, help="w of classifier-free guidance; for models trained with label dropout.")
@click.option("--noise", type=str, help="Noise file, .npz with base, eps_L, …, eps_1, in the place of a seed.")
@click.option("--weights", "kind", type=str, help="ema, raw, or another average such as ema-0.999.")
@click.option("--iteration", type=int, help="Sample the weights kept at this iteration of training.")
@click.option("--selection", type=FILE, help="Sample the milestone that this chose (.json of udpm select).")
@click.option("--intermediate/--no-intermediate", default=None, help="Keep every level's output too, at full side.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Where to run.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), help="Of the network; the chain is float32.")
@click.option("--tf32/--no-tf32", default=None, help="On GPUs, let float32 products be computed with TF32 inputs.")
@click.option("--compile/--no-compile", default=None, help="Compile the network: slow to start, then faster.")
@click.option("--cuda-graphs/--no-cuda-graphs", default=None, help="On GPUs, launch each network call at once.")
@click.option("--threads", type=int, help="CPU threads.")
def command(
    weights: Path,
    config: Path | None,
    output: Path | None,
    chain: Path | None,
    shard: tuple[int, int],
    kind: str | None,
    selection: Path | None,
    **options: Any,
) -> None:
    """Draw a sample set from trained weights.

    WEIGHTS is a run's weights.safetensors, or one that udpm import made; it says itself what network it belongs to.
    The n-th image is the same whatever the batch size. `udpm export` turns the set into image files.
    """
    from udpm.config import Sampling, read_resolved
    from udpm.config.load import validate
    from udpm.core.device_errors import as_user_errors
    from udpm.networks.weights import milestone
    from udpm.sampling.run import draw_samples, kept_weights
    from udpm.scoring.selection import check_selected, read_selection

    if output is None and chain is None:
        raise click.UsageError("Missing option '--output'.", click.get_current_context())
    if selection is not None:
        if options["iteration"] is not None:
            raise click.UsageError("give either --iteration or --selection", click.get_current_context())
        chosen = read_selection(selection)
        options["iteration"] = chosen["iteration"]
    values = {"count": CASUAL_COUNT} if config is None else read_resolved(Sampling, config).model_dump()
    given = {key: value for key, value in {**options, "weights": kind}.items() if value is not None}
    sampling = validate(Sampling, values | given, "sampling")
    kept = milestone(weights, sampling.iteration) if sampling.iteration is not None else None
    check({"sampling.noise": sampling.noise, "sampling.iteration": kept})
    if selection is not None:
        check_selected(selection, chosen, kept_weights(weights, sampling.iteration), sampling.weights)
    with as_user_errors(f"lower --batch (sampling.batch, is {sampling.batch})"):
        written = draw_samples(weights, sampling, output, chain, shard)
    click.echo("\n".join(written))
