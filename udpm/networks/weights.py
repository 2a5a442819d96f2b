"""Weight files: self-describing safetensors, loaded without flags and without executing code from them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from udpm.config.model import ModelConfig
from udpm.config.training import Losses
from udpm.config.validation import NonNegativeFloat, NonNegativeInt, PositiveFloat, Record, Sha256, validate
from udpm.core.containers import read_header
from udpm.core.errors import UserError
from udpm.core.files import atomic_path, sha256
from udpm.networks.unet import UNet, build_generator, generator_shape

FORMAT = "udpm-weights/2"
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SHOWN = 5
"""Largest number of names in an error."""


class AverageRecord(Record):
    """Reconstruction of weights by `udpm average`."""

    width: PositiveFloat


class TrainedLosses(Record):
    """The part of a run's losses that says which networks they use; None in runs of other versions."""

    lpips_weight: NonNegativeFloat | list[NonNegativeFloat] | None = None
    lpips_network: str = "vgg"


class TrainedRun(Record):
    """The part of a run's configuration that says which networks its losses use."""

    losses: TrainedLosses = TrainedLosses()


class WeightsOrigin(Record):
    """Origin of imported weights: what is known of their losses."""

    loss_features: list[str] | None = None


class WeightsRecord(Record):
    """Required content of a weight file's description; None where a value is unknown."""

    model: dict[str, Any]
    experiment: str | None = None
    run_seed: NonNegativeInt | None = None
    dataset: str | None = None
    dataset_sha256: Sha256 | None = None
    iteration: NonNegativeInt | None = None
    origin: WeightsOrigin | None = None
    run: TrainedRun | None = None
    average: AverageRecord | None = None


@dataclass(frozen=True)
class Model:
    """A generator with the description in its file.

    Attributes:
        generator: generator in eval mode.
        config: its shape and its process.
        record: experiment, run_seed, dataset, dataset_sha256, iteration, loss_features (each None if unknown), origin
            (of imported weights), class_names (if known), average_width (if reconstructed), name of the weights, and
            the file's SHA-256.
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
    """Read what `write_tensors` wrote: tensors on the CPU, and the description, which must have the expected format.

    Args:
        integers: last parts of the names of int64 tensors; all others must be floating-point and finite.

    Raises:
        UserError: missing, damaged, another format, or tensors that are of another type or not finite.
    """
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such file")
    description = read_header(path).description
    found = description.get("format")
    if found != expected_format:
        raise UserError(f"{path}: format is {found!r}, expected {expected_format!r}")
    tensors = read_safetensors(path)
    for name, values in tensors.items():
        counts = name.rpartition("/")[2] in integers
        if values.dtype not in ((torch.int64,) if counts else FLOATS):
            expected = "int64" if counts else "floating-point values"
            raise UserError(f"{path}: tensor {name} holds {str(values.dtype).removeprefix('torch.')}, not {expected}")
        if not torch.isfinite(values).all():
            raise UserError(f"{path}: tensor {name} holds values that are not finite (NaN or infinite)")
    return tensors, description


def read_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read the tensors of any safetensors file to the CPU.

    Raises:
        UserError: missing or damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a readable safetensors file: {error}") from None


def check_tensors(where: str, tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Check that tensors have exactly the expected names and shapes; `where` is the beginning of the error.

    Raises:
        UserError: some are missing, unknown or of another shape.
    """
    if problems := tensor_problems(tensors, expected):
        raise UserError(f"{where}: {problems}")


def tensor_problems(tensors: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> str:
    """List the first five tensors that are missing, unknown and of another shape; empty if there are none."""
    shapes = {name: f"{tuple(tensors[name].shape)} for {tuple(expected[name])}" for name in tensors if name in expected}
    problems = {
        "missing": [name for name in expected if name not in tensors],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [f"{name} {shapes[name]}" for name in shapes if tensors[name].shape != expected[name]],
    }
    return "; ".join(
        f"{len(names)} tensors are {what}: {first_names(names)}" for what, names in problems.items() if names
    )


def first_names(names: Sequence[str]) -> str:
    """List the first five names."""
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")


def save_weights(
    path: str | Path, config: ModelConfig, networks: dict[str, dict[str, torch.Tensor]], description: dict[str, Any]
) -> None:
    """Write a generator's weights with everything needed to use them.

    Args:
        networks: state dicts by name: "ema" (averaged), additional averages, "raw"; optionally "discriminator".
        description: experiment, run_seed, dataset, dataset_sha256, class_names, iteration, and other known values.
    """
    tensors = {f"{kind}/{name}": tensor for kind, state in networks.items() for name, tensor in state.items()}
    write_tensors(path, tensors, {"format": FORMAT, "model": config.model_dump(mode="json"), **description})


def load_model(path: str | Path, weights: str = "ema", device: torch.device | str = "cpu") -> Model:
    """Load a generator from a file by `save_weights`, with weights "ema", "raw", or those of an additional average.

    Raises:
        UserError: missing, damaged, not a weight file, or without these weights.
    """
    tensors, description = read_tensors(path, FORMAT)
    config = described_model(path, description)
    state = tensors_under(tensors, f"{weights}/")
    if not state:
        held = sorted({name.partition("/")[0] for name in tensors} - {"discriminator"})
        raise UserError(f"{path}: no {weights} weights, only {' and '.join(held)}; use those")
    check_generator(path, config, state)
    generator = build_generator(config)
    generator.load_state_dict(state)
    known = ("experiment", "run_seed", "dataset", "dataset_sha256", "iteration", "origin")
    record = {
        **{key: description.get(key) for key in known},
        "loss_features": loss_features(path, description),
        **class_names_of(path, description, config),
        **({"average_width": description["average"]["width"]} if description.get("average") else {}),
        "weights": weights,
        "weights_sha256": sha256(path),
    }
    return Model(generator.eval().requires_grad_(False).to(device), config, record)


def described_model(path: str | Path, description: dict[str, Any]) -> ModelConfig:
    """Read the model's configuration from a weight file's description.

    Raises:
        UserError: missing or invalid.
    """
    if not isinstance(description.get("model"), dict):
        raise UserError(f"{path}: does not describe its model")
    validate(WeightsRecord, description, str(path))
    return validate(ModelConfig, description["model"], str(path))


def loss_features(path: str | Path, description: dict[str, Any]) -> list[str] | None:
    """Return the networks whose features a loss of the weights' training compared, as `losses.lpips_network` has them.

    If the training started from other weights, the networks of theirs count, too. An empty list: no loss did; None:
    unknown.

    Raises:
        UserError: invalid.
    """
    known = validate(WeightsRecord, description, str(path))
    started = [] if known.origin is None else known.origin.loss_features
    if known.run is None or known.run.losses.lpips_weight is None:
        return started if known.origin is not None else None
    used = features_of(known.run.losses)
    if started is None:
        return used or None
    return sorted({*used, *started})


def features_of(losses: TrainedLosses | Losses) -> list[str]:
    """Return the networks whose features losses compare: LPIPS's, if it has a weight at any level."""
    weights = losses.lpips_weight if isinstance(losses.lpips_weight, list) else [losses.lpips_weight]
    return [losses.lpips_network] if any(weights) else []


def class_names_of(path: str | Path, description: dict[str, Any], config: ModelConfig) -> dict[str, list[str]]:
    """Read the class names from a weight file's description, under "class_names"; return an empty dict without them.

    Raises:
        UserError: not names, or their number is not that of the classes.
    """
    names = description.get("class_names")
    if names is None or not config.classes:
        return {}
    if not isinstance(names, list) or len(names) != config.classes or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: class_names must be {config.classes} names; the file was changed or is damaged")
    return {"class_names": names}


def check_generator(path: str | Path, config: ModelConfig, state: Mapping[str, torch.Tensor]) -> None:
    """Check tensors against a generator's configuration, before building it.

    A file may describe a network of any size, so first compare the numbers that cost time or memory with the tensors.

    Raises:
        UserError: they do not match.
    """
    where = f"{path}: its tensors do not match its configuration"
    section = config.generator
    widest = max((max(values.shape, default=0) for values in state.values()), default=0)
    limits = {
        "generator.channels": (section.channels * max(section.channel_multipliers), widest),
        "classes": (config.classes, widest),
        "generator.blocks": (section.blocks * len(section.channel_multipliers), len(state)),
    }
    for key, (asked, held) in limits.items():
        if asked > held:
            raise UserError(f"{where}: {key} needs {asked}, but the tensors have at most {held}")
    with torch.device("meta"):
        expected = UNet(generator_shape(config)).state_dict()
    check_tensors(where, state, {name: values.shape for name, values in expected.items()})


def tensors_under(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """Select tensors whose names begin with `prefix`, and remove it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
