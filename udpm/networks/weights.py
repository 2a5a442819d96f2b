"""Weight files: safetensors that describe themselves; loading one needs no flags and runs no code from it."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from udpm.config.model import ModelConfig
from udpm.config.validation import NonNegativeInt, Record, Sha256, validate
from udpm.core.containers import read_header
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256
from udpm.networks.build import build_generator, generator_shape
from udpm.networks.unet import UNet

FORMAT = "udpm-weights/2"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 3
"""Names that an error lists."""


class WeightsRecord(Record):
    """Required content of a weight file's description; None where a value is unknown."""

    model: dict[str, Any]
    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    dataset: str | None = None
    dataset_sha256: Sha256 | None = None
    iteration: NonNegativeInt | None = None
    origin: dict[str, Any] | None = None


@dataclass(frozen=True)
class Model:
    """A generator with what its file says about it.

    Attributes:
        generator: in eval mode.
        config: its shape and its process.
        record: experiment, run_seed, dataset, dataset_sha256, iteration (each None where unknown), origin (of imported
            weights), class_names (where they are known), which weights, and the file's SHA-256.
    """

    generator: UNet
    config: ModelConfig
    record: dict[str, Any]


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], description: dict[str, Any]) -> None:
    """Write tensors with a JSON description in the metadata, atomically.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"udpm": json.dumps(description, sort_keys=True)})
        except SafetensorError as error:
            raise UserError(f"{path}: cannot be written: {error}") from None


def read_tensors(
    path: str | Path, expected_format: str, integers: Collection[str] = ()
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote: tensors on the CPU, and the description.

    Args:
        path: the file.
        expected_format: of the description.
        integers: last parts of the names of tensors that are int64; all others are floating-point and finite.

    Raises:
        UserError: missing, damaged, of another format, or with tensors of another type or that are not finite.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file")
    description = read_header(path).description
    found = description.get("format")
    if found != expected_format:
        raise UserError(f"{path}: format is {found!r}, expected {expected_format!r}")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None
    for name, values in tensors.items():
        counts = name.rpartition("/")[2] in integers
        if values.dtype not in ((torch.int64,) if counts else FLOATS):
            expected = "int64" if counts else "floating-point values"
            raise UserError(f"{path}: tensor {name} holds {str(values.dtype).removeprefix('torch.')}, not {expected}")
        if not torch.isfinite(values).all():
            raise UserError(f"{path}: tensor {name} holds values that are not finite (NaN or infinite)")
    return tensors, description


def check_tensors(where: str, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Check that tensors have the expected names and shapes, and no others.

    Args:
        where: what comes before the reason in the error.
        tensors: by name.
        expected: shapes by name.

    Raises:
        UserError: some are missing, unknown or of another shape; the first three of each are named.
    """
    shapes = {name: f"{tuple(tensors[name].shape)} for {tuple(expected[name])}" for name in tensors if name in expected}
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [f"{name} {shapes[name]}" for name in shapes if tensors[name].shape != expected[name]],
    }
    found = [
        f"{len(names)} tensors are {what}: {', '.join(names[:SHOWN])}{', …' if len(names) > SHOWN else ''}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise UserError(f"{where}: {'; '.join(found)}")


def save_weights(
    path: str | Path, config: ModelConfig, networks: dict[str, dict[str, torch.Tensor]], description: dict[str, Any]
) -> None:
    """Write a generator's weights with all that is needed to use them.

    Args:
        path: where to.
        config: of the generator.
        networks: state dicts by what they are: "ema" (averaged), further averages, "raw"; and "discriminator" if it
            comes along.
        description: experiment, run_seed, dataset, dataset_sha256, class_names, iteration, and whatever else is known.
    """
    tensors = {f"{kind}/{name}": tensor for kind, state in networks.items() for name, tensor in state.items()}
    write_tensors(path, tensors, {"format": FORMAT, "model": config.model_dump(mode="json"), **description})


def load_model(path: str | Path, weights: str = "ema", device: torch.device | str = "cpu") -> Model:
    """Load a generator from its weight file alone.

    Args:
        path: a file of `save_weights`.
        weights: "ema", "raw", or the name of a further average.
        device: where it goes.

    Raises:
        UserError: missing, damaged, not a weight file, or without these weights.
    """
    tensors, description = read_tensors(path, FORMAT)
    config = described_model(path, description)
    state = tensors_under(tensors, f"{weights}/")
    if not state:
        held = sorted({name.partition("/")[0] for name in tensors} - {"discriminator"})
        raise UserError(f"{path}: holds no {weights} weights, only {' and '.join(held)}; ask for those")
    check_generator(path, config, state)
    generator = build_generator(config)
    generator.load_state_dict(state)
    known = ("experiment", "run_seed", "dataset", "dataset_sha256", "iteration", "origin")
    record = {
        **{key: description.get(key) for key in known},
        **class_names_of(path, description, config),
        "weights": weights,
        "weights_sha256": sha256(path),
    }
    return Model(generator.eval().requires_grad_(False).to(device), config, record)


def described_model(path: str | Path, description: dict[str, Any]) -> ModelConfig:
    """The model that a weight file's description is of.

    Raises:
        UserError: it describes none.
    """
    if not isinstance(description.get("model"), dict):
        raise UserError(f"{path}: does not describe its model")
    validate(WeightsRecord, description, str(path))
    return validate(ModelConfig, description["model"], str(path))


def class_names_of(path: str | Path, description: dict[str, Any], config: ModelConfig) -> dict[str, list[str]]:
    """The names of the classes that a weight file's generator knows, under "class_names"; empty where it says none.

    Raises:
        UserError: they are no names, or not as many as there are classes.
    """
    names = description.get("class_names")
    if names is None or not config.classes:
        return {}
    if not isinstance(names, list) or len(names) != config.classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: class_names must be {config.classes} names; the file was changed or is damaged")
    return {"class_names": names}


def check_generator(path: str | Path, config: ModelConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors are those of a configured generator, before it is built.

    A file may describe a network of any size: what takes time or memory is compared with the tensors first.

    Args:
        path: where they are from, for the error.
        config: of the generator.
        state: its tensors.

    Raises:
        UserError: they are not.
    """
    where = f"{path}: its tensors do not fit its configuration"
    section = config.generator
    widest = max((max(values.shape, default=0) for values in state.values()), default=0)
    limits = {
        "generator.channels": (section.channels * max(section.channel_multipliers), widest),
        "classes": (config.classes, widest),
        "generator.blocks": (section.blocks * len(section.channel_multipliers), len(state)),
    }
    for key, (asked, held) in limits.items():
        if asked > held:
            raise UserError(f"{where}: {key} asks for {asked}, but no more than {held} are held")
    with torch.device("meta"):
        expected = UNet(generator_shape(config)).state_dict()
    check_tensors(where, state, {name: values.shape for name, values in expected.items()})


def tensors_under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
