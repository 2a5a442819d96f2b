"""``udpm sample``, ``join``, ``export`` and ``latents``."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from udpm.cli.options import (
    ANY,
    FILE,
    WEIGHTS,
    Classes,
    Numbers,
    OutputFile,
    OutputFolderOr,
    Verb,
    Verbs,
    Whole,
    check,
    usage_error,
)
from udpm.core import kinds
from udpm.core.devices import as_user_errors
from udpm.core.errors import UserError
from udpm.core.folders import FolderKind
from udpm.core.identify import PREPARED, what_is

CASUAL_COUNT = 64


def _shard(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", value or "1/1")
    if not found:
        raise click.BadParameter(f"expected the form 2/4, got {value!r}")
    return int(found[1]), int(found[2])


@click.command(cls=Verb, epilog="Example: udpm sample weights.safetensors --count 100 --labels 3,5 --output digits.npz")
@click.argument("weights", type=WEIGHTS)
@click.option("--config", type=FILE, help="Sampling section (udpm resolve --part sampling); options override it.")
@click.option(
    "--output",
    type=OutputFile(kinds.SAMPLES, ".npz", sides={".json": kinds.SAMPLE_RECORD}, alone={".png": kinds.GRID}),
    help="The sample set, .npz; its record is written next to it, .json. Or a grid of the images, .png.",
)
@click.option("--chain", type=OutputFile(kinds.CHAIN, ".npz"), help="Also write the chain of one image per class.")
@click.option("--shard", callback=_shard, help="Sample one part: 2/4 is the second of four. udpm join combines them.")
@click.option("--count", type=int, help=f"Number of images; default without --config: {CASUAL_COUNT}.")
@click.option("--batch", type=int, help="Images per network call; does not change the images.")
@click.option("--seed", type=int, help="The n-th image's noise is a function of (seed, n) alone.")
@click.option(
    "--labels",
    type=Classes("balanced", "none"),
    metavar="CLASS,…",
    help="balanced, none, or classes to use in turn, by name (cat,dog) or number (3,5); names take precedence.",
)
@click.option("--posterior", type=click.Choice(["scalar", "exact"]), help="Covariance of the posterior.")
@click.option("--guidance", type=float, help="w of classifier-free guidance; for models trained with label dropout.")
@click.option(
    "--noise", type=str, help="Noise file, .npz with base, eps_L, …, eps_1 (and z_L, …, z_1), instead of a seed."
)
@click.option("--noise-kind", type=click.Choice(["host", "counter"]), help="Generator of the noise from a seed.")
@click.option("--weights", "kind", type=str, help="ema, raw, or another average such as ema-0.999.")
@click.option("--iteration", type=int, help="Sample the weights kept at this iteration of training.")
@click.option("--selection", type=FILE, help="Sample the milestone chosen in this file (.json of udpm select).")
@click.option("--intermediate/--no-intermediate", default=None, help="Also keep every level's output, at full side.")
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), help="Device to run on.")
@click.option(
    "--precision", type=click.Choice(["float32", "bfloat16"]), help="Precision of the network, not of the chain."
)
@click.option("--tf32/--no-tf32", default=None, help="On GPUs, compute float32 products with TF32 inputs.")
@click.option("--compile/--no-compile", default=None, help="Compile the network: slow to start, then faster.")
@click.option("--cuda-graphs/--no-cuda-graphs", default=None, help="On GPUs, launch each network call as one graph.")
@click.option("--threads", type=int, help="CPU threads.")
def sample_command(
    weights: Path,
    config: Path | None,
    output: Path | None,
    chain: Path | None,
    shard: tuple[int, int],
    kind: str | None,
    selection: Path | None,
    **options: Any,
) -> None:
    """Sample images from trained weights.

    WEIGHTS is a run's folder, its weights.safetensors, or a file made by udpm import or udpm average; it describes its
    network. The n-th image does not depend on the batch size. `udpm export` writes the set as image files.
    """
    from udpm.config import Sampling, read_resolved
    from udpm.config.validation import validate
    from udpm.metrics.selection import check_selected, read_selection
    from udpm.runs.layout import milestone
    from udpm.sampling.generate import draw_samples, milestone_weights

    if output is None and chain is None:
        raise usage_error("Missing option '--output'.")
    if selection is not None:
        if options["iteration"] is not None:
            raise usage_error("give either --iteration or --selection")
        chosen = read_selection(selection)
        options["iteration"] = chosen["iteration"]
    values = {"count": CASUAL_COUNT} if config is None else read_resolved(Sampling, config).model_dump()
    given = {key: value for key, value in {**options, "weights": kind}.items() if value is not None}
    sampling = validate(Sampling, values | given, "sampling")
    kept = milestone(weights.parent, sampling.iteration) if sampling.iteration is not None else None
    check({"sampling.noise": sampling.noise, "sampling.iteration": kept})
    if selection is not None and sampling.iteration is not None:
        check_selected(selection, chosen, milestone_weights(weights, sampling.iteration), sampling.weights)
    with as_user_errors(f"lower --batch (sampling.batch, is {sampling.batch})"):
        written = draw_samples(weights, sampling, output, chain, shard)
    click.echo("\n".join(written))


@click.command(cls=Verb, epilog="Example: udpm join shard1.npz shard2.npz --output samples.json")
@click.argument("shards", type=FILE, nargs=-1, required=True)
@click.option(
    "--output",
    type=OutputFile(kinds.JOINED, ".json"),
    required=True,
    help="The set's record, .json, which all commands accept as the set.",
)
def join_command(shards: tuple[Path, ...], output: Path) -> None:
    """Join shards (udpm sample --shard) to a sample set.

    The shards stay where they are: the record lists them with their checksums.
    """
    from udpm.sampling.sample_set import join_shards

    count = join_shards(shards, output)
    click.echo(f"{output}: {count} images of {len(shards)} shards")


IMAGES = ("png", "jpg")
NETWORKS = ("torchscript", "onnx", "torch-export")


def _exported(given: dict[str, Any]) -> FolderKind:
    """Return the kind of folder to write, given all parameters of the command."""
    if given["form"] in NETWORKS:
        return kinds.NETWORKS
    return kinds.BUNDLE if given["source"].is_dir() else kinds.IMAGES


EXPORT = OutputFolderOr(_exported, ".zip", kinds.IMAGE_ZIP)


@click.command(
    cls=Verb,
    epilog="Example: udpm export results/samples/digits/seed0.npz --layout classes --output digits, or "
    "udpm export results/datasets/digits --output digits.zip, or udpm export results/runs/digits/seed0 digits-model, "
    "or udpm export results/runs/digits/seed0 --format onnx --output digits-onnx",
)
@click.argument("source", type=ANY)
@click.argument("folder", type=EXPORT, required=False)
@click.option("--output", type=EXPORT, help="The same as FOLDER; a .zip is written in the format of StyleGAN and EDM.")
@click.option("--split", help="Split of a data set to write; default: train.")
@click.option(
    "--layout",
    type=click.Choice(["flat", "classes"]),
    default="flat",
    help="One folder for all files, or one per class.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice([*IMAGES, *NETWORKS]),
    default="png",
    help="Of images: png is lossless; jpg is smaller but unsuitable for scores. Others: of a run's networks.",
)
@click.option("--weights", default="ema", help="Of networks: ema, raw, or another average such as ema-0.999.")
@click.pass_context
def export_command(
    context: click.Context,
    source: Path,
    folder: Path | None,
    output: Path | None,
    split: str | None,
    layout: str,
    form: str,
    weights: str,
) -> None:
    """Write a sample set or a data set as image files, bundle a finished run, or export its networks.

    SOURCE is a sample set (.npz), a prepared data set, a run's folder or a weight file. A sample set is written to
    FOLDER, one file per image, or like a data set to a .zip of PNGs with their labels (dataset.json), which the
    published tools of StyleGAN and EDM and udpm prepare read. A run's weights, configuration, model card, scores and
    samples are copied to FOLDER. With the format of networks, FOLDER gets one network for each level and chain.py,
    which draws images with them, without udpm. FOLDER is replaced once the new one is complete.
    """
    target = folder or output
    if target is None or (folder is not None and output is not None):
        raise usage_error("give the folder or .zip to write to either as FOLDER or as --output")
    if form in NETWORKS:
        _export_networks(context, source, target, form, weights)
        return
    names = ", ".join(NETWORKS)
    if _is_given(context, "weights"):
        raise usage_error(f"--weights is for networks: give --format, one of {names}")
    kind = what_is(source)
    if kind is not None and str(kind.format).startswith("udpm-weights/"):
        raise UserError(f"{source}: it is {kind.name}; to export its networks, give --format, one of {names}")
    is_set = kind is not None and kind.name == PREPARED
    if split is not None and not is_set:
        raise usage_error("--split is for data sets")
    if is_set or target.suffix.lower() == ".zip":
        _export_archive(context, source, target, split or "train" if is_set else None)
        return
    if not source.is_dir():
        from udpm.sampling.sample_set import export_images

        count = export_images(source, target, layout, form)
        click.echo(f"{target}: {count} files")
        return
    _check_default(context, f"for sample sets, not for runs; networks have --format {', '.join(NETWORKS)}")
    from udpm.report.card import bundle_run

    click.echo(f"{target}: {', '.join(bundle_run(source, target))}")


def _export_archive(context: click.Context, source: Path, target: Path, split: str | None) -> None:
    """Write a data set's split, or with None a sample set, to a .zip."""
    _check_default(context, "for folders of files, not for a .zip")
    if split is not None:
        if target.suffix.lower() != ".zip":
            raise UserError(f"{target}: must end in .zip, since {source} is a prepared data set")
        from udpm.data.archive import export_split

        count = export_split(source, split, target)
    elif source.is_dir():
        raise UserError(f"{source}: not a sample set or a prepared data set, of which a .zip is made")
    else:
        from udpm.sampling.sample_set import export_archive

        count = export_archive(source, target)
    click.echo(f"{target}: {count} images{f' of the {split} split' if split else ''}")


def _export_networks(context: click.Context, source: Path, target: Path, form: str, weights: str) -> None:
    if _is_given(context, "layout") or _is_given(context, "split"):
        raise usage_error(f"--layout and --split are for images, not for networks (--format {form})")
    if target.suffix.lower() == ".zip":
        raise UserError(f"{target}: networks are written to a folder (--format {form}), not to a .zip")
    from udpm.sampling.networks_export import export_networks

    click.echo(f"{target}: {', '.join(export_networks(source, target, form, weights))}")


def _is_given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) != ParameterSource.DEFAULT


def _check_default(context: click.Context, what: str) -> None:
    if _is_given(context, "layout") or _is_given(context, "form"):
        raise usage_error(f"--layout and --format are {what}")


SHARED = (
    click.argument("source", type=WEIGHTS, metavar="WEIGHTS"),
    click.option("--config", type=FILE, help="Resolved latents section (udpm resolve --part latents)."),
    click.option("--output", type=OutputFile(kinds.LATENTS), required=True, help="Images, axes and record, .npz."),
    click.option("--seeds", type=Numbers(int), metavar="N,N,N,N", help="Seeds of the four latents."),
    click.option("--labels", type=Classes(), metavar="CLASS,…", help="Classes to show, by name, else by number."),
)
HOW = (
    click.option("--weights", type=str, default="ema", help="ema, raw, or another average."),
    click.option(
        "--posterior", type=click.Choice(["scalar", "exact"]), default="scalar", help="Covariance of the steps."
    ),
    click.option("--guidance", type=float, default=1.0, help="w of classifier-free guidance."),
    click.option("--iteration", type=Whole(1), help="Weights kept at this iteration of training."),
    click.option("--batch", type=Whole(1), default=250, help="Images per network call."),
    click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto"),
    click.option(
        "--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", help="Network precision."
    ),
    click.option("--tf32", is_flag=True, help="On GPUs, compute float32 products with TF32 inputs."),
    click.option(
        "--noise-kind", type=click.Choice(["host", "counter"]), default="host", help="Generator of noise from seeds."
    ),
    click.option("--threads", type=Whole(1, 1024), default=2, help="CPU threads."),
)
# Options that are keys of the section `sampling`.
SAMPLING = (
    *("weights", "iteration", "posterior", "guidance", "batch", "device", "precision", "tf32", "noise_kind", "threads"),
)


def _options(*own: Callable) -> Callable:
    """Add all options of one experiment, in the order of its help."""

    def decorate(function: Callable) -> Callable:
        for option in reversed((*SHARED, *own, *HOW)):
            function = option(function)
        return function

    return decorate


@click.group(cls=Verbs)
def latents_command() -> None:
    """Explore what each noise map of a model's latent controls.

    WEIGHTS is a run's folder or a weight file. Options override single values of --config; other values have their
    defaults.
    """


@latents_command.command(
    epilog="Example: udpm latents perturb results/runs/digits/seed0 --labels 3,5 "
    "--output results/latents/digits/seed0/perturb.npz"
)
@_options(
    click.option("--strengths", type=Whole(1, 1_000), help="Number of strengths, from none to the strongest."),
    click.option(
        "--strongest",
        type=Numbers(float),
        metavar="G,…",
        help="Fraction that each level's strongest keeps, l = 1 first.",
    ),
)
def perturb(**given: Any) -> None:
    """Replace one level's map step by step, with the others fixed."""
    _explore("perturb", **given)


@latents_command.command(
    epilog="Example: udpm latents swap results/runs/digits/seed0 --seeds 4,5,6,7 "
    "--output results/latents/digits/seed0/swap.npz"
)
@_options()
def swap(**given: Any) -> None:
    """Swap one level's map between two latents, for every level."""
    _explore("swap", **given)


@latents_command.command(
    epilog="Example: udpm latents interpolate results/runs/digits/seed0 --labels 3 --grid 6 "
    "--output results/latents/digits/seed0/interpolate.npz"
)
@_options(click.option("--grid", type=Whole(2, 100), help="Side of the grid."))
def interpolate(**given: Any) -> None:
    """Interpolate all maps of four latents over a grid with the four at its corners, for the first class."""
    _explore("interpolate", **given)


@latents_command.command(
    epilog="Example: udpm latents pca results/runs/digits/seed0 --labels 3 --images 128 --keep 0.8 "
    "--output results/latents/digits/seed0/pca.npz"
)
@_options(
    click.option("--images", "pca_images", type=Whole(2, 10_000), help="Number of images to analyse."),
    click.option("--components", "pca_components", type=Whole(1), help="Number of principal components."),
    click.option("--keep", "pca_keep", type=float, metavar="G", help="Fraction of the map that images share; 0: none."),
)
def pca(**given: Any) -> None:
    """Compute principal components of images that differ in one level's map, for the first class."""
    _explore("pca", **given)


def _explore(kind: str, source: Path, config: Path | None, output: Path, **values: Any) -> None:
    from udpm.config import Latents, Sampling, read_resolved
    from udpm.config.validation import validate
    from udpm.sampling.latents import explore_latents

    section = Latents() if config is None else read_resolved(Latents, config)
    given = {key: value for key, value in values.items() if value is not None}
    how = {key: given.pop(key) for key in SAMPLING if key in given}
    section = validate(Latents, section.model_dump() | given, "options")
    sampling = validate(Sampling, how, "options")
    with as_user_errors(f"lower --batch (is {sampling.batch})"):
        count = explore_latents(source, kind, section, sampling, output)
    click.echo(f"{output}: {count} images")
