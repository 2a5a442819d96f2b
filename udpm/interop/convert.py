"""Published checkpoints, configurations and command lines as files, experiments, runs or the start of a training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from udpm.config.dataset import DatasetConfig
from udpm.config.experiment import Experiment, RunConfig
from udpm.config.load import load_dataset, own_file, run_config
from udpm.config.model import ModelConfig, Process
from udpm.config.validation import validate
from udpm.core import provenance
from udpm.core.arrays import sealed
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json, write_text
from udpm.core.kinds import IMPORTED
from udpm.core.outputs import Input, Output, guard
from udpm.interop.architecture import Tensors
from udpm.interop.checkpoint import Imported, differences, read_weights
from udpm.interop.command_line import checkpoint_name, only_samples, parse_command
from udpm.interop.flags import PAPER_SCHEDULE, read_flags, to_experiment
from udpm.networks.inference import count_cost
from udpm.networks.weights import features_of, save_weights
from udpm.runs.records import COMPLETE, RUN_FORMAT, SEALED, WEIGHTS

WEIGHTS_FOLDER = Path("resources/weights")
"""Folder of imported weights, unless the user names one."""


@dataclass(frozen=True)
class ScheduleOptions:
    """Schedule given by options: α_l and σ_l, one for each level with l = 1 first, and the normalization of H's box."""

    alphas: list[float] | None = None
    sigmas: list[float] | None = None
    normalization: str | None = None

    def process(self) -> Process | None:
        """Return the process, or None without alphas and sigmas.

        Raises:
            UserError: not a valid schedule.
        """
        if self.alphas is None:
            return None
        values = {"levels": len(self.alphas), "alphas": self.alphas, "sigmas": self.sigmas}
        values |= {"normalization": self.normalization} if self.normalization else {}
        return validate(Process, values, "--alphas, --sigmas")


@dataclass(frozen=True)
class PublishedConfig:
    """Experiment and data set described by published flags.

    Attributes:
        source: file or command line of the flags, for messages.
        experiment: valid values for ``experiments/NAME.yaml``.
        dataset: values for ``datasets/NAME.yaml``.
        names_schedule: True if the flags give a schedule, False if the paper's is used instead.
        notes: notes for the user.
        checkpoint: name of the file that a sampling command reads; None for a training.
        iteration: iteration of that file, if the command gives it.
    """

    source: str
    experiment: dict[str, Any]
    dataset: dict[str, Any]
    names_schedule: bool
    notes: list[str]
    checkpoint: str | None = None
    iteration: int | None = None


def describe(
    flags_file: Path | None, command_line: str | None, name: str, dataset: str | None, gpus: int | None
) -> PublishedConfig | None:
    """Read a published configuration file or command line; return None if neither is given.

    Raises:
        UserError: both are given, or a value has no equivalent here.
    """
    if flags_file is not None and command_line is not None:
        raise UserError("--config and --command: give one of them")
    if flags_file is not None:
        source, started_on = str(flags_file), gpus or 1
        flags, unused = read_flags(flags_file)
    elif command_line is not None:
        source, unused = "a published command line", []
        flags, started_on = parse_command(command_line, gpus)
    else:
        return None
    checkpoint, iteration = None, None
    if only_samples(flags):
        checkpoint, iteration = checkpoint_name(flags), flags.pop("from_itrs", None)
    experiment, images, notes = to_experiment(flags, name, source, dataset, started_on)
    validate(Experiment, experiment, source)
    if unused:
        notes = [*notes, f"not flags of the published commands, left out: {', '.join(unused)}"]
    return PublishedConfig(source, experiment, images, bool(flags.get("alphas")), notes, checkpoint, iteration)


def convert_checkpoint(
    checkpoints: list[Path],
    described: PublishedConfig | None,
    schedule: ScheduleOptions,
    classes: int | None,
    output: Path | None,
    name: str | None,
    folder: Path,
) -> list[str]:
    """Write checkpoints as one self-describing file, an experiment, or both, after checking everything.

    Args:
        checkpoints: see `checkpoint.read_weights`; may be empty.
        described: experiment described by flags, checked against the tensors.
        output: weight file to write; default: in resources/weights/.
        name: name of the experiment, or None to write none.

    Returns:
        Lines that list the written files, and notes.

    Raises:
        UserError: see `checkpoint.read_weights`; flags, tensors and options contradict each other; or a file exists.
    """
    if not checkpoints:
        if described is None or name is None:
            raise UserError("--name: needs --config or --command, which describe the experiment")
        files = _experiment(name, folder, described, None, None, None)
        _check_trains(described, name)
        return _written(files, described, [])
    where = ", ".join(map(str, checkpoints))
    weights = output or WEIGHTS_FOLDER / f"{name or checkpoints[0].stem}.safetensors"
    if output is None and weights.exists():
        raise UserError(f"{weights}: already exists; name another file with --output")
    guard([Output("--output", weights, IMPORTED)], [Input("CHECKPOINTS", path) for path in checkpoints])
    imported = read_weights(checkpoints, classes or (described.dataset["classes"] if described else None) or None)
    if classes is not None and imported.classes != classes:
        raise UserError(f"--classes: {classes}, but the network in {where} has labels for {imported.classes}")
    process, notes = _reconcile_schedule(schedule, described, imported, where)
    model = imported.model(process, where)
    if described is not None:
        described = _check_matches_tensors(described, model, where)
    files = _experiment(name, folder, described, weights, imported, process) if name is not None else {}
    origin = imported.origin
    # A command that only samples does not say what the training's losses were.
    if described is not None and described.checkpoint is None and "loss_features" not in origin:
        losses = validate(Experiment, described.experiment, described.source).losses
        origin = origin | {"loss_features": features_of(losses)}
    known = {"iteration": _iteration(described, imported, where), "origin": origin, **imported.class_names}
    description = {"experiment": weights.stem, "run_seed": 0, **known}
    save_weights(weights, model, imported.networks, description)
    return [f"{weights}: {summary(model, imported)}", *_written(files, described, notes)]


def summary(model: ModelConfig, imported: Imported) -> str:
    """Describe a model in one line."""
    section = model.generator
    size = sum(tensor.numel() for tensor in next(iter(imported.networks.values())).values()) / 1e6
    labels = f"{model.classes} classes" if model.classes else "unconditional"
    dropped = ", trained with label dropout" if section.label_dropout else ""
    return (
        f"{section.family}, {size:.2f} M parameters, images of side {model.side}, {labels}{dropped}; width "
        f"{section.channels} times {section.channel_multipliers}, {section.blocks} blocks per level, attention at "
        f"{section.attention}; contains {' and '.join(imported.networks)}"
    )


def _reconcile_schedule(
    schedule: ScheduleOptions, described: PublishedConfig | None, imported: Imported, where: str
) -> tuple[Process, list[str]]:
    """Return the process of weights and experiment, checking that all sources that name one agree, and notes."""
    named = {where: imported.process, "--alphas, --sigmas": schedule.process()}
    if described is not None and described.names_schedule:
        named[described.source] = validate(Process, described.experiment["process"], described.source)
    given = {source: process for source, process in named.items() if process is not None}
    wanted = schedule.normalization
    if not given:
        process = Process.model_validate(PAPER_SCHEDULE | ({"normalization": wanted} if wanted else {}))
        return process, ["no schedule given: using the paper's (--alphas and --sigmas override it)"]
    first = next(iter(given))
    for source, process in given.items():
        if process != given[first]:
            raise UserError(f"{source}: schedule differs from that of {first}; leave one of them out")
    if wanted not in (None, given[first].normalization):
        raise UserError(f"--normalization: {wanted}, but {first} has {given[first].normalization}")
    return given[first], []


def _experiment(
    name: str,
    folder: Path,
    described: PublishedConfig | None,
    weights: Path | None,
    imported: Imported | None,
    process: Process | None,
) -> dict[Path, dict[str, Any]]:
    """Build ``experiments/NAME.yaml``, and ``datasets/NAME.yaml`` unless an existing data set is named."""
    if described is None:
        raise UserError("--name: needs --config or --command, which describe the experiment")
    values, dataset = dict(described.experiment), described.dataset
    if weights is not None and imported is not None and process is not None:
        kinds = imported.networks.keys() - {"discriminator"}
        # Imported weights have a single iteration, so there is none to choose.
        sampling = {key: value for key, value in values.get("sampling", {}).items() if key != "iteration"}
        if sampling.get("weights", "ema") not in kinds:
            sampling["weights"] = min(kinds)
        values |= {"training": "imported", "weights": str(weights), "seeds": values.get("seeds", [0])}
        values |= {"process": process.model_dump(), **({"sampling": sampling} if sampling else {})}
    files = {own_file(folder / "experiments", name): values}
    if values["dataset"] == name:
        files[own_file(folder / "datasets", name)] = dataset
        prepared = validate(DatasetConfig, dataset, described.source)
    else:
        prepared = load_dataset(values["dataset"], folder)
    for path in files:
        if path.exists():
            raise UserError(f"{path}: already exists; choose another --name")
    experiment = validate(Experiment, values, described.source)
    if prepared.side != dataset["side"]:
        raise UserError(
            f"{described.source}: img_size is {dataset['side']}, but data set {values['dataset']} has {prepared.side}"
        )
    run_config(experiment, name, experiment.seeds[0], prepared, described.source)
    return files


def _written(files: dict[Path, dict[str, Any]], described: PublishedConfig | None, notes: list[str]) -> list[str]:
    """Write configuration files; return lines that list them, and notes."""
    for path, content in files.items():
        kind = path.parent.name.removesuffix("s")
        head = f"# yaml-language-server: $schema=../schema/{kind}.schema.json\n"
        write_text(path, head + yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120))
    all_notes = [*notes, *(described.notes if described is not None else [])]
    return [*(f"{path}: written" for path in files), *(f"note: {note}" for note in all_notes)]


def _check_trains(described: PublishedConfig, name: str) -> None:
    """Check that an experiment without weights describes a training."""
    if described.checkpoint is not None:
        raise UserError(
            f"{described.source}: a sampling command, which does not describe a training; give its checkpoint too: "
            f"udpm import {described.checkpoint} --name {name} --command ..."
        )
    losses = validate(Experiment, described.experiment, described.source).losses
    weights = (losses.reconstruction_weight, losses.lpips_weight, losses.adversarial_weight)
    if not any(any(weight) if isinstance(weight, list) else weight for weight in weights):
        raise UserError(
            f"{described.source}: no loss has a weight above 0, so there is nothing to train; give l1_weight, "
            "lpips_weight or disc_weight"
        )


def _check_matches_tensors(described: PublishedConfig, model: ModelConfig, where: str) -> PublishedConfig:
    """Check the flags against the tensors.

    Published sampling commands list attention that their checkpoints do not have, and never label dropout: for these,
    use the tensors.
    """
    generator, notes = described.experiment["generator"], described.notes
    if described.checkpoint is not None:
        found = model.generator
        if set(generator["attention"]) != set(found.attention):
            sides = f"{found.attention}, according to the tensors, not {generator['attention']}"
            notes = [*notes, f"attention is at sides {sides}"]
        generator = generator | {"attention": found.attention, "label_dropout": found.label_dropout}
    experiment = described.experiment | {"generator": generator}
    values = {
        "side": described.dataset["side"],
        "classes": described.dataset["classes"],
        "process": model.process.model_dump(),
        "generator": generator,
    }
    wrong = differences(validate(ModelConfig, values, described.source), model)
    if wrong:
        raise UserError(f"{described.source}: contradicts the tensors of {where}: {'; '.join(wrong)} as in the tensors")
    return replace(described, experiment=experiment, notes=notes)


def _iteration(described: PublishedConfig | None, imported: Imported, where: str) -> int | None:
    """Return the iteration from a file's name or --from_itrs."""
    if described is None or described.iteration is None:
        return imported.iteration
    if imported.iteration not in (None, described.iteration):
        raise UserError(
            f"{described.source}: from_itrs is {described.iteration}, but {where} has iteration {imported.iteration}"
        )
    return described.iteration


class _Dumper(yaml.SafeDumper):
    """Dumper that writes lists on one line, like the shipped files."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def import_weights(config: RunConfig, run: Path) -> None:
    """Import a run's weights: write ``weights.safetensors`` and ``complete.json`` to its folder, as training would.

    Raises:
        UserError: the weights are missing, damaged or of another model.
    """
    imported = _read(config)
    wrong = differences(imported.model(config.process, str(config.weights)), config.model)
    if wrong:
        raise UserError(f"{config.weights}: not the model of experiment {config.experiment}: {'; '.join(wrong)}")
    weights = run / WEIGHTS
    description = {
        "experiment": config.experiment,
        "run_seed": config.seed,
        "dataset": config.dataset_name,
        "iteration": imported.iteration,
        "origin": imported.origin,
        **imported.class_names,
    }
    save_weights(weights, config.model, imported.networks, description)
    record = {
        "format": RUN_FORMAT,
        "experiment": config.experiment,
        "seed": config.seed,
        "iterations": imported.iteration,
        "origin": imported.origin,
        **imported.class_names,
        "parameters": {"generator": count_cost(config).generator_parameters},
        "dataset_sha256": imported.origin.get("dataset_sha256"),
        "weights_sha256": sha256(weights),
        "provenance": provenance.record(),
    }
    write_json(run / COMPLETE, sealed(record, SEALED))


def load_pretrained(config: RunConfig) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Load state dicts to start training from: "raw", and "ema" and "discriminator" if the file has them.

    Returns:
        State dicts by name, and a record of their origin.

    Raises:
        UserError: the weights are missing, damaged or of another network. Their process may differ.
    """
    imported = _read(config)
    wanted = config.model
    wrong = differences(imported.model(wanted.process, str(config.weights)), wanted)
    wrong = [difference for difference in wrong if not difference.startswith("process.")]
    if wrong:
        raise UserError(f"{config.weights}: cannot start experiment {config.experiment}: {'; '.join(wrong)}")
    networks = imported.networks
    # A file without trained weights has averaged ones.
    raw = networks["raw"] if "raw" in networks else networks["ema"]
    return {"raw": raw, **networks}, imported.origin


def _read(config: RunConfig) -> Imported:
    assert config.weights is not None
    return read_weights([config.weights], config.model.classes or None)
