"""``udpm extractor``, ``reference``, ``score`` and ``select``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from udpm.cli.options import (
    ANY,
    FILE,
    FOLDER,
    MOST_IMAGES,
    OutputFile,
    OutputFolder,
    OutputStem,
    Verb,
    Whole,
    check,
    usage_error,
)
from udpm.core import devices, kinds
from udpm.core.errors import UserError
from udpm.core.files import write_json


@click.command(cls=Verb, epilog="Example: udpm extractor results/datasets/digits --output results/extractors/digits.pt")
@click.argument("dataset", type=FOLDER)
@click.option(
    "--output",
    type=OutputFile(kinds.EXTRACTOR, sides={".json": kinds.EXTRACTOR_RECORD}),
    required=True,
    help="TorchScript file; its record is written next to it, .json.",
)
@click.option("--seed", type=Whole(0, 2**63 - 1), default=0, help="Training seed.")
@click.option("--threads", type=Whole(1, 1024), default=2, help="CPU threads.")
def extractor_command(dataset: Path, output: Path, seed: int, threads: int) -> None:
    """Train the small classifier whose features score digits.

    It is trained on the training split of DATASET; its record has its accuracy on the test split.
    """
    from udpm.data.store import open_store
    from udpm.metrics.extractor_networks import train_classifier

    devices.configure("cpu", threads)
    accuracy = train_classifier(open_store(dataset), seed, output)
    click.echo(f"{output}: held-out accuracy {accuracy:.1%}")


@click.command(
    cls=Verb,
    epilog="Example: udpm reference results/datasets/digits --extractor results/extractors/digits.pt "
    "--config results/configs/digits/scoring.json --output results/references/digits.npz",
)
@click.argument("source", type=ANY)
@click.option("--extractor", type=FILE, help="TorchScript file, executed as a program; default: the configuration's.")
@click.option("--config", type=FILE, required=True, help="Resolved scoring section (udpm resolve --part scoring).")
@click.option("--count", type=Whole(2, MOST_IMAGES), metavar="N", help="Use N images of a plain folder; default: all.")
@click.option("--flips", is_flag=True, help="Add every mirror image, overriding the configuration.")
@click.option("--import", "published", is_flag=True, help="SOURCE is an .npz of published statistics, mu and sigma.")
@click.option("--features", type=OutputFolder(kinds.FEATURES), help="Folder that caches features for later passes.")
@click.option("--output", type=OutputFile(kinds.REFERENCE), required=True, help="The reference, .npz.")
def reference_command(
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

    SOURCE is a prepared data set, whose configured split is used, or a folder, .zip or .npz of images of equal size.
    Published statistics (--import) must come from the configured extractor. They lack features, so scores against them
    have no kernel distance, precision or recall.
    """
    from udpm.config import Scoring, read_resolved
    from udpm.data.open import open_images
    from udpm.data.store import RECORD, open_store
    from udpm.metrics import reference
    from udpm.metrics.extractor import extractor_files, open_extractor

    scoring = read_resolved(Scoring, config)
    check(extractor_files(scoring))
    device = devices.configure(scoring.device, scoring.threads)
    network = open_extractor(scoring, extractor, device)
    flips = flips or scoring.reference_flips
    if published:
        reference.import_reference(source, network, output)
    elif (source / RECORD).exists():
        store, split = open_store(source), scoring.reference_split
        reference.write_reference(store, split, network, scoring.batch, output, flips=flips, cache=features)
    else:
        images, name = open_images(source, count), source.stem
        reference.write_image_reference(images, name, network, scoring.batch, output, flips=flips, cache=features)
    click.echo(f"{output}: {_contents(output)}")


def _contents(output: Path) -> str:
    """Describe a reference in a few words."""
    import json

    from udpm.data.npz import read_npz

    arrays = read_npz(output, "reference", names=("record", "mu"))
    record = json.loads(str(arrays["record"]))
    made_of = f" of {record['n']} images" if record.get("n") else ""
    return f"mean and covariance of {len(arrays['mu'])} features{made_of}"


SUBJECTS = ("samples", "images", "heldout", "noise")
PATHS = ("samples", "images", "selection", "reference", "extractor", "dataset")


@click.command(
    cls=Verb,
    epilog="Example: udpm score --samples results/samples/digits/seed0.npz --reference results/references/digits.npz "
    "--extractor results/extractors/digits.pt --dataset results/datasets/digits "
    "--config results/configs/digits/scoring.json --output results/scores/digits/seed0.json",
)
@click.option("--samples", type=FILE, help="Score a sample set (.npz of udpm sample).")
@click.option("--images", type=ANY, help="Score a folder, .zip or .npz of images from another source.")
@click.option("--heldout", is_flag=True, help="Score the data set's test split: the floor.")
@click.option(
    "--match",
    type=Whole(2, MOST_IMAGES),
    metavar="N",
    help="With --heldout: also the Fréchet distance of N of these images, to compare with N samples.",
)
@click.option("--noise", type=Whole(2, MOST_IMAGES), metavar="N", help="Score N images of noise: the ceiling.")
@click.option("--selection", type=FILE, help="What chose the milestone that --samples are of (.json of udpm select).")
@click.option("--again", type=FILE, help="Recompute this score; needs only --output.")
@click.option("--count", type=Whole(2, MOST_IMAGES), metavar="N", help="Score only N of --samples or --images.")
@click.option("--reference", type=FILE, help="Reference to measure against (.npz of udpm reference).")
@click.option("--extractor", type=FILE, help="TorchScript file, executed as a program; default: the configuration's.")
@click.option("--dataset", type=FOLDER, help="The reference's prepared data set; optional with --images.")
@click.option("--config", type=FILE, help="Resolved scoring section (udpm resolve --part scoring).")
@click.option("--features", type=OutputFolder(kinds.FEATURES), help="Folder that caches features for later passes.")
@click.option("--output", type=OutputFile(kinds.SCORE), required=True, help="The score, .json.")
def score_command(again: Path | None, features: Path | None, output: Path, **given: Any) -> None:
    """Score a sample set, other images or a baseline: exactly one of --samples, --images, --heldout and --noise.

    The score records how it was made; `udpm score --again`, in any folder, recomputes it if none of its files changed.
    """
    from udpm.core.arrays import sealed
    from udpm.metrics.protocol import SEALED

    request, base = (_requested(given), Path()) if again is None else _remembered(again, given)
    request["base"] = os.path.relpath(os.path.realpath(base), os.path.realpath(output.parent))
    found = _score(request, base, features)
    if again is not None:
        _check_same(again, found)
    write_json(output, sealed(found, SEALED))
    known = [metric for metric in found["metrics"].values() if metric["value"] is not None]
    shown = [f"{metric['label']} {metric['value']:.4g}" for metric in known]
    click.echo(f"{output}: " + ", ".join(shown))


def _requested(given: dict[str, Any]) -> dict[str, Any]:
    """Build the complete request: paths as text, and the scoring section instead of its file."""
    if sum(bool(given[name]) for name in SUBJECTS) != 1:
        raise usage_error("give exactly one of --samples, --images, --heldout, --noise and --again")
    if given["count"] and not (given["samples"] or given["images"]):
        raise usage_error("--count is for --samples and --images")
    if given["match"] and not given["heldout"]:
        raise usage_error("--match is for --heldout")
    if given["selection"] and not given["samples"]:
        raise usage_error("--selection is for --samples")
    needed = ("reference", "config") if given["images"] else ("reference", "config", "dataset")
    for name in needed:
        if given[name] is None:
            raise usage_error(f"--{name} is missing")
    from udpm.config import Scoring, read_resolved

    paths = {name: None if given[name] is None else str(given[name]) for name in PATHS}
    scoring = read_resolved(Scoring, given["config"]).model_dump()
    return paths | {name: given[name] for name in ("heldout", "match", "noise", "count")} | {"scoring": scoring}


def _remembered(path: Path, given: dict[str, Any]) -> tuple[dict[str, Any], Path]:
    """Read the request of an existing score, and the folder that its relative paths are relative to."""
    from udpm.config.validation import validate
    from udpm.metrics.protocol import Request, read_score

    if any(given.values()):
        raise usage_error("--again allows only --output and --features")
    request = read_score(path).get("request")
    if not isinstance(request, dict) or {*PATHS, "heldout", "noise", "count", "scoring"} - set(request):
        raise UserError(f"{path}: does not record how it was made; score the images again")
    validate(Request, request, f"{path}: request")
    # Earlier records do not say; their paths are relative to the folder that the command is called in.
    if request.get("base") is None:
        return request, Path()
    base = os.path.realpath(os.path.join(os.path.realpath(path.parent), request["base"]))
    return request, Path() if base == os.path.realpath("") else Path(base)


def _score(request: dict[str, Any], base: Path, features: Path | None) -> dict[str, Any]:
    from udpm.config import Scoring
    from udpm.config.evaluation import NAMED_EXTRACTORS
    from udpm.config.validation import validate
    from udpm.data.open import open_images
    from udpm.data.store import open_store
    from udpm.metrics import score as scores
    from udpm.metrics.extractor import extractor_files, open_extractor
    from udpm.metrics.reference import load_reference
    from udpm.sampling.sample_set import load_samples

    scoring = validate(Scoring, request["scoring"], "scoring")
    moved = {"weights_folder": _below(base, scoring.weights_folder)}
    if scoring.extractor not in NAMED_EXTRACTORS:
        moved["extractor"] = _below(base, scoring.extractor)
    scoring = scoring.model_copy(update=moved)
    paths = {name: _below(base, request[name]) for name in PATHS}
    # Some files are named only by the configuration or an earlier score.
    check(paths | extractor_files(scoring))
    device = devices.configure(scoring.device, scoring.threads)
    store = open_store(paths["dataset"]) if paths["dataset"] else None
    if paths["samples"]:
        subject = scores.sampled(load_samples(paths["samples"]), request["count"], paths["selection"])
    elif paths["images"]:
        subject = scores.external_images(open_images(paths["images"], request["count"]), Path(paths["images"]).name)
    else:
        if store is None:
            raise UserError("request: held-out images and noise need a data set, but it names none")
        subject = scores.heldout(store) if request["heldout"] else scores.noise(store, request["noise"])
    network = open_extractor(scoring, paths["extractor"], device)
    reference = load_reference(paths["reference"])
    found = scores.score(subject, store, reference, network, scoring, features, request.get("match"))
    return found | {"request": request}


def _below(base: Path, path: str | None) -> Any:
    """Return a path as seen from here, given relative to `base`, or to here if the score was copied without its files.

    A wrong file cannot change the score: digests are compared.
    """
    if path is None or (not (base / path).exists() and Path(path).exists()):
        return path
    return os.path.normpath(base / path)


def _check_same(path: Path, found: dict[str, Any]) -> None:
    """Check that no input has changed since the score was made."""
    from udpm.metrics.protocol import read_score

    before = read_score(path)
    for what, where in (("the images", "subject"), ("reference or extractor", "protocol")):
        keys = ("images_sha256",) if where == "subject" else ("reference", "extractor", "n")
        if any(_known(before[where].get(key)) != _known(found[where][key]) for key in keys):
            raise UserError(f"{path}: {what} changed since it was made; score the images again")


def _known(value: Any) -> Any:
    return {key: part for key, part in value.items() if part is not None} if isinstance(value, dict) else value


@click.command(
    cls=Verb,
    epilog="Example: udpm select results/selection/digits/seed0/scores/*.json "
    "--output results/selection/digits/seed0/selection.json",
)
@click.argument("scores", type=FILE, nargs=-1, required=True)
@click.option("--output", type=OutputFile(kinds.SELECTION), required=True, help="The selection, .json.")
@click.option("--table", type=OutputStem(kinds.TABLE), metavar="STEM", help="Also STEM.csv, .md, .tex and .html.")
def select_command(scores: tuple[Path, ...], output: Path, table: Path | None) -> None:
    """Choose the milestone with the smallest Fréchet distance from SCORES, one per milestone of a run.

    Do not report the distance of the chosen milestone, since it is the minimum of many: sample other images with `udpm
    sample --selection`, and score those with `udpm score --selection`.
    """
    from udpm.core.arrays import sealed
    from udpm.metrics.selection import select

    selection = select(scores)
    if table is not None:
        from udpm.report.figures.curves import milestone_table

        milestone_table(selection).write(table)
    write_json(output, sealed(selection))
    chosen, label, distance = (selection[key] for key in ("iteration", "label", "frechet_distance"))
    click.echo(f"{output}: iteration {chosen}, {label} {distance:.4g}")
