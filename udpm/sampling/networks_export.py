"""Trained networks as files of other runtimes, with a program that draws images with them without this package."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template
from typing import Any

import torch
from torch import nn

from udpm.core.errors import UserError
from udpm.core.files import write_json, write_text
from udpm.core.folders import atomic_folder
from udpm.core.kinds import NETWORKS
from udpm.core.provenance import versions
from udpm.core.work import Progress
from udpm.diffusion.process import noise_sides
from udpm.diffusion.schedule import Schedule
from udpm.networks.inference import count_parameters
from udpm.networks.unet import IMAGE_CHANNELS, UNet
from udpm.networks.weights import Model, load_model
from udpm.runs.records import find_weights

FORMAT = "udpm-networks/1"
RECORD = "networks.json"
PROGRAM = "chain.py"
OUTPUT = "f"
LARGEST = 1 << 30
"""Maximal bytes of weights inside an .onnx file, which ends at 2 GB; more are in a file next to it."""
OPSET = 18
"""Version of ONNX's operators: the first that PyTorch's exporter writes."""


class LevelNetwork(nn.Module):
    """f at one level: the generator with its time fixed, called with x_l (and z_l) and, if it has classes, labels."""

    def __init__(self, generator: UNet, time: float) -> None:
        super().__init__()
        self.generator = generator
        self.time = time

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> torch.Tensor:
        """(B, 3 + k, h, w) and (B,) int64 to (B, 3, 2h, 2w)."""
        output: torch.Tensor = self.generator(x, self.time, labels)
        return output


Inputs = tuple[torch.Tensor, ...]


def _torchscript(network: nn.Module, inputs: Inputs, path: Path) -> None:
    torch.jit.trace(network, inputs, check_trace=False).save(str(path))


def _program(network: nn.Module, inputs: Inputs) -> tuple[torch.export.ExportedProgram, tuple[dict[int, Any], ...]]:
    """Export for any batch size; also return the dynamic dimensions by input."""
    shapes = ({0: torch.export.Dim("n", min=1)},) * len(inputs)
    program = torch.export.export(network, inputs, dynamic_shapes=shapes)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            # Lines of this package with their paths on this machine; the file is for other machines.
            node.meta.pop("stack_trace", None)
    return program, shapes


def _torch_export(network: nn.Module, inputs: Inputs, path: Path) -> None:
    torch.export.save(_program(network, inputs)[0], path)


def _onnx(network: nn.Module, inputs: Inputs, path: Path) -> None:
    program, shapes = _program(network, inputs)
    found = torch.onnx.export(
        program,
        dynamo=True,
        input_names=_input_names(len(inputs) > 1),
        output_names=[OUTPUT],
        dynamic_shapes=shapes,
        opset_version=OPSET,
        verbose=False,
    )
    assert found is not None
    found.save(path, external_data=4 * count_parameters(network) > LARGEST)


ONNX_CALL = 'return NETWORKS[level - 1].run(None, dict(zip(MODEL["inputs"], inputs)))[0]'
TORCH_CALL = "with torch.no_grad():\n        return NETWORKS[level - 1](*map(torch.from_numpy, inputs)).numpy()"


@dataclass(frozen=True)
class Format:
    """A format of network files.

    Attributes:
        suffix: of the files.
        write: writes a network, traced with example inputs, to a path.
        runtime: package that the program imports.
        load: expression of the program that loads the file `name`.
        call: statements of the program that call the network of `level` with `inputs`.
    """

    suffix: str
    write: Callable[[nn.Module, Inputs, Path], None]
    runtime: str
    load: str
    call: str


FORMATS = {
    "torchscript": Format(".pt", _torchscript, "torch", "torch.jit.load(FOLDER / name)", TORCH_CALL),
    "onnx": Format(".onnx", _onnx, "onnxruntime", "onnxruntime.InferenceSession(FOLDER / name)", ONNX_CALL),
    "torch-export": Format(".pt2", _torch_export, "torch", "torch.export.load(FOLDER / name).module()", TORCH_CALL),
}
"""Formats of `udpm export --format`."""


def export_networks(source: Path, folder: Path, form: str, weights: str = "ema") -> list[str]:
    """Write a network for each level, a program that draws images with them, and their record; return the files' names.

    The networks take any batch size and compute in float32. The program has the scalar posterior.

    Args:
        source: a weight file, or a folder that stands for one.
        folder: to write; an unchanged export is replaced once the new one is complete, anything else is refused.
        form: "torchscript", "onnx" or "torch-export".
        weights: "ema", "raw", or another average.

    Raises:
        UserError: weights missing or damaged, a package that is not installed, or `folder` holds something else.
    """
    if form == "onnx" and find_spec("onnxscript") is None:
        raise UserError("--format onnx: needs the onnx extra: pip install 'udpm[onnx]'")
    model = load_model(find_weights(source), weights)
    schedule, shape = Schedule.from_config(model.config.process), model.generator.shape
    kind = FORMATS[form]
    files = {level: f"level_{level}{kind.suffix}" for level in range(1, schedule.levels + 1)}
    with atomic_folder(folder, NETWORKS) as building, _quiet(), Progress(len(files), "export", "level") as progress:
        for level, name in files.items():
            side = model.config.side >> level
            # PyTorch's exporters take a batch of one image for a constant.
            inputs = [torch.zeros(2, shape.inputs, side, side)]
            inputs += [torch.zeros(2, dtype=torch.int64)] if shape.classes else []
            kind.write(LevelNetwork(model.generator, schedule.time(level)).eval(), tuple(inputs), building / name)
            progress.update(1)
        write_text(building / PROGRAM, CHAIN.substitute(runtime=kind.runtime, load=kind.load, call=kind.call))
        write_json(building / RECORD, _record(model, schedule, form, list(files.values())))
        return sorted(path.name for path in building.iterdir())


def _input_names(has_classes: bool) -> list[str]:
    return ["x", "labels"] if has_classes else ["x"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what PyTorch's exporters say about themselves; it is for PyTorch's developers."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _record(model: Model, schedule: Schedule, form: str, files: Sequence[str]) -> dict[str, Any]:
    """Return all numbers that drawing images takes, and what the networks were made from."""
    shape, side = model.generator.shape, model.config.side
    sides = dict(zip(range(schedule.levels, 0, -1), noise_sides(schedule, side), strict=True))
    noise = {"base": [IMAGE_CHANNELS, side, side]}
    noise |= {f"eps_{level}": [IMAGE_CHANNELS, size, size] for level, size in sides.items()}
    if shape.latent_channels:
        noise |= {f"z_{level}": [shape.latent_channels, size, size] for level, size in sides.items()}
    return {
        "format": FORMAT,
        "networks": form,
        "files": files,
        "side": side,
        "channels": IMAGE_CHANNELS,
        "levels": schedule.levels,
        "alphas": schedule.alphas,
        "sigmas": schedule.sigmas,
        "scale": schedule.scale,
        "classes": shape.classes,
        "label_dropout": shape.label_dropout,
        "latent_channels": shape.latent_channels,
        "inputs": _input_names(shape.classes > 0),
        "output": OUTPUT,
        "noise": noise,
        "source": model.record,
        "versions": versions(),
    }


CHAIN = Template('''\
"""Draw images with the networks in this folder; needs only numpy and $runtime.

    python chain.py --count 16 --seed 0 --output images.npy
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import $runtime

FOLDER = Path(__file__).resolve().parent
MODEL = json.loads((FOLDER / "networks.json").read_text(encoding="utf-8"))
NETWORKS = [$load for name in MODEL["files"]]


def call(level, *inputs):
    """Call the network of level l: (n, 3 + k, h, w) float32, and labels if it has classes, to (n, 3, 2h, 2w)."""
    $call


def draw_noise(seed, numbers):
    """Draw the noise of images by number; the n-th image's is a function of (seed, n) alone."""
    sources = [np.random.default_rng([seed, number]) for number in numbers]
    drawn = [[source.standard_normal(shape, np.float32) for shape in MODEL["noise"].values()] for source in sources]
    return dict(zip(MODEL["noise"], map(np.stack, zip(*drawn))))


def read_noise(path):
    """Read a noise file of udpm sample."""
    try:
        with np.load(path) as file:
            return {name: file[name] for name in MODEL["noise"]}
    except Exception as error:
        raise ValueError(f"--noise: {path}: not a noise file of this model: {error}") from None


def check_noise(noise):
    """Return the noise as float32; every array must have the shape of networks.json for each image."""
    noise = {name: np.asarray(noise[name], np.float32) for name in MODEL["noise"]}
    for name, shape in MODEL["noise"].items():
        expected = (len(noise["base"]), *shape)
        if noise[name].shape != expected or not noise[name].size or not np.isfinite(noise[name]).all():
            raise ValueError(f"noise {name} has shape {noise[name].shape}, expected finite numbers of shape {expected}")
    return noise


def chain(noise, labels=None):
    """Return images, (n, N, N, 3) uint8, of noise as `udpm sample --noise` takes it and (n,) labels; -1: none."""
    noise = check_noise(noise)
    levels, alphas, sigmas, scale = (MODEL[key] for key in ("levels", "alphas", "sigmas", "scale"))
    n, side, block = len(noise["base"]), MODEL["side"] >> levels, 2**levels
    inputs = []
    if MODEL["classes"]:
        allowed = range(-MODEL["label_dropout"], MODEL["classes"])
        if np.shape(labels) != (n,) or not set(np.asarray(labels).tolist()) <= set(allowed):
            raise ValueError(f"labels: expected {n} of {allowed[0]}..{allowed[-1]}")
        inputs = [np.asarray(labels, np.int64)]
    signal, variance = [1.0], [0.0]  # q(x_l | x_0) = N(signal[l] H^l x_0, variance[l])
    for alpha, sigma in zip(alphas, sigmas):
        signal.append(alpha * signal[-1])
        variance.append(alpha**2 * variance[-1] + sigma**2)
    white = scale**levels * noise["base"].reshape(n, 3, side, block, side, block).mean((3, 5))
    x = signal[levels] * white + math.sqrt(variance[levels]) * noise[f"eps_{levels}"]
    for level in range(levels, 0, -1):
        output = call(level, np.concatenate([x, noise[f"z_{level}"]], 1) if MODEL["latent_channels"] else x, *inputs)
        if level > 1:  # a draw of x_{l-1} from the posterior, whose covariance is a number
            alpha, step, prior = alphas[level - 1], sigmas[level - 1] ** 2, variance[level - 1]
            covariance = 1 / (alpha**2 / step + 1 / prior)
            upsampled = scale / 4 * x.repeat(2, 2).repeat(2, 3)
            mean = covariance * (alpha / step * upsampled + signal[level - 1] / prior * output)
            x = mean + math.sqrt(covariance) * noise[f"eps_{level - 1}"]
    return np.rint((output + 1) * 127.5).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)


def draw(given, batch):
    """Draw the images that the command line asks for."""
    if given.noise and (given.count, given.seed) != (None, None):
        raise ValueError("--noise: has its own number of images, and no seed; leave --count and --seed out")
    if given.output.exists() or not given.output.parent.is_dir():
        raise ValueError(f"--output: {given.output}: must be a new file in a folder that exists")
    noise = check_noise(read_noise(given.noise)) if given.noise else None
    count = 16 if given.count is None else given.count
    count = len(noise["base"]) if noise else count
    if count < 1 or (given.seed or 0) < 0:
        raise ValueError("--count must be at least 1, and --seed at least 0")
    labels = np.resize(getattr(given, "labels", 0), count)
    images = []
    for start in range(0, count, batch):
        part = range(start, min(start + batch, count))
        chosen = {name: noise[name][part] for name in noise} if noise else draw_noise(given.seed or 0, part)
        images.append(chain(chosen, labels[part]))
    return np.concatenate(images)


def main(batch=64):
    parser = argparse.ArgumentParser(description="Draw images; write them as an array (n, N, N, 3) uint8.")
    parser.add_argument("--count", type=int, help="number of images; default: 16")
    parser.add_argument("--seed", type=int, help="of the noise, default: 0; udpm draws other noise from this seed")
    parser.add_argument("--noise", type=Path, help="noise file of udpm sample, instead of --count and --seed")
    if MODEL["classes"]:
        parser.add_argument("--labels", type=int, nargs="+", default=range(MODEL["classes"]), help="in turn")
    parser.add_argument("--output", type=Path, required=True, help="new file, .npy")
    given = parser.parse_args()
    try:
        images = draw(given, batch)
    except ValueError as error:
        parser.error(str(error))
    with open(given.output, "xb") as file:
        try:
            np.save(file, images)
        except BaseException:
            given.output.unlink()
            raise


if __name__ == "__main__":
    main()
''')
