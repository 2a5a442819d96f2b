"""From YAML files to validated models, and from models to the resolved JSON that commands read."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from udpm.config.dataset import OWN_CLASSES, DatasetConfig, class_number
from udpm.config.evaluation import Scoring
from udpm.config.experiment import Experiment, RunConfig
from udpm.config.overrides import OPTION, override
from udpm.config.points import LoadedSweep, Resolved, check_differ, points_of, resolve_point, split_name
from udpm.config.shipped import shipped_configs
from udpm.config.study import ClusterConfig, Study, Sweep
from udpm.config.validation import NAME, SHORT, Model, read_yaml, types_in, validate
from udpm.core.errors import UserError
from udpm.core.identify import DATASET_YAML, EXPERIMENT_YAML, what_is
from udpm.core.reading import read_json

CLASSIFIER_SIDES = 4
"""The digits extractor halves images twice."""
LONGEST_CHAIN = 32
"""Longest chain of files that extend each other."""
LONGEST_NAME = 250
"""Longest name of a configuration: file systems allow 255 characters, and .yaml follows."""
NO_CHANGES: Mapping[str, Any] = {}

RESOLVED = {
    "RunConfig": ("a run's resolved configuration", "EXPERIMENT --output run.json"),
    "Sampling": ("a resolved sampling section", "EXPERIMENT --part sampling --output sampling.json"),
    "Scoring": ("a resolved scoring section", "EXPERIMENT --part scoring --output scoring.json"),
    "Latents": ("a resolved latents section", "EXPERIMENT --part latents --output latents.json"),
    "DatasetConfig": ("a data set's resolved configuration", "--dataset NAME --output dataset.json"),
}
"""Files that commands read: model name to description and the options of `udpm resolve` that write one."""


def load_study(values: dict[str, Any], where: str) -> Study:
    """Validate a study's values (``config.yaml`` merged with ``--config``); `where` names them in errors."""
    for key in values:
        if key not in Study.model_fields and key in Experiment.model_fields:
            raise UserError(f"{where}: {key}: a key of experiments; write it to config/experiments/NAME.yaml")
    return validate(Study, values, where)


def load_experiment(name: str, config: str | Path = "config", changes: Mapping[str, Any] = NO_CHANGES) -> Experiment:
    """Read experiment `name` from ``<config>/experiments/``, with its ancestors, or build a sweep's SWEEP.POINT.

    Args:
        changes: other values of keys, by dotted key (`read_settings`).

    Raises:
        UserError: missing file, circular `extends`, or an invalid value.
    """
    folder = Path(config) / "experiments"
    point = _point_of(name, config)
    if point is not None:
        values, where = load_point(*point, config).experiment.model_dump(), source_file(name, config)
    else:
        values, where = _with_ancestors(folder, name, []), str(named_file(folder, name))
    return override(Experiment, values, changes, where)


def load_sweep(name: str, config: str | Path = "config") -> LoadedSweep:
    """Read sweep `name` from ``<config>/sweeps/``, with all its points and their runs.

    Raises:
        UserError: missing file, or the sweep, its base or a point is invalid, or a duplicate point.
    """
    sweep, where = _read_sweep(name, config), str(sweep_file(name, config))
    base = _base_values(sweep, where, config)
    points = [resolve_point(point, base, sweep.seeds, where) for point in points_of(name, sweep, where).values()]
    check_differ(points, where)
    datasets: dict[str, DatasetConfig] = {}
    runs: dict[tuple[str, int], RunConfig] = {}
    for point, experiment in ((resolved.point, resolved.experiment) for resolved in points):
        at = f"{where}: point {point.name}"
        if experiment.scoring is None:
            raise UserError(f"{at}: scoring: null, but a sweep ranks its points by their scores")
        file = named_file(Path(config) / "experiments", point.experiment)
        if file.exists():
            raise UserError(f"{at}: {file} has the same name; rename one")
        if experiment.dataset not in datasets:
            datasets[experiment.dataset] = load_dataset(experiment.dataset, config)
        first = run_config(experiment, point.experiment, experiment.seeds[0], datasets[experiment.dataset], at)
        runs |= {(point.experiment, seed): first.model_copy(update={"seed": seed}) for seed in experiment.seeds}
    experiments = {resolved.point.experiment: resolved for resolved in points}
    return LoadedSweep(name, sweep, Experiment.model_validate(base), experiments, runs)


def _read_sweep(name: str, config: str | Path) -> Sweep:
    return validate(Sweep, read_yaml(sweep_file(name, config)), str(sweep_file(name, config)))


def load_point(name: str, point: str, config: str | Path = "config") -> Resolved:
    """Build one point of a sweep, without the others.

    Raises:
        UserError: as `load_sweep`, or there is no such point.
    """
    sweep, where = _read_sweep(name, config), str(sweep_file(name, config))
    points = points_of(name, sweep, where)
    if point not in points:
        near = difflib.get_close_matches(point, points, n=1)
        hint = f"did you mean {near[0]}?" if near else f"found: {', '.join(points)}"
        raise UserError(f"{where}: no point {point}; {hint}")
    return resolve_point(points[point], _base_values(sweep, where, config), sweep.seeds, where)


def source_file(name: str, config: str | Path = "config") -> str:
    """Name the source of an experiment in errors: its file, or the sweep's file and the point."""
    point = _point_of(name, config)
    if point is None:
        return str(named_file(Path(config) / "experiments", name))
    return f"{sweep_file(point[0], config)}: point {point[1]}"


def sweep_file(name: str, config: str | Path = "config") -> Path:
    """Return the path of a sweep's file; the file need not exist.

    Raises:
        UserError: not a valid name of a sweep.
    """
    if "." in name:
        raise UserError(f"{name!r}: not a sweep's name; '.' separates a sweep's name from a point's")
    return named_file(Path(config) / "sweeps", name)


def _point_of(name: str, config: str | Path) -> tuple[str, str] | None:
    """Split a name into sweep and point, if it is not an experiment's file and the sweep exists."""
    parts = split_name(name)
    if parts is None or named_file(Path(config) / "experiments", name).exists():
        return None
    return parts if sweep_file(parts[0], config).exists() else None


def _base_values(sweep: Sweep, where: str, config: str | Path) -> dict[str, Any]:
    """Read a sweep's base, which must be a valid experiment."""
    folder = Path(config) / "experiments"
    try:
        values = _with_ancestors(folder, sweep.base, [])
    except UserError as error:
        raise UserError(*(f"{where}: base: {mistake}" for mistake in error.mistakes)) from None
    validate(Experiment, values, str(named_file(folder, sweep.base)))
    return values


def load_cluster(config: str | Path = "config", environment: Mapping[str, str] = os.environ) -> ClusterConfig:
    """Read ``cluster.yaml``, if it exists; environment variables override its keys.

    Raises:
        UserError: invalid file or variable; the message names which.
    """
    path = Path(config) / "cluster.yaml"
    values = read_yaml(path) if path.exists() else {}
    # The file alone first, so that an error names the file or the variable.
    validate(ClusterConfig, values, str(path))
    for key in ClusterConfig.model_fields:
        variable = f"UDPM_{key.upper()}"
        if given := environment.get(variable):
            value = _typed(given, ClusterConfig.model_fields[key].annotation)
            validate(ClusterConfig, {key: value}, f"environment variable {variable}")
            values[key] = value
    return validate(ClusterConfig, values, str(path))


def source_of(key: str, config: str | Path = "config", environment: Mapping[str, str] = os.environ) -> str:
    """Name the source of a key of the cluster's configuration in errors: its file or the environment variable."""
    variable = f"UDPM_{key.upper()}"
    return f"environment variable {variable}: {key}" if environment.get(variable) else f"{config}/cluster.yaml: {key}"


def _typed(text: str, annotation: Any) -> str | int | float:
    """Convert a variable's text to its key's type; return it unchanged if that is text or the number is invalid."""
    number = next((kind for kind in types_in(annotation) if kind in (int, float)), str)
    try:
        return number(text)
    except ValueError:
        return text


def load_dataset(name: str, config: str | Path = "config", changes: Mapping[str, Any] = NO_CHANGES) -> DatasetConfig:
    """Read data set `name` from ``<config>/datasets/``; `changes` are as in `load_experiment`.

    Raises:
        UserError: missing file or an invalid value.
    """
    path = named_file(Path(config) / "datasets", name)
    return override(DatasetConfig, read_yaml(path), changes, str(path))


def resolve_run(
    name: str, seed: int, config: str | Path = "config", changes: Mapping[str, Any] = NO_CHANGES
) -> RunConfig:
    """Resolve everything that one training run of experiment `name` depends on; `changes` as in `load_experiment`.

    Raises:
        UserError: as `load_experiment` and `load_dataset`, or network and data do not match.
    """
    experiment, where = load_experiment(name, config, changes), source_file(name, config)
    where = f"{where}, with {OPTION}" if changes else where
    return run_config(experiment, name, seed, load_dataset(experiment.dataset, config), where)


def run_config(experiment: Experiment, name: str, seed: int, dataset: DatasetConfig, where: str) -> RunConfig:
    """Combine a run's part of an experiment with its data set.

    Raises:
        UserError: network and data do not match, or the data set lacks a requested label; `where` names the file in
            the message.
    """
    sections = {"process", "generator", "discriminator", "losses", "training", "weights"}
    values = {
        "experiment": name,
        "seed": seed,
        "dataset_name": experiment.dataset,
        "dataset": dataset.model_dump(),
        **experiment.model_dump(include=sections),
    }
    run = validate(RunConfig, values, where)
    _check_labels(experiment, dataset, where)
    if experiment.scoring is not None:
        _check_scoring(experiment.dataset, dataset, experiment.scoring, where)
    return run


def _check_labels(experiment: Experiment, dataset: DatasetConfig, where: str) -> None:
    """Check requested classes against the data set now, not after days of training."""
    for key, labels in (("sampling", experiment.sampling.labels), ("latents", experiment.latents.labels)):
        if isinstance(labels, str):
            continue
        numbers = [label for label in labels if isinstance(label, int)]
        if max(numbers, default=0) >= max(dataset.classes, 1):
            expected = f"must be in 0..{dataset.classes - 1}, the classes of data set {experiment.dataset}"
            raise UserError(f"{where}: {key}.labels: {expected}, got {max(numbers)}; put quotes around a class name")
        names = OWN_CLASSES.get(dataset.source, []) if dataset.classes else []
        for label in labels:
            if names or not dataset.classes:
                class_number(label, names, dataset.classes, f"{where}: {key}.labels")


def _check_scoring(name: str, dataset: DatasetConfig, scoring: Scoring, where: str) -> None:
    """Check now, not after training, that the data set allows the extractor and the reference."""
    names = [section.extractor for section in scoring.each]
    if "digits" in names:
        key = "scoring.extractor" if names[0] == "digits" else "scoring.extractors"
        others = "use lite0, inception or a TorchScript file, or set scoring: null"
        if dataset.classes < 2:
            raise UserError(f"{where}: {key}: digits needs classes, but data set {name} has none; {others}")
        if dataset.side % CLASSIFIER_SIDES:
            raise UserError(
                f"{where}: {key}: digits needs images whose side is a multiple of {CLASSIFIER_SIDES}, but "
                f"data set {name} has side {dataset.side}; {others}"
            )
    if scoring.reference_split == "test" and dataset.source == "digits" and not dataset.holdout:
        raise UserError(f"{where}: scoring.reference_split: test, but data set {name} has no test split; set holdout")


def read_resolved(model: type[Model], path: str | Path) -> Model:
    """Read a resolved configuration written by `udpm resolve`.

    Raises:
        UserError: missing, unreadable, another kind of file, or invalid; the message says how to make one.
    """
    what, options = RESOLVED.get(model.__name__, ("a resolved configuration", "EXPERIMENT"))
    kind = what_is(path)
    if kind is not None and kind.name in {EXPERIMENT_YAML, DATASET_YAML}:
        options = options.replace("EXPERIMENT" if kind.name == EXPERIMENT_YAML else "NAME", Path(path).stem)
    hint = f"`udpm resolve {options}` makes one"
    if kind is not None and kind.name != what and model.__name__ in RESOLVED:
        raise UserError(f"{path}: not {what} but {kind}; {hint}")
    try:
        values = read_json(path, "resolved configuration")
    except UserError as error:
        raise UserError(f"{error}; {hint}") from None
    return validate(model, values, str(path))


def to_json(model: BaseModel) -> str:
    """Serialize a configuration to the text that is written to files and hashed for digests."""
    return json.dumps(model.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def _with_ancestors(folder: Path, name: str, chain: list[str]) -> dict[str, Any]:
    if name in chain:
        raise UserError(f"{named_file(folder, chain[0])}: extends: circular: {' -> '.join([*chain, name])}")
    if len(chain) > LONGEST_CHAIN:
        raise UserError(f"{named_file(folder, chain[0])}: extends: chain of more than {LONGEST_CHAIN} files")
    path = named_file(folder, name)
    values = read_yaml(path)
    parent = values.get("extends")
    if parent is None:
        return values
    if not isinstance(parent, str):
        raise UserError(f"{path}: extends: must be the name of an experiment, got {parent!r}")
    return _merged(_with_ancestors(folder, parent, [*chain, name]), values)


def _merged(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        merged[key] = _merged(base[key], value) if both else value
    return merged


def named_file(folder: Path, name: str) -> Path:
    """Return the path of a named configuration: in a folder such as ``config/experiments``, else of the shipped one.

    Without either it is the path in the folder, where no file exists.

    Raises:
        UserError: not a valid name.
    """
    own = own_file(folder, name)
    shipped = shipped_configs(folder.name) / own.name
    return shipped if not os.path.lexists(own) and shipped.is_file() else own


def own_file(folder: Path, name: str) -> Path:
    """Return the path in a folder of a named configuration, to write it; the file need not exist.

    Raises:
        UserError: not a valid name.
    """
    check_name(name)
    return folder / f"{name}.yaml"


def check_name(name: str, where: str = "") -> None:
    """Check the name of a configuration; an error begins with `where`.

    Raises:
        UserError: not a valid name of a file, or too long for one.
    """
    if not NAME.fullmatch(name):
        alone = Path(name).stem
        meant = name.endswith((".yaml", ".yml")) and NAME.fullmatch(alone)
        hint = f"give only the name: {alone}" if meant else "use letters, digits, '.', '_' and '-'"
        raise UserError(f"{where}{SHORT.repr(name)}: not a valid name; {hint}")
    if len(name) > LONGEST_NAME:
        raise UserError(f"{where}{SHORT.repr(name)}: has {len(name)} characters; use at most {LONGEST_NAME}")
