"""From YAML files to validated models, and from models to the resolved JSON that commands read."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from udpm.config.dataset import DatasetConfig
from udpm.config.experiment import Experiment, RunConfig
from udpm.config.study import Study
from udpm.core.errors import UserError
from udpm.core.files import read_json

Model = TypeVar("Model", bound=BaseModel)
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-4 as a number (YAML 1.2) and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML mapping.

    Raises:
        UserError: missing, not YAML, or not a mapping.
    """
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file{_nearest_file(path)}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" (line {mark.line + 1})" if mark else ""
        raise UserError(f"{path}: not valid YAML: {getattr(error, 'problem', error)}{line}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected 'key: value' lines, found {type(value).__name__}")
    return value


def names_in(folder: str | Path) -> list[str]:
    """Names (without .yaml) of the configuration files in a folder, sorted."""
    return sorted(path.stem for path in Path(folder).glob("*.yaml"))


def load_study(values: dict[str, Any], where: str) -> Study:
    """Validate the study's values (the merged ``config.yaml`` and ``--config``); `where` names them in errors."""
    return validate(Study, values, where)


def load_experiment(name: str, config: str | Path = "config") -> Experiment:
    """Read experiment `name` from ``<config>/experiments/``, with what it extends.

    Raises:
        UserError: missing file, circular `extends`, or an invalid value.
    """
    folder = Path(config) / "experiments"
    values = _with_ancestors(folder, name, [])
    return validate(Experiment, values, str(folder / f"{name}.yaml"))


def load_dataset(name: str, config: str | Path = "config") -> DatasetConfig:
    """Read data set `name` from ``<config>/datasets/``.

    Raises:
        UserError: missing file or an invalid value.
    """
    path = named_file(Path(config) / "datasets", name)
    return validate(DatasetConfig, read_yaml(path), str(path))


def resolve_run(name: str, seed: int, config: str | Path = "config") -> RunConfig:
    """Everything one training run of experiment `name` depends on.

    Raises:
        UserError: as `load_experiment` and `load_dataset`, or network and data do not fit together.
    """
    experiment = load_experiment(name, config)
    where = str(Path(config) / "experiments" / f"{name}.yaml")
    return run_of(experiment, name, seed, load_dataset(experiment.dataset, config), where)


def run_of(experiment: Experiment, name: str, seed: int, dataset: DatasetConfig, where: str) -> RunConfig:
    """A run's part of an experiment, with its data set.

    Raises:
        UserError: network and data do not fit together, or labels are asked for that the data set lacks; `where` names
            the file in the message.
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
    return run


def _check_labels(experiment: Experiment, dataset: DatasetConfig, where: str) -> None:
    """Classes that are asked for are the data set's: told here, not after days of training."""
    for key, labels in (("sampling", experiment.sampling.labels), ("latents", experiment.latents.labels)):
        if isinstance(labels, list) and max(labels, default=0) >= max(dataset.classes, 1):
            expected = f"must lie in 0..{dataset.classes - 1}, the classes of data set {experiment.dataset}"
            raise UserError(f"{where}: {key}.labels: {expected}, got {max(labels)}")


def read_resolved(model: type[Model], path: str | Path) -> Model:
    """Read a resolved configuration written by `udpm resolve`.

    Raises:
        UserError: missing, unreadable or invalid.
    """
    return validate(model, read_json(path, "resolved configuration"), str(path))


def to_json(model: BaseModel) -> str:
    """The one text of a configuration: what is written to files and what digests are taken of."""
    return json.dumps(model.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def validate(model: type[Model], values: dict[str, Any], where: str) -> Model:
    """Validate `values`; every error becomes one line that names the file, the key and what would be right.

    Raises:
        UserError: invalid.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        problems = [_explain(model, problem) for problem in error.errors(include_url=False)]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{where}: {problems[0]}{more}") from None


def _with_ancestors(folder: Path, name: str, chain: list[str]) -> dict[str, Any]:
    if name in chain:
        raise UserError(f"{folder / chain[0]}.yaml: extends: goes in a circle: {' -> '.join([*chain, name])}")
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
    """The file of a named configuration, there or not.

    Raises:
        UserError: not a name.
    """
    if not NAME.fullmatch(name):
        raise UserError(f"{name!r}: not a name; use letters, digits, '.', '_' and '-'")
    return folder / f"{name}.yaml"


def _nearest_file(path: Path) -> str:
    names = names_in(path.parent)
    near = difflib.get_close_matches(path.stem, names, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; there are: {', '.join(names)}" if names else ""


def _explain(model: type[BaseModel], problem: dict[str, Any]) -> str:
    location = [part for part in problem["loc"] if not _is_union_tag(part)]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"{path}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"{path}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{path}.{message}" if path else message
    got = problem["input"]
    shown = f", got {got!r}" if isinstance(got, (str, int, float, bool, list)) or got is None else ""
    return f"{path}: {message[0].lower()}{message[1:]}{shown}"


def _is_union_tag(part: Any) -> bool:
    # pydantic adds the tried branch of "number or list" to the location; no key of ours contains brackets or is a type.
    return isinstance(part, str) and ("[" in part or part in {"float", "int", "str", "list", "constrained-float"})


def _known_keys(model: type[BaseModel], location: list[Any]) -> list[str]:
    for part in location:
        model = next(found for found in _types(model.model_fields[part].annotation) if issubclass(found, BaseModel))
    return sorted(model.model_fields)


def _types(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type):
        yield annotation
    for argument in get_args(annotation):
        yield from _types(argument)
