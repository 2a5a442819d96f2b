"""Reader of published checkpoints (.pt) and of this project's weight files, as state dicts under our names."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from udpm.config.model import Generator, ModelConfig, Process
from udpm.config.validation import validate
from udpm.core.containers import check_archive
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.core.identify import CHECKPOINT, SAFETENSORS, what_is
from udpm.interop import architecture
from udpm.interop.architecture import Tensors, UnknownArchitecture
from udpm.networks.discriminator import DiscriminatorShape
from udpm.networks.unet import UNetShape
from udpm.networks.weights import (
    FORMAT,
    check_generator,
    class_names_of,
    described_model,
    loss_features,
    read_safetensors,
    read_tensors,
    tensors_under,
)

PREFIXES = ("module.", "_orig_mod.", "model.", "generator.", "net.net.")
"""Prefixes of tensor names added by data-parallel training, compilation and training frameworks."""
HOLDERS = {
    "ema": ("ema", "model_ema", "ema_model", "ema_state", "ema_state_dict", "state_dict_ema"),
    "raw": ("model", "state_dict", "model_state_dict", "generator"),
    "discriminator": ("discriminator", "disc"),
}
"""Keys of state dicts in files, by kind; the published code uses model and discriminator."""
HARMLESS = (
    "_codecs.encode",
    "argparse.Namespace",
    "types.SimpleNamespace",
    "collections.defaultdict",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "pathlib._local.PosixPath",
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    *(f"numpy.dtypes.{name}DType" for name in ("Float64", "Float32", "Float16", "Int64", "Int32", "UInt8", "Bool")),
)
"""Classes and functions that occur next to the tensors in many files. None is called: see `_Placeholder`."""
AVERAGED = "n_averaged"
"""Update counter that torch.optim.swa_utils.AveragedModel stores with the averaged weights."""
EMA_NAME = re.compile(r"(?:^|[_.-])ema(?:[_.-]|$)", re.IGNORECASE)
REFUSED = re.compile(r"(?:Unsupported|unsupported|Trying to)[^\n]*")
"""Error of the restricted unpickler for a file that contains more than data."""
UNKNOWN_LABEL_DROPOUT = 0.1
"""Assumed probability, which tensors do not reveal; sampling only checks that it is above 0."""


class _Placeholder:
    """Replaces objects next to the tensors (options, counters, paths) and discards their content."""

    def __init__(self, *_: Any) -> None: ...

    def __new__(cls, *_: Any) -> _Placeholder:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None: ...


@dataclass(frozen=True)
class Imported:
    """Weights of one model.

    Attributes:
        networks: state dicts under our names: "ema", "raw", "discriminator"; only those in the file.
        generator: the generator's configuration.
        side: N.
        classes: number of the generator's classes; 0 for an unconditional one.
        process: process stored in the file, or None.
        levels: L, or None if unknown.
        iteration: training iteration, or None.
        origin: files that the weights were read from, for the record.
        class_names: class names under the key "class_names", or empty if unknown.
    """

    networks: dict[str, Tensors]
    generator: Generator
    side: int
    classes: int
    process: Process | None
    levels: int | None
    iteration: int | None
    origin: dict[str, Any] = field(default_factory=dict)
    class_names: dict[str, list[str]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return a readable description: architecture, sizes, weights, iteration and files."""
        return {
            "side": self.side,
            "classes": self.classes,
            "levels": self.levels,
            "generator": self.generator.model_dump(),
            "parameters": {
                kind: sum(tensor.numel() for tensor in tensors.values()) for kind, tensors in self.networks.items()
            },
            "iteration": self.iteration,
            **self.class_names,
            **self.origin,
        }

    def model(self, process: Process | None, where: str) -> ModelConfig:
        """Return the model's configuration with the process stored in the file, else the given one.

        Raises:
            UserError: no process is known, or network and process do not match.
        """
        process = self.process or process
        if process is None:
            raise UserError(f"{where}: does not describe the process; give --config, or --alphas and --sigmas")
        if self.levels is not None and process.levels != self.levels:
            raise UserError(
                f"{where}: its discriminator is for {self.levels} levels, but the process has {process.levels}"
            )
        values = {
            "side": self.side,
            "classes": self.classes,
            "process": process.model_dump(),
            "generator": self.generator.model_dump(),
        }
        return validate(ModelConfig, values, where)


def read_weights(paths: Sequence[str | Path], classes: int | None = None) -> Imported:
    """Read one weight file of this project, or published checkpoints of one model.

    Args:
        paths: ``weights.safetensors``; or ``model_ema_state_*.pt`` (averaged weights), ``model_state_*.pt`` (weights
            and discriminator), or both. State dicts may also be under other usual keys (`HOLDERS`), come from an
            AveragedModel, or be in a safetensors file without a description.
        classes: see `architecture.generator_shape`.

    Raises:
        UserError: missing, damaged, containing code, or not one model of a known family; files are never executed.
    """
    if len(paths) == 1 and _is_own(Path(paths[0])):
        return _own(Path(paths[0]))
    held: dict[str, Tensors] = {}
    for path in map(Path, paths):
        found = _published(path)
        twice = held.keys() & found.keys()
        if twice:
            raise UserError(f"{path}: contains {' and '.join(sorted(twice))} weights, already found in another file")
        held |= found
    where = ", ".join(str(path) for path in paths)
    try:
        return _identified(held, [Path(path) for path in paths], classes)
    except UnknownArchitecture as problem:
        raise UserError(f"{where}: {problem}") from None
    except (ArithmeticError, IndexError, TypeError, ValueError, RuntimeError) as problem:
        # Tensors with the right names can have any shape; the error of the network's code is informative enough.
        raise UserError(f"{where}: not a network of a known family: {' '.join(str(problem).split())[:160]}") from None


def differences(found: ModelConfig, wanted: ModelConfig) -> list[str]:
    """List differences between two models that affect their tensors or sampling, each as "key is A, not B".

    Dropout does not matter, and label dropout only if it is 0 for one of them.
    """
    pairs: dict[str, tuple[Any, ...]] = {}
    pairs |= {"side": (found.side, wanted.side), "classes": (found.classes, wanted.classes)}
    for section in ("process", "generator"):
        ours, theirs = (getattr(model, section).model_dump() for model in (found, wanted))
        pairs |= {f"{section}.{key}": (ours[key], theirs[key]) for key in ours}
    del pairs["generator.dropout"]
    pairs["generator.label_dropout"] = tuple(value > 0 for value in pairs["generator.label_dropout"])
    pairs["generator.attention"] = tuple(sorted(value) for value in pairs["generator.attention"])
    return [f"{key} is {ours}, not {theirs}" for key, (ours, theirs) in pairs.items() if ours != theirs]


def _identified(held: dict[str, Tensors], paths: list[Path], classes: int | None) -> Imported:
    generators: dict[str, Tensors] = {kind: held[kind] for kind in ("ema", "raw") if kind in held}
    discriminator = held.get("discriminator")
    d_shape: DiscriminatorShape | None = None
    if discriminator is not None:
        side = 2 * architecture.generator_shape(next(iter(generators.values()))).side
        d_shape = architecture.discriminator_shape(discriminator, side)
        # The discriminator has no input for a dropped label, so it determines the number of classes.
        classes = d_shape.classes or classes
        known = architecture.generator_shape(next(iter(generators.values())), classes).classes
        if d_shape.classes and known and d_shape.classes != known:
            raise UnknownArchitecture(f"its discriminator has {d_shape.classes} classes, its generator {known}")
    shapes = {kind: architecture.generator_shape(tensors, classes) for kind, tensors in generators.items()}
    shape = next(iter(shapes.values()))
    if any(other != shape for other in shapes.values()):
        raise UnknownArchitecture(f"the files contain different networks: {', '.join(map(str, shapes.values()))}")
    networks = {kind: architecture.load_tensors(tensors, shape) for kind, tensors in generators.items()}
    if d_shape is not None and discriminator is not None:
        networks["discriminator"] = architecture.load_tensors(discriminator, d_shape)
    return Imported(
        networks,
        _section(shape),
        side=2 * shape.side,
        classes=shape.classes,
        process=None,
        levels=d_shape.levels if d_shape else None,
        iteration=_iteration(paths),
        origin={"kind": "published", "files": _identities(paths)},
    )


def _section(shape: UNetShape) -> Generator:
    return Generator(
        family=shape.family,
        channels=shape.channels,
        channel_multipliers=list(shape.multipliers),
        blocks=shape.blocks,
        attention=list(shape.attention),
        class_conditional=shape.classes > 0,
        label_dropout=UNKNOWN_LABEL_DROPOUT if shape.label_dropout else 0.0,
    )


def _own(path: Path) -> Imported:
    tensors, description = read_tensors(path, FORMAT)
    model = described_model(path, description)
    kinds = dict.fromkeys(name.partition("/")[0] for name in tensors)
    networks = {kind: tensors_under(tensors, f"{kind}/") for kind in kinds}
    for kind in kinds:
        if kind != "discriminator":
            check_generator(path, model, networks[kind])
    known = ("experiment", "run_seed", "dataset", "dataset_sha256", "origin")
    features = loss_features(path, description)
    return Imported(
        networks,
        model.generator,
        side=model.side,
        classes=model.classes,
        process=model.process,
        levels=model.process.levels,
        iteration=description.get("iteration"),
        origin={
            "kind": "udpm",
            "files": _identities([path]),
            **{key: description[key] for key in known if description.get(key) is not None},
            **({} if features is None else {"loss_features": features}),
        },
        class_names=class_names_of(path, description, model),
    )


def _is_own(path: Path) -> bool:
    """Detect a weight file or checkpoint of this project."""
    known = what_is(path)
    return known is not None and (known.format or "").startswith(("udpm-weights/", "udpm-checkpoint/"))


def _published(path: Path) -> dict[str, Tensors]:
    """Read the state dicts of a file from other code, by kind."""
    known = what_is(path)
    plain = path.suffix == ".safetensors" or (known is not None and known.name == SAFETENSORS)
    content = read_safetensors(path) if plain else _load(path)
    found: dict[str, Any] = {}
    if isinstance(content, dict):
        for kind, keys in HOLDERS.items():
            held = [content[key] for key in keys if isinstance(content.get(key), dict)]
            found |= {kind: held[0]} if held and held[0] else {}
    if not found.keys() & {"ema", "raw"}:
        found = {"ema": content}
    for kind, state in found.items():
        if not _is_state(state):
            raise UserError(
                f"{path}: not a published checkpoint: expected a state dict of tensors, or one under 'model'; "
                f"{_shown(state if kind != 'ema' else content)}"
            )
    averaged = AVERAGED in found.get("raw", ()) or ("state_dict" in content and EMA_NAME.search(path.stem))
    if averaged and "ema" not in found:
        found["ema"] = found.pop("raw")
    return {
        kind: {_plain(name): value for name, value in state.items() if name != AVERAGED}
        for kind, state in found.items()
    }


def _shown(content: Any) -> str:
    if not isinstance(content, dict):
        return f"found {type(content).__name__}"
    return f"found {', '.join(map(repr, list(content)[:5])) or 'nothing'}"


def _is_state(state: Any) -> bool:
    if not isinstance(state, dict) or not state or not all(isinstance(name, str) for name in state):
        return False
    return all(
        isinstance(value, torch.Tensor) and not value.is_complex() and _is_whole(value) for value in state.values()
    )


def _is_whole(tensor: torch.Tensor) -> bool:
    """Check that storage backs every element; a stride of 0 makes a few bytes look like terabytes."""
    return tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()


def _load(path: Path) -> Any:
    check_archive(path, "checkpoint")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals([(_Placeholder, name) for name in HARMLESS]):
            # Warnings about pickle protocols; errors are reported below.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # The restricted unpickler fails on damaged bytes with errors of any type.
        message = str(error)
        if isinstance(error, pickle.UnpicklingError) and (refused := REFUSED.search(message)):
            what = refused[0].partition(" was not")[0].rstrip(". ")
            raise UserError(
                f"{path}: refused without executing it: contains more than tensors ({what}); "
                "save only the tensors where it was made: torch.save(model.state_dict(), FILE)"
            ) from None
        known = what_is(path)
        if known is not None and known.name != CHECKPOINT:
            raise UserError(f"{path}: not a checkpoint but {known}") from None
        invalid = isinstance(error, pickle.UnpicklingError | EOFError | LookupError)
        reason = "invalid pickle" if invalid else " ".join(message.split())[:160]
        raise UserError(f"{path}: not a readable checkpoint; it may be truncated ({reason})") from None


def _plain(name: str) -> str:
    while name.startswith(PREFIXES):
        name = name.partition(".")[2]
    return name


def _iteration(paths: list[Path]) -> int | None:
    found = [match for match in (re.search(r"_itr_(\d+)", path.stem) for path in paths) if match]
    return int(found[0][1]) if found else None


def _identities(paths: list[Path]) -> list[dict[str, str]]:
    return [{"name": path.name, "sha256": sha256(path)} for path in paths]
