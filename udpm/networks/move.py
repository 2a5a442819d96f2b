"""Moving over from the published code: its checkpoints, configurations and command lines become ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from udpm.config.dataset import DatasetConfig
from udpm.config.experiment import Experiment
from udpm.config.load import load_dataset, named_file, run_of, validate
from udpm.config.model import ModelConfig, Process
from udpm.config.published import parse_command, read_flags, to_experiment
from udpm.core.errors import UserError
from udpm.core.files import write_text
from udpm.networks.importer import Imported, differences, read_weights
from udpm.networks.weights import save_weights

PAPER_SCHEDULE = {"levels": 3, "alphas": [0.5, 0.2, 1e-3], "sigmas": [0.1, 0.2, 0.3]}


@dataclass(frozen=True)
class Described:
    """What published flags say.

    Attributes:
        source: what they were read from.
        experiment: values for ``experiments/NAME.yaml``, valid.
        dataset: values for ``datasets/NAME.yaml``.
        notes: for the user.
    """

    source: str
    experiment: dict[str, Any]
    dataset: dict[str, Any]
    notes: list[str]


def describe(
    flags_file: Path | None, command_line: str | None, name: str, dataset: str | None, gpus: int | None
) -> Described | None:
    """Read a published configuration file or command line; None where neither is given.

    Raises:
        UserError: both are given, or their values have no counterpart.
    """
    if flags_file is not None and command_line is not None:
        raise UserError("--config and --command: give one of them")
    if flags_file is not None:
        source, started_on = str(flags_file), 1
        flags, unused = read_flags(flags_file)
    elif command_line is not None:
        source, unused = "a published command line", []
        flags, started_on = parse_command(command_line)
    else:
        return None
    experiment, images, notes = to_experiment(flags, name, source, dataset, gpus or started_on)
    validate(Experiment, experiment, source)
    if unused:
        notes = [*notes, f"not flags of the published commands, left out: {', '.join(unused)}"]
    return Described(source, experiment, images, notes)


def convert(
    checkpoints: list[Path], described: Described | None, process: Process | None, classes: int | None, output: Path
) -> tuple[Imported, list[str]]:
    """Write checkpoints as one self-describing file.

    Args:
        checkpoints: see `importer.read_weights`.
        described: what the flags say; checked against the tensors.
        process: the schedule, where it was given; else the flags', else the paper's.
        classes: number of classes, where it was given.
        output: where to.

    Returns:
        What was read, and lines that say so.

    Raises:
        UserError: see `importer.read_weights`; or flags and tensors contradict each other.
    """
    where, notes = ", ".join(map(str, checkpoints)), []
    imported = read_weights(checkpoints, classes or _classes(described))
    if classes is not None and imported.classes != classes:
        raise UserError(f"--classes: {classes}, but the network in {where} has labels for {imported.classes}")
    if process is None and described is not None:
        process = validate(Process, described.experiment["process"], described.source)
    if process is None and imported.process is None:
        process = Process.model_validate(PAPER_SCHEDULE)
        notes.append("no schedule is given: the paper's is taken (--alphas and --sigmas give another)")
    model = imported.model(process, where)
    if described is not None:
        _agree(model, described, where)
    description = {"experiment": output.stem, "run_seed": 0, "iteration": imported.iteration, "origin": imported.origin}
    save_weights(output, model, imported.networks, description)
    return imported, [f"{output}: {summary(model, imported)}", *notes]


def summary(model: ModelConfig, imported: Imported) -> str:
    """A model in one line."""
    section = model.generator
    size = sum(tensor.numel() for tensor in next(iter(imported.networks.values())).values()) / 1e6
    labels = f"{model.classes} classes" if model.classes else "unconditional"
    dropped = ", trained with label dropout" if section.label_dropout else ""
    return (
        f"{section.family}, {size:.2f} M parameters, images of side {model.side}, {labels}{dropped}; width "
        f"{section.channels} times {section.channel_multipliers}, {section.blocks} blocks per level, attention at "
        f"{section.attention}; holds {' and '.join(imported.networks)}"
    )


def write_experiment(
    name: str, folder: Path, described: Described | None, weights: Path | None, imported: Imported | None
) -> list[str]:
    """Write ``experiments/NAME.yaml``, and ``datasets/NAME.yaml`` unless the experiment names an existing data set.

    Args:
        name: of the experiment.
        folder: of the configuration.
        described: what the flags say.
        weights: a converted checkpoint that replaces the training, or None.
        imported: what it holds.

    Returns:
        Lines that say what was written.

    Raises:
        UserError: a file of that name is there, or the values are not valid.
    """
    if described is None:
        raise UserError("--name: an experiment takes --config or --command, which say what it is")
    values, dataset = dict(described.experiment), described.dataset
    if weights is not None:
        kinds = {"ema", "raw"} & imported.networks.keys()
        sampling = dict(values.get("sampling", {}))
        if sampling.get("weights", "ema") not in kinds:
            sampling["weights"] = kinds.pop()
        values |= {"training": "imported", "weights": str(weights), "seeds": values.get("seeds", [0])}
        values |= {"sampling": sampling} if sampling else {}
    files = {named_file(folder / "experiments", name): values}
    if values["dataset"] == name:
        files[named_file(folder / "datasets", name)] = dataset
        prepared = validate(DatasetConfig, dataset, described.source)
    else:
        prepared = load_dataset(values["dataset"], folder)
    for path in files:
        if path.exists():
            raise UserError(f"{path}: is there already; choose another --name")
    experiment = validate(Experiment, values, described.source)
    if prepared.side != dataset["side"]:
        raise UserError(
            f"{described.source}: img_size is {dataset['side']}, but data set {values['dataset']} has {prepared.side}"
        )
    run_of(experiment, name, experiment.seeds[0], prepared, described.source)
    for path, content in files.items():
        kind = path.parent.name.removesuffix("s")
        head = f"# yaml-language-server: $schema=../schema/{kind}.schema.json\n"
        write_text(path, head + _yaml(content))
    return [*(f"{path}: written" for path in files), *(f"note: {note}" for note in described.notes)]


def _classes(described: Described | None) -> int | None:
    return described.dataset["classes"] or None if described is not None else None


def _agree(model: ModelConfig, described: Described, where: str) -> None:
    values = {
        "side": described.dataset["side"],
        "classes": described.dataset["classes"],
        "process": model.process.model_dump(),
        "generator": described.experiment["generator"],
    }
    wrong = differences(validate(ModelConfig, values, described.source), model)
    if wrong:
        raise UserError(f"{described.source}: contradicts the tensors of {where}: {'; '.join(wrong)} as in the tensors")


class _Dumper(yaml.SafeDumper):
    """Short lists on one line, as the shipped files have them."""


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def _yaml(values: dict[str, Any]) -> str:
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
