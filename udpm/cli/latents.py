"""``udpm latents``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import FILE, MOST_IMAGES, Classes, Numbers, OutputFile, Verbs, Whole
from udpm.core import kinds

SHARED = (
    click.argument("source", type=FILE, metavar="WEIGHTS"),
    click.option("--config", type=FILE, help="Resolved latents section (udpm resolve --part latents)."),
    click.option("--output", type=OutputFile(kinds.LATENTS), required=True, help="Images, axes and record, .npz."),
    click.option("--seeds", type=Numbers(int), metavar="N,N,N,N", help="Seeds of the four latents."),
    click.option("--labels", type=Classes(), metavar="CLASS,…", help="Classes shown, by name or number; a name wins."),
)
HOW = (
    click.option(
        "--weights",
        type=str,
        default="ema",
        show_default=True,
        help="ema, raw, or another average.",
    ),
    click.option(
        "--posterior",
        type=click.Choice(["scalar", "exact"]),
        default="scalar",
        show_default=True,
        help="Covariance of the steps between levels.",
    ),
    click.option("--guidance", type=float, default=1.0, show_default=True, help="w of classifier-free guidance."),
    click.option("--iteration", type=Whole(1), help="Weights kept at this iteration of training."),
    click.option("--batch", type=Whole(1), default=250, show_default=True, help="Images per network call."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True),
    click.option(
        "--precision",
        type=click.Choice(["float32", "bfloat16"]),
        default="float32",
        show_default=True,
        help="Of the network.",
    ),
    click.option("--tf32", is_flag=True, help="On GPUs, let float32 products be computed with TF32 inputs."),
    click.option("--threads", type=Whole(1, 1024), default=2, show_default=True, help="CPU threads."),
)
# Of the options, those that are keys of the section `sampling`.
SAMPLING = ("weights", "iteration", "posterior", "guidance", "batch", "device", "precision", "tf32", "threads")


def _options(*own: Callable) -> Callable:
    """All options of one experiment, in the order of its help."""

    def decorate(function: Callable) -> Callable:
        for option in reversed((*SHARED, *own, *HOW)):
            function = option(function)
        return function

    return decorate


@click.group(cls=Verbs)
def command() -> None:
    """Explore what each noise map of a model's latent controls.

    Options take the place of single values of --config; what neither says has its default.
    """


@command.command(
    epilog="Example: udpm latents perturb results/runs/digits/seed0/weights.safetensors --labels 3,5 "
    "--output results/latents/digits/seed0/perturb.npz"
)
@_options(
    click.option("--strengths", type=Whole(1), help="Number of strengths, from none to the strongest."),
    click.option(
        "--strongest", type=Numbers(float), metavar="G,…", help="Share kept by each level's strongest, l = 1 first."
    ),
)
def perturb(**given: Any) -> None:
    """Replace one level's map little by little, the others fixed."""
    _explore("perturb", **given)


@command.command(
    epilog="Example: udpm latents swap results/runs/digits/seed0/weights.safetensors --seeds 4,5,6,7 "
    "--output results/latents/digits/seed0/swap.npz"
)
@_options()
def swap(**given: Any) -> None:
    """Give one latent another's map, level by level."""
    _explore("swap", **given)


@command.command(
    epilog="Example: udpm latents interpolate results/runs/digits/seed0/weights.safetensors --labels 3 --grid 6 "
    "--output results/latents/digits/seed0/interpolate.npz"
)
@_options(click.option("--grid", type=Whole(2, 10_000), help="Side of the grid."))
def interpolate(**given: Any) -> None:
    """Mix four latents, all maps at once, over a grid with the four at its corners; of the first class."""
    _explore("interpolate", **given)


@command.command(
    epilog="Example: udpm latents pca results/runs/digits/seed0/weights.safetensors --labels 3 --images 128 --keep 0.8 "
    "--output results/latents/digits/seed0/pca.npz"
)
@_options(
    click.option("--images", "pca_images", type=Whole(2, MOST_IMAGES), help="Images whose components are shown."),
    click.option("--components", "pca_components", type=Whole(1), help="Number of principal components."),
    click.option("--keep", "pca_keep", type=float, metavar="G", help="Share of the map in common; 0 draws it anew."),
)
def pca(**given: Any) -> None:
    """Principal components of images that differ in one level's map; of the first class."""
    _explore("pca", **given)


def _explore(kind: str, source: Path, config: Path | None, output: Path, **values: Any) -> None:
    from udpm.config import Latents, Sampling, read_resolved
    from udpm.config.load import validate
    from udpm.core.device_errors import as_user_errors
    from udpm.sampling.latents import explore_latents

    section = Latents() if config is None else read_resolved(Latents, config)
    given = {key: value for key, value in values.items() if value is not None}
    how = {key: given.pop(key) for key in SAMPLING if key in given}
    section = validate(Latents, section.model_dump() | given, "options")
    sampling = validate(Sampling, how, "options")
    with as_user_errors(f"lower --batch (is {sampling.batch})"):
        count = explore_latents(source, kind, section, sampling, output)
    click.echo(f"{output}: {count} images")
