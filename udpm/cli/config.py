"""``udpm resolve``, ``schema``, ``import``, ``schedule`` and ``cost``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from udpm.cli.options import (
    CONFIG_FOLDER,
    FILE,
    FOLDER,
    SETTINGS,
    WEIGHTS,
    Numbers,
    OutputFile,
    OutputFolder,
    OutputStem,
    SharedFolder,
    Verb,
    Whole,
    check,
    complete_configs,
    usage_error,
)
from udpm.core import kinds
from udpm.core.errors import UserError
from udpm.core.files import leading, write_json, write_text
from udpm.core.kinds import FileKind
from udpm.core.outputs import Output
from udpm.core.reading import read_text

if TYPE_CHECKING:
    from pydantic import BaseModel

    from udpm.config import Process

CONFIG_KEYS = 0.75
"""Smallest fraction of its keys that a resolved configuration has: one of an earlier version may lack some."""
OF_A_RUN = ("complete.json", "checkpoints", "owner.json", "attempts.jsonl", "weights.safetensors", "bundle.json")
"""Names of files and folders next to the config.json of a run."""
PARTS = ("run", "sampling", "scoring", "selection_sampling", "selection_scoring", "latents", "dataset")


def _is_resolved(path: Path) -> bool:
    """Detect a configuration written by this command: complete, in its layout."""
    import json

    from udpm.config import DatasetConfig, Latents, RunConfig, Sampling, Scoring

    try:
        text = leading(path).decode()
        values = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or text != json.dumps(values, indent=2, ensure_ascii=False) + "\n":
        return False
    models = (set(model.model_fields) for model in (DatasetConfig, Latents, RunConfig, Sampling, Scoring))
    return any(values.keys() <= keys and len(values) >= CONFIG_KEYS * len(keys) for keys in models)


def _check_claim(output: Path, text: str) -> None:
    """Refuse to replace the configuration of a run, which its results would then misreport.

    Raises:
        UserError: the output is a run's config.json with another content.
    """
    target = Path(os.path.realpath(output))
    others = [name for name in OF_A_RUN if os.path.lexists(target.parent / name)]
    if target.name == "config.json" and others and target.exists() and target.read_text(encoding="utf-8") != text:
        raise UserError(
            f"--output: {output}: is the configuration of the run in this folder (next to {others[0]}) and differs; "
            "name another file"
        )


RESOLVED = FileKind("resolved configuration", _is_resolved)


@click.command(cls=Verb, epilog="Example: udpm resolve digits --seed 0 --output results/configs/digits/seed0.json")
@click.argument("experiment", required=False, shell_complete=complete_configs("experiments"))
@click.option(
    "--dataset",
    metavar="NAME",
    shell_complete=complete_configs("datasets"),
    help="Resolve this data set instead of an experiment.",
)
@click.option("--part", type=click.Choice(PARTS), default="run", help="Which part to write.")
@click.option("--seed", type=Whole(0, 2**63 - 1), default=0, help="Training seed, for part run.")
@click.option("--extractor", help="One of scoring.extractors, for part scoring; default: the first.")
@SETTINGS
@CONFIG_FOLDER
@click.option("--output", type=OutputFile(RESOLVED), help="File to write; default: print it.")
def resolve_command(
    experiment: str | None,
    dataset: str | None,
    part: str,
    seed: int,
    extractor: str | None,
    settings: tuple[str, ...],
    config: Path,
    output: Path | None,
) -> None:
    """Validate a configuration and write one part of it with all defaults.

    EXPERIMENT is the name of a file in config/experiments/. The other commands read the result. The config.json of a
    run that has begun is never replaced by another configuration. A run that --set gives other weights is called
    EXPERIMENT+KEY=VALUE in its results; training.iterations only counts where the learning rates decay to the end.
    """
    if (experiment is None) == (dataset is None):
        raise usage_error("give either an EXPERIMENT or --dataset NAME")
    if extractor is not None and (experiment is None or part != "scoring"):
        raise usage_error("--extractor is for EXPERIMENT --part scoring")
    from udpm.config import DatasetConfig, Experiment, RunConfig, load_dataset, to_json
    from udpm.config.idle import idle_notes
    from udpm.config.overrides import read_settings, without_effect

    def resolve(texts: Sequence[str]) -> BaseModel:
        changes = read_settings(DatasetConfig if experiment is None else Experiment, texts)
        if experiment is None:
            return load_dataset(str(dataset), config, changes)
        return _part(experiment, part, seed, config, changes, extractor)

    resolved = resolve(settings)
    what = f"data set {dataset}" if experiment is None else f"{part} of experiment {experiment}"
    if idle := without_effect(resolve, settings, resolved):
        click.echo(f"warning: --set {' '.join(idle)}: changes nothing in {what}", err=True)
    if isinstance(resolved, RunConfig):
        for note in idle_notes(resolved, read_settings(Experiment, [text for text in settings if text not in idle])):
            click.echo(note, err=True)
    given = " ".join(text for text in settings if text not in idle)
    if output is None:
        click.echo(to_json(resolved), nl=False)
    else:
        _check_claim(output, to_json(resolved))
        write_text(output, to_json(resolved))
        what += f", seed {seed}" if part == "run" and dataset is None else ""
        click.echo(f"{output}: {what}{f', with {given}' if given else ''}")


def _part(
    experiment: str, part: str, seed: int, config: Path, changes: dict[str, Any], extractor: str | None
) -> BaseModel:
    """Resolve a part of an experiment, with other values of some keys; of scoring, for one of its extractors."""
    from udpm.config import Scoring, load_experiment, resolve_run, source_file
    from udpm.runs.config_guard import name_changed

    run = resolve_run(experiment, seed, config, changes)
    if changes:
        run = name_changed(resolve_run(experiment, seed, config), run, changes)
    parts = {"run": run, "dataset": run.dataset}
    resolved = parts.get(part) or getattr(load_experiment(experiment, config, changes), part)
    if resolved is None:
        raise UserError(f"{source_file(experiment, config)}: scoring: is null, so there is no part {part}")
    if extractor is None or not isinstance(resolved, Scoring):
        return resolved
    sections = {each.extractor: each for each in resolved.each}
    if extractor not in sections:
        raise UserError(
            f"{source_file(experiment, config)}: scoring.extractors: {extractor} is not of: {', '.join(sections)}"
        )
    return sections[extractor]


MANUAL_BYTES = 1 << 24
SCHEMA_BYTES = 1 << 20


def _is_schema(path: Path) -> bool:
    from udpm.config.schema import is_schema

    return is_schema(leading(path, SCHEMA_BYTES))


SCHEMA = FileKind("JSON schema", _is_schema)


@click.command(cls=Verb, epilog="Example: udpm schema")
@click.option("--config", type=SharedFolder(), default="config", help="Folder of the configuration.")
@click.option("--docs", type=SharedFolder(), default="docs", help="Folder of the documentation.")
def schema_command(config: Path, docs: Path) -> None:
    """Regenerate the files that depend on the configuration models: run it after changing one.

    These are the JSON schemas of the configuration files, the key reference in their manual, and the table of published
    flags.
    """
    from udpm.config.schema import FILES, FLAGS, KEYS, insert, json_schema, key_reference
    from udpm.interop.flags import flag_table

    manuals = ((config / "README.md", KEYS, key_reference()), (docs / "published-code.md", FLAGS, flag_table()))
    texts = {path: insert(path, read_text(path, "manual", MANUAL_BYTES), name, text) for path, name, text in manuals}
    schemas = {config / "schema" / f"{kind}.schema.json": json_schema(kind) for kind in FILES}
    check(writes=[Output("--config", path, SCHEMA) for path in schemas])
    for path, schema in schemas.items():
        write_json(path, schema)
    for path, text in texts.items():
        write_text(path, text)
    click.echo(f"{config / 'schema'}: {len(schemas)} schemas; {' and '.join(map(str, texts))}: updated")


@click.command(
    cls=Verb, name="import", epilog="Example: udpm import model_ema_state_cifar.pt --output cifar.safetensors"
)
@click.argument("checkpoints", type=WEIGHTS, nargs=-1)
@click.option("--config", "flags_file", type=FILE, help="A published config_SUFFIX.json.")
@click.option("--command", "command_line", help="A published command line, pasted unchanged; - reads it from stdin.")
@click.option("--output", type=OutputFile(kinds.IMPORTED, ".safetensors"), help="Weight file to write, .safetensors.")
@click.option("--name", help="Also write this experiment (and its data set, unless --dataset names one).")
@click.option("--dataset", help="An existing data set, for --name.")
@click.option("--gpus", type=Whole(1), help="GPUs that batch_per_GPU refers to; default: that of torchrun, else 1.")
@click.option("--alphas", type=Numbers(float), help="The schedule, l = 1 first: 0.5,0.2,1e-3.")
@click.option("--sigmas", type=Numbers(float), help="The schedule, l = 1 first: 0.1,0.2,0.3.")
@click.option("--normalization", type=click.Choice(["norm", "sum"]), help="Normalization of H's box; default: norm.")
@click.option("--classes", type=Whole(2, 100_000), help="Number of classes, if label dropout hides it.")
@click.option("--folder", type=SharedFolder(), default="config", help="Folder of the configuration.")
@click.option("--run-config", type=FILE, help="Instead of all of these: the configuration of a run with its weights.")
@click.option("--run", type=OutputFolder(kinds.RUN), help="That run's folder.")
def import_command(
    checkpoints: tuple[Path, ...],
    flags_file: Path | None,
    command_line: str | None,
    output: Path | None,
    name: str | None,
    dataset: str | None,
    gpus: int | None,
    alphas: list[float] | None,
    sigmas: list[float] | None,
    normalization: str | None,
    classes: int | None,
    folder: Path,
    run_config: Path | None,
    run: Path | None,
) -> None:
    """Import published checkpoints, configurations and command lines.

    CHECKPOINTS are model_ema_state_*.pt (averaged weights) and model_state_*.pt (weights and discriminator) of one
    model. The architecture is read from the tensors; with --config or --command it is checked against them. Without a
    schedule, the paper's is used, with a note. Files are never executed: one that contains code is refused.
    """
    if run_config is not None or run is not None:
        _import_run(checkpoints, run_config, run)
        return
    if (dataset is not None or gpus is not None) and name is None:
        raise usage_error("--dataset and --gpus are for the experiment of --name")
    if not checkpoints and (output is not None or alphas is not None or normalization is not None):
        raise usage_error("--output and the schedule's options need CHECKPOINTS")
    if not checkpoints and name is None:
        raise usage_error("give CHECKPOINTS, or --name with --config or --command")
    from udpm.interop import convert

    if command_line == "-":
        command_line = sys.stdin.read()
    if (alphas is None) != (sigmas is None):
        raise usage_error("--alphas and --sigmas go together")
    described = convert.describe(flags_file, command_line, name or "imported", dataset, gpus)
    schedule = convert.ScheduleOptions(alphas, sigmas, normalization)
    for line in convert.convert_checkpoint(list(checkpoints), described, schedule, classes, output, name, folder):
        click.echo(line)


def _import_run(checkpoints: tuple[Path, ...], run_config: Path | None, run: Path | None) -> None:
    from udpm.config import RunConfig, read_resolved
    from udpm.interop.convert import import_weights
    from udpm.runs.config_guard import check_import

    if checkpoints or run_config is None or run is None:
        raise usage_error("--run-config and --run go together, without CHECKPOINTS")
    config = read_resolved(RunConfig, run_config)
    if config.training != "imported":
        raise UserError(f"{run_config}: training: is not imported; use `udpm train` for this run")
    check_import(run)
    check({"weights": config.weights}, [Output("--run", run / "weights.safetensors", kinds.IMPORTED_RUN)])
    import_weights(config, run)
    click.echo(f"{run / 'weights.safetensors'}: from {config.weights}")


SIDE = 32
NORMALIZATIONS = ("norm", "sum")


class Asked(NamedTuple):
    """A requested schedule: its name to display, its process, and the side of its images (None if not given)."""

    name: str
    process: Process
    side: int | None


@click.command(cls=Verb, epilog="Example: udpm schedule --alphas 0.5,0.2,1e-3 --sigmas 0.1,0.2,0.3 --side 32")
@click.argument("experiment", required=False, shell_complete=complete_configs("experiments"))
@CONFIG_FOLDER
@click.option("--alphas", type=Numbers(float), help="Instead of an experiment: α for each level, l = 1 first.")
@click.option("--sigmas", type=Numbers(float), help="With --alphas: σ for each level, l = 1 first.")
@click.option("--side", type=Whole(1), help=f"With --alphas: N; default: the data set's, else {SIDE}.")
@click.option(
    "--normalization", type=click.Choice(NORMALIZATIONS), help="With --alphas: normalization of H's box; default: norm."
)
@click.option("--dataset", type=FOLDER, help="Prepared data set, for bounds valid for its training split.")
@click.option("--output", type=OutputStem(kinds.FIGURE), metavar="STEM", help="Also STEM.csv, .svg, .pdf and .png.")
def schedule_command(
    experiment: str | None, config: Path, dataset: Path | None, output: Path | None, **typed: Any
) -> None:
    """Show signal, noise and posterior of a noise schedule at every level, and how well sampling starts.

    The schedule is that of EXPERIMENT, a file in config/experiments/, or the one given by --alphas and --sigmas. Warns
    if the distribution of the schedule's last state is not that which sampling starts from.
    """
    if typed["alphas"] is not None and typed["sigmas"] is not None and experiment is None:
        asked = _typed(**typed)
    elif experiment is not None and all(value is None for value in typed.values()):
        asked = _experiment(experiment, config)
    else:
        raise usage_error("give either an EXPERIMENT, or --alphas and --sigmas (with --side and --normalization)")
    from udpm.diffusion.schedule import Schedule
    from udpm.report.figures.schedule import plot_schedule, readable_schedule, schedule_table, schedule_warning

    side, mean_square, source = _images(asked, dataset)
    table = schedule_table(Schedule.from_config(asked.process), side, mean_square)
    if output is not None:
        plot_schedule(table, asked.name, output)
    click.echo(readable_schedule(table, source), nl=False)
    warning = schedule_warning(table)
    if warning is not None:
        click.echo(f"warning: {warning}", err=True)


def _experiment(name: str, config: Path) -> Asked:
    from udpm.config import load_experiment, resolve_run

    run = resolve_run(name, load_experiment(name, config).seeds[0], config)
    return Asked(name, run.process, run.dataset.side)


def _typed(alphas: list[float], sigmas: list[float], side: int | None, normalization: str | None) -> Asked:
    from udpm.config import Process
    from udpm.config.validation import validate

    if len(alphas) != len(sigmas):
        raise UserError(f"--alphas has {len(alphas)} values, --sigmas {len(sigmas)}; give one of each per level")
    values = {"levels": len(alphas), "alphas": alphas, "sigmas": sigmas}
    if normalization is not None:
        values["normalization"] = normalization
    process = validate(Process, values, "--alphas, --sigmas")
    listed = " and ".join(
        f"{letter} = {', '.join(f'{value:g}' for value in numbers)}"
        for letter, numbers in (("α", process.alphas), ("σ", process.sigmas))
    )
    return Asked(listed, process, side)


def _images(asked: Asked, dataset: Path | None) -> tuple[int, float, str]:
    """Return N, m₂, and a description of the source of m₂."""
    store = None
    if dataset is not None:
        from udpm.data.store import open_store

        store = open_store(dataset)
        if asked.side not in (None, store.side):
            raise UserError(f"{dataset}: has images of side {store.side}, but the schedule is for side {asked.side}")
    side = asked.side or (store.side if store else SIDE)
    levels = asked.process.levels
    if side % 2**levels:
        raise UserError(f"side {side} cannot be halved {levels} times: not divisible by 2^{levels}")
    if store is None:
        return side, 1.0, "the largest possible for images in [-1, 1]; --dataset measures it"
    from udpm.data.levels import mean_square

    count = len(store.images[store.split("train")])
    return side, mean_square(store, levels), f"measured on the {count} training images of {dataset}"


@click.command(cls=Verb, epilog="Example: udpm cost cifar10 ffhq64 --output results/tables/cost")
@click.argument(
    "experiments", nargs=-1, required=True, metavar="EXPERIMENT...", shell_complete=complete_configs("experiments")
)
@CONFIG_FOLDER
@click.option("--output", type=OutputStem(kinds.TABLE), metavar="STEM", help="Also write STEM.csv, .md, .tex, .html.")
def cost_command(experiments: tuple[str, ...], config: Path, output: Path | None) -> None:
    """Count the multiply-adds and parameters of an image, and those of a network at the full side.

    Each EXPERIMENT is the name of a file in config/experiments/. Needs no weights and no data.
    """
    from udpm.config import load_experiment, resolve_run
    from udpm.networks.inference import count_cost
    from udpm.report.paper.tables import cost_table

    runs = {name: resolve_run(name, load_experiment(name, config).seeds[0], config) for name in experiments}
    table = cost_table({name: count_cost(run) for name, run in runs.items()})
    if output is not None:
        table.write(output)
    click.echo(table.markdown(), nl=False)
