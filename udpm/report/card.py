"""A run's model card in the format of Hugging Face, and its bundle of weights, configuration, card and samples."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from udpm.config.evaluation import Sampling
from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved, to_json
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json, write_text
from udpm.core.folders import atomic_folder
from udpm.core.kinds import BUNDLE, mark, seal_text
from udpm.core.reading import read_json
from udpm.metrics.protocol import describe, drawing_words, mark_shared, read_scores
from udpm.report.scores import checkpoint, shared_of, training_length
from udpm.report.table import MISSING, cell
from udpm.runs.layout import CARD, FURTHER, Layout, milestone, results_of
from udpm.runs.records import WEIGHTS, iteration_of, numbered, read_complete
from udpm.sampling.generate import draw_samples
from udpm.sampling.grid import save_grid
from udpm.sampling.sample_set import SampleSet, load_samples

TASK = "unconditional-image-generation"
"""The nearest of Hugging Face's tasks; it has none for images of a class."""
CLASSES_NAMED = 100
LOSSES = ("reconstruction", "lpips", "adversarial")
LIMITS = (
    "Draws images like those it was trained on, at their side, and nothing else.",
    "A score says how a set of images differs from a reference in the features of one network; it compares only with "
    "scores of the same protocol.",
    "Whether single training images are reproduced has to be looked at for every use: see the distance to the nearest "
    "training image, where it is given.",
    "The terms of the images, above, bear on what weights and samples may be used for.",
)
NO_LICENCE = "A licence of the weights is for those who publish them to state; none is stated here."
PICTURED, DRAWN = 64, 16
"""Number of images in a bundle's picture, at most: the first of the sample set, or of a run without one."""


def model_card(
    run: Path,
    scores: Sequence[str | Path] = (),
    *,
    picture: tuple[str, str] | None = None,
    licence: str | None = None,
    address: str = WEIGHTS,
) -> str:
    """Return the text of a finished run's model card, with the given score files of its images.

    Args:
        picture: file next to the card, and its caption.
        licence: of the weights, as Hugging Face abbreviates it; None: not stated.
        address: what `udpm.load` takes.

    Raises:
        UserError: no finished run, a score that cannot be read, or one of another run or of earlier weights.
    """
    record = read_complete(run)
    config = run_config(run)
    found = read_scores(scores)
    for path, score in zip(scores, found, strict=True):
        check_of_run(path, "a score", score["subject"], run, record)
    name = f"udpm-{record['experiment']}-seed{record['seed']}"
    length = training_length(config, record.get("iterations"))
    metadata = _front_matter(name, config, found, length, licence)
    front = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    stated = f"Licence of the weights: {licence}." if licence else NO_LICENCE
    lists = {
        "Data": _data(run, config, record),
        "Training": _training(config, record),
        "Scores": _scores(found, length),
        "Limits": (*LIMITS, stated),
    }
    parts = [
        f"---\n# {mark()}\n{front}---\n\n# {name}\n",
        _what(config),
        *([] if picture is None else [f"![Samples]({picture[0]})\n\n*{picture[1]}*\n"]),
        *(
            f"## {title}\n\n" + ("".join(f"- {line}\n" for line in lines) or "Not run.\n")
            for title, lines in lists.items()
        ),
        _use(config, record, address),
        _origin(record),
    ]
    return seal_text("\n".join(parts))


def check_of_run(path: str | Path, what: str, subject: dict[str, Any], run: Path, record: dict[str, Any]) -> None:
    """Check that images were drawn from a run's final weights or one of its milestones.

    Args:
        path: sample set's record or score, for the error.
        what: "a sample set" or "a score", for the error.
        subject: its entries on the images.
        record: the run's ``complete.json``.

    Raises:
        UserError: they belong to another run, or to weights that the run no longer has.
    """
    name = f"run {record['experiment']}, seed {record['seed']}"
    if (subject.get("experiment"), subject.get("run_seed")) != (record["experiment"], record["seed"]):
        raise UserError(f"{path}: not {what} of {name}")
    made_by, iteration = subject.get("weights_sha256"), subject.get("iteration")
    if made_by is None:
        raise UserError(f"{path}: does not record which weights of {name} its images were drawn with; draw them again")
    if made_by == record["weights_sha256"]:
        return
    kept = [file for file in numbered(milestone(run, 0).parent, ".safetensors") if iteration_of(file) == iteration]
    if not any(sha256(file) == made_by for file in kept):
        raise UserError(
            f"{path}: {what} of other weights (iteration {'unknown' if iteration is None else iteration}) than "
            f"{name} has now; draw and score its images again"
        )


def run_config(run: Path) -> RunConfig:
    """Read a finished run's configuration; that of imported weights is among the results' resolved configurations.

    Raises:
        UserError: not found in either place.
    """
    own = run / "config.json"
    if not own.exists():
        own = Path(Layout(results_of(run)).section(run.resolve().name, run.resolve().parent.name))
    return read_resolved(RunConfig, own)


def _front_matter(
    name: str, config: RunConfig, scores: list[dict[str, Any]], length: int | None, licence: str | None = None
) -> dict[str, Any]:
    """Return the metadata that Hugging Face reads; `length` is of the training. The publisher states a licence."""
    front: dict[str, Any] = {
        "library_name": "udpm",
        "pipeline_tag": TASK,
        "tags": ["udpm", "diffusion", "image-generation"],
        "datasets": [config.dataset_name],
        **({"license": licence} if licence else {}),
    }
    results = [result for score in scores if (result := _result(score, length))["metrics"]]
    return front | ({"model-index": [{"name": name, "results": results}]} if results else {})


def _result(score: dict[str, Any], length: int | None) -> dict[str, Any]:
    """Return a score as an entry of `model-index`: its metrics, without those that are missing, with their protocol."""
    reference, which = score["protocol"]["reference"], checkpoint(score["subject"], length)
    return {
        "task": {"type": TASK},
        "dataset": {"name": reference["dataset"], "type": reference["dataset"], "split": reference["split"]},
        "metrics": [
            {
                "type": metric.get("name") or name,
                "name": f"{metric['label']} ({which} checkpoint, N = {count})",
                "value": round(metric["value"], 4),
                "args": {"checkpoint": which, "n": count, "protocol": describe(score)},
            }
            for name, metric in score["metrics"].items()
            if metric["value"] is not None
            for count in [metric.get("n") or score["protocol"]["n"]]
        ],
    }


def _what(config: RunConfig) -> str:
    kind = "class-conditional" if config.generator.class_conditional else "unconditional"
    side = config.dataset.side
    return (
        f"An Upsampling Diffusion Probabilistic Model ([arXiv 2305.16269](https://arxiv.org/abs/2305.16269)): {kind} "
        f"images of {side}×{side} in {config.process.levels} network calls, each of which doubles the side.\n"
    )


def _data(run: Path, config: RunConfig, record: dict[str, Any]) -> list[str]:
    dataset = config.dataset
    digest = record.get("dataset_sha256")
    if digest is None and config.training == "imported":
        digest = "unknown of the weights' training"
        prepared = Path(Layout(results_of(run)).dataset_record(config.dataset_name))
        if prepared.exists() and "sha256" in (content := read_json(prepared, "data set's record")):
            digest += f"; of the images prepared here {content['sha256']}"
    return [
        f"Data set: {config.dataset_name}{f' ({dataset.description})' if dataset.description else ''}",
        f"Classes: {_classes(dataset.classes, record.get('class_names') or [])}",
        f"Licence or terms of the images: {dataset.licence or 'not stated in the configuration'}",
        f"SHA-256 of images and labels: {digest or 'unknown'}",
    ]


def _classes(count: int, names: list[str]) -> str:
    """Format the number of classes and their names in the order of labels, at most `CLASSES_NAMED`."""
    if not names:
        return str(count or "none")
    more = f", … ({len(names) - CLASSES_NAMED} more)" if len(names) > CLASSES_NAMED else ""
    return f"{count}: {', '.join(names[:CLASSES_NAMED])}{more}"


def _training(config: RunConfig, record: dict[str, Any]) -> list[str]:
    parameters = record.get("parameters")
    if not parameters:
        # Torch takes seconds to load.
        from udpm.networks.inference import count_cost

        parameters = {"generator": count_cost(config).generator_parameters}
    if config.training == "imported":
        lines = ["Imported weights: nothing is known here of their training but what their files say"]
    else:
        training = config.training
        decay = f", cosine decay to {training.learning_rate_end:g} of it" if training.learning_rate_end < 1 else ""
        weights = ", ".join(f"{kind} {config.per_level(f'losses.{kind}_weight')}" for kind in LOSSES)
        lines = [
            f"{record.get('iterations', MISSING)} iterations of {training.batch} images, seed {config.seed}, "
            f"{training.precision}",
            f"Adam, learning rate {training.learning_rate:g}, warm-up {training.warmup}{decay}",
            f"Averages of the weights: {', '.join(training.averages) or 'none'}",
            f"Weights of the losses by level (l = 1 first): {weights}",
        ]
    took = cell(record.get("seconds") and record["seconds"] / 3600, "{:.2g} h")
    return [
        *lines,
        f"Noise schedule: α {config.process.alphas}, σ {config.process.sigmas}",
        f"Parameters of the generator: {parameters.get('generator', MISSING)}; of the discriminator: "
        f"{parameters.get('discriminator') or MISSING}",
        f"On: {record.get('device') or MISSING}; took {took}",
    ]


def _scores(scores: list[dict[str, Any]], length: int | None) -> list[str]:
    lines = []
    for score in scores:
        values = ", ".join(
            mark_shared(f"{metric['label']} {metric['value']:.4g}", shared_of(score) if "frechet" in name else None)
            for name, metric in score["metrics"].items()
            if metric["value"] is not None
        )
        which = checkpoint(score["subject"], length)
        lines.append(f"{which} checkpoint: {values}. Protocol: {describe(score)}")
    return lines


def _use(config: RunConfig, record: dict[str, Any], address: str) -> str:
    names = record.get("class_names") or [0]
    labels = f", labels={json.dumps(names[0])}" if config.generator.class_conditional else ""
    return (
        "## Use\n\n```python\nimport udpm\n\n"
        f'images = udpm.load("{address}").sample(16{labels}, seed=0)  # uint8\n```\n\n'
        f"SHA-256 of weights.safetensors: {record['weights_sha256']}\n"
    )


def _origin(record: dict[str, Any]) -> str:
    provenance = record["provenance"]
    versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items())
    return f"## Provenance\n\nCommit {provenance['commit'] or 'unknown'}; {versions}; {provenance['machine']}.\n"


FORMAT = "udpm-bundle/1"
RECORD, PICTURE = "bundle.json", "samples.png"


def bundle_run(run: Path, folder: Path, licence: str | None = None, address: str = WEIGHTS) -> list[str]:
    """Copy a finished run's weights, configuration, card, scores and samples into a folder; return the files' names.

    Samples and scores are taken from the same results (RESULTS/runs/EXPERIMENT/seedN is the run) and are optional. The
    card shows the first samples; of a run without any, images are drawn for it.

    Args:
        folder: of the bundle; an unchanged bundle is replaced once the new one is complete, anything else is refused.
        licence: of the weights, for the card.
        address: for `udpm.load`, as the card shows it.

    Raises:
        UserError: the run is not finished, its weights are not those of its record, samples or scores are of other
            weights, or `folder` holds something else.
    """
    run = run.resolve()
    record = read_complete(run)
    if sha256(run / WEIGHTS) != record["weights_sha256"]:
        raise UserError(f"{run / WEIGHTS}: not the weights that complete.json records; train or import them again")
    layout, experiment = Layout(results_of(run)), run.parent.name
    subjects = (run.name, f"{run.name}_best")
    patterns = [layout.scores(subject, experiment, suffix) for subject in subjects for suffix in ("", FURTHER)]
    scores = [path for pattern in patterns for path in layout.found(pattern)]
    with atomic_folder(folder, BUNDLE) as building:
        shutil.copyfile(run / WEIGHTS, building / WEIGHTS)
        write_text(building / "config.json", to_json(run_config(run)))
        for path in scores:
            (building / "scores").mkdir(exist_ok=True)
            shutil.copyfile(path, building / "scores" / path.name)
        samples = Path(layout.samples("", experiment, run.name.removeprefix("seed")))
        drawn = _copy_samples(samples, building / "samples", run, record) or _draw(building / WEIGHTS)
        picture = PICTURE, _save_picture(drawn, building / PICTURE)
        card = model_card(run, scores, picture=picture, licence=licence, address=address)
        write_text(building / CARD, card)
        names = sorted(str(path.relative_to(building)) for path in building.rglob("*") if path.is_file())
        write_json(building / RECORD, {"format": FORMAT, "run": record, "files": names})
    return [*names, RECORD]


def _copy_samples(stem: Path, folder: Path, run: Path, complete: dict[str, Any]) -> SampleSet | None:
    """Copy the run's sample set and its record, if they belong to the run; shards keep their names. Return the set."""
    record = stem.with_suffix(".json")
    if not record.exists():
        return None
    samples = load_samples(record)
    check_of_run(record, "a sample set", samples.record, run, complete)
    folder.mkdir()
    shards = [stem.parent / part["file"] for part in samples.record.get("shards") or []]
    for path in [record, *(shards or [stem.with_suffix(".npz")])]:
        for file in {path, path.with_suffix(".json")}:
            shutil.copyfile(file, folder / file.name)
    return samples


def _draw(weights: Path) -> SampleSet:
    """Draw a few images, for a run without a sample set."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "samples.npz"
        draw_samples(weights, Sampling(count=DRAWN), path)
        return load_samples(path)


def _save_picture(samples: SampleSet, path: Path) -> str:
    """Write the first images of a sample set as a grid; return its caption."""
    images, labels = samples.images[:PICTURED], samples.labels[:PICTURED]
    save_grid(path, images, labels if samples.record.get("classes") else None, {**samples.record, "count": len(images)})
    return f"The first {len(images)} samples, without selection: {drawing_words(samples.record)}"
