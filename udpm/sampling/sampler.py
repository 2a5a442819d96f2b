"""Images from a trained generator, with noise from seeds or from a file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from udpm.config.dataset import class_number
from udpm.core.arrays import check_array
from udpm.core.devices import AsyncHostCopy, bind_thread, pinned, to_device, to_uint8
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.core.provenance import count_images
from udpm.core.work import Progress, delay_by_one, prefetch
from udpm.data.levels import block_sums, decode
from udpm.data.npz import array_names, read_npz
from udpm.diffusion.counter import NoiseKind, counted
from udpm.diffusion.process import (
    Latent,
    Network,
    SamplingStep,
    adjoint,
    join,
    latent_of,
    marginal,
    sample,
    sample_from,
    seeded,
)
from udpm.diffusion.schedule import PosteriorForm, Schedule
from udpm.networks.inference import Precision, prepare_for_inference
from udpm.networks.layers import NO_LABEL
from udpm.networks.weights import Model

LARGEST = 1e4
"""Largest absolute value of noise, well within float16."""

NoiseSource = Callable[[range], Latent]
"""Function from image numbers to their noise, on the CPU or on the sampler's device."""


def read_noise(
    path: str | Path, schedule: Schedule, side: int, count: int, channels: int = 0
) -> tuple[NoiseSource, dict[str, Any]]:
    """Read noise from a file: .npz with `base` (n, 3, N, N), `eps_L` … `eps_1`, eps_l of (n, 3, N/2^l, N/2^l), and for
    a model with a latent `z_L` … `z_1`, z_l of (n, k, N/2^l, N/2^l).

    `side` is N; `count` the number of images to draw; `channels` is k, 0 for a model without a latent.

    Returns:
        The source, and the file's identity for records.

    Raises:
        UserError: the file is missing or unreadable; an array is missing, of another shape, not finite or too short; or
            the file has a latent and the model takes none.
    """
    coarsest_first = range(schedule.levels, 0, -1)
    shapes = {"base": (3, side, side)} | {f"eps_{level}": (3, side >> level, side >> level) for level in coarsest_first}
    latents = {f"z_{level}": (channels, side >> level, side >> level) for level in coarsest_first}
    if channels:
        shapes |= latents
    elif unused := latents.keys() & set(array_names(path, "noise file")):
        raise UserError(f"{path}: has {', '.join(sorted(unused))}, but this model takes no latent; leave them out")
    arrays = read_npz(path, "noise file", names=shapes)
    for name in shapes:
        if name not in arrays:
            raise UserError(f"{path}: array {name} not found; this model needs {', '.join(shapes)}")
    check_array(f"{path}: base", arrays["base"], np.floating, ("n", 3, side, side))
    count_held = len(arrays["base"])
    for name, shape in shapes.items():
        check_array(f"{path}: {name}", arrays[name], np.floating, (count_held, *shape))
        if np.abs(arrays[name]).max() > LARGEST:
            raise UserError(f"{path}: {name} holds values beyond ±{LARGEST:g}; expected standard normal noise")
    if count_held < count:
        raise UserError(f"{path}: has the noise of {count_held} images; expected at least {count}")
    held = latent_of([torch.from_numpy(arrays[name].astype(np.float32)) for name in shapes], schedule.levels)

    def look_up(numbers: range) -> Latent:
        return held.map(lambda values: values[numbers.start : numbers.stop])

    return look_up, {"file": Path(path).name, "sha256": sha256(path)}


class Start(NamedTuple):
    """Real images x_0, (n, N, N, 3) uint8, that chains start from: x_l ~ q(x_l | x_0), with the image's own ε_l."""

    level: int
    images: np.ndarray


UNCONDITIONAL = "labels: this model is unconditional; leave them out"
NOT_FINITE = "the network's outputs are not finite (NaN or infinite) for these weights and this noise"


class Sampler:
    """Draw images; an image's noise depends on (seed, its number) alone.

    Args:
        model: loaded weights.
        posterior: "scalar" or "exact".
        batch: images per network call.
        guidance: w of classifier-free guidance; 1 is none.
        precision: of the network; the chain stays float32. Converts the model's weights in place.
        compiles: call the network through torch.compile.
        graphs: replay CUDA graphs of the network on a GPU, unless compiled.
        noise_kind: generator of the noise from a seed, "host" or "counter".

    Raises:
        UserError: guidance for a model that was not trained with label dropout.
    """

    def __init__(
        self,
        model: Model,
        posterior: PosteriorForm = "scalar",
        batch: int = 250,
        guidance: float = 1.0,
        precision: Precision = "float32",
        *,
        compiles: bool = False,
        graphs: bool = False,
        noise_kind: NoiseKind = "host",
    ) -> None:
        self.model = model
        self.schedule = Schedule.from_config(model.config.process)
        self.posterior: PosteriorForm = posterior
        self.batch = batch
        self.noise_kind: NoiseKind = noise_kind
        self.classes = model.generator.shape.classes
        self.class_names: list[str] = model.record.get("class_names", [])
        self.drops_labels = model.generator.shape.label_dropout
        if guidance != 1 and not self.drops_labels:
            raise UserError("guidance: this model was not trained with label dropout; expected 1 (none)")
        network: Network = prepare_for_inference(model.generator, precision, compiles=compiles, graphs=graphs)
        self._network = network if guidance == 1 else _guided(network, guidance)
        self.nfe = self.schedule.levels * (1 if guidance == 1 else 2)
        self.device = next(model.generator.parameters()).device
        self._prefers_one_size = compiles or graphs

    def balanced_labels(self, count: int) -> np.ndarray:
        """Return labels of images 0..count - 1: number modulo number of classes; zeros if unconditional."""
        return np.arange(count, dtype=np.int64) % max(self.classes, 1)

    def labels(self, count: int, choice: str | Sequence[int | str] = "balanced") -> np.ndarray:
        """Return labels of images 0..count - 1.

        Args:
            count: number of images, > 0.
            choice: "balanced"; "none", for a model trained with label dropout; or classes by name or number, in turn.

        Raises:
            UserError: labels out of range, or unknown to this model.
        """
        if choice == "balanced":
            return self._checked(count, None)
        if choice == "none":
            if not self.drops_labels:
                raise UserError("labels: none, but this model was not trained with label dropout")
            return np.full(count, NO_LABEL, dtype=np.int64)
        if not len(choice):
            raise UserError("labels: the list is empty; expected a class, or balanced")
        return self._checked(count, np.resize(self.class_numbers(choice), count).tolist())

    def class_numbers(self, labels: Sequence[int | str]) -> np.ndarray:
        """Return the numbers of classes, given by name, or by number if that is no class's name.

        Raises:
            UserError: the model is unconditional, or has no such class.
        """
        if not self.classes:
            raise UserError(UNCONDITIONAL)
        numbers = [class_number(label, self.class_names, self.classes) for label in labels]
        return np.array(numbers, dtype=np.int64)

    def sample(self, count: int, labels: Sequence[int | str] | int | str | None = None, seed: int = 0) -> np.ndarray:
        """Draw images 0..count - 1 of a seed, count > 0.

        Labels are one class for all, or one each, by name ("cat") or number from 0 (3); default balanced.

        Returns:
            (count, N, N, 3) uint8, RGB.

        Raises:
            UserError: wrong number of labels, or an unknown one.
        """
        return self.images(self._checked(count, labels), seed)[1]

    def images(
        self,
        labels: np.ndarray,
        noise: int | NoiseSource,
        first: int = 0,
        levels: Sequence[int] = (1,),
        start: Start | None = None,
    ) -> dict[int, np.ndarray]:
        """Draw images first..first + len(labels) - 1 and the network's outputs at coarser levels, at full side.

        Arguments and errors are those of `batches`.

        Returns:
            By level, (n, N, N, 3) uint8, RGB.
        """
        side, done = self.model.config.side, 0
        sets = {level: np.empty((len(labels), side, side, 3), dtype=np.uint8) for level in levels}
        for batch in self.batches(labels, noise, first, levels, start):
            for level, drawn in batch.items():
                sets[level][done : done + len(drawn)] = drawn
            done += len(next(iter(batch.values())))
        return sets

    def batches(
        self,
        labels: np.ndarray,
        noise: int | NoiseSource,
        first: int = 0,
        levels: Sequence[int] = (1,),
        start: Start | None = None,
    ) -> Iterator[dict[int, np.ndarray]]:
        """Draw the images of `images`, batch by batch.

        A GPU gets the next batch before the bytes of the last one are copied to the host.

        Args:
            labels: (n,) int64; `NO_LABEL` for none.
            noise: a seed, or a source of noise.
            first: number of the first image, a multiple of the batch.
            levels: of the outputs to return; 1 is the image.
            start: real images to start from instead of noise, one for each label.

        Yields:
            By level, (B, N, N, 3) uint8, RGB; the last batch may be smaller.

        Raises:
            UserError: the network's outputs are not finite.
        """
        launched = (
            (
                {step.level: AsyncHostCopy(self._shown(step)) for step in steps if step.level in levels},
                AsyncHostCopy(torch.isfinite(steps[-1].output).all()),
            )
            for steps in self.chains(labels, noise, first, start)
        )
        for batch, finite in delay_by_one(launched):
            if not finite.wait():
                raise UserError(NOT_FINITE)
            yield {level: drawn.wait().numpy() for level, drawn in batch.items()}

    def _shown(self, step: SamplingStep) -> torch.Tensor:
        """Return f of a level as an image of side N: (Hᵀ)^{l-1} f, in the scale of images, as bytes."""
        times, scale = step.level - 1, self.schedule.scale
        # (Hᵀ)^k multiplies by (s/4)^k and f by s^k; dividing by both leaves block means, repeated.
        return to_uint8(adjoint(step.output, scale, times) * (4 / scale**2) ** times)

    @torch.inference_mode()
    def chains(
        self, labels: np.ndarray, noise: int | NoiseSource, first: int = 0, start: Start | None = None
    ) -> Iterator[list[SamplingStep]]:
        """Yield the sampling chains of images first..first + len(labels) - 1, batch by batch.

        An image's bits depend on the batch size; the last batch is filled up, so every job draws the same bits.
        The arguments are those of `images`.
        """
        source = self.noise_of(noise) if isinstance(noise, int) else noise
        several = first + len(labels) > self.batch

        def prepared(offset: int) -> tuple[Latent, np.ndarray, Start | None]:
            part = labels[offset : offset + self.batch]
            latent = source(range(first + offset, first + offset + len(part)))
            origin = None if start is None else start._replace(images=start.images[offset : offset + self.batch])
            if several and len(part) < self.batch:
                latent, part, origin = _filled(latent, part, self.batch, origin)
            return latent.map(lambda values: pinned(values, self.device)), part, origin

        offsets = range(0, len(labels), self.batch)
        feed: Iterator[tuple[Latent, np.ndarray, Start | None]]
        if self.noise_kind == "counter" and self.device.type == "cuda":
            # A GPU queues these kernels behind its work; another thread could only disturb a recording.
            feed = (prepared(offset) for offset in offsets)
        else:
            feed = prefetch(prepared, offsets, begin=partial(bind_thread, self.device))
        with closing(feed), Progress(len(labels), "sample", "image") as progress:
            for offset, (latent, chosen, origin) in zip(offsets, feed, strict=True):
                steps = self._chain(latent, chosen, origin)
                count = min(self.batch, len(labels) - offset)
                yield [step._replace(state=step.state[:count], output=step.output[:count]) for step in steps]
                progress.update(count)
                count_images(count)

    def latent(self, seed: int) -> Latent:
        """Draw the latent of image 0 of a seed, on the CPU."""
        return self.noise_of(seed)(range(1)).map(torch.Tensor.cpu)

    def noise_of(self, seed: int) -> NoiseSource:
        """Return the source of a seed's noise."""
        config, channels = self.model.config, self.model.config.generator.latent_channels
        if self.noise_kind == "counter":
            return partial(counted, self.schedule, config.side, seed, channels=channels, device=self.device)
        return partial(seeded, self.schedule, config.side, seed, channels=channels)

    @torch.inference_mode()
    def decode(self, latents: Sequence[Latent], labels: Sequence[int]) -> torch.Tensor:
        """Draw the images of n latents, each of one image; labels are ignored if unconditional.

        Returns:
            (n, 3, N, N) float32 in about [-1, 1], on the CPU.

        Raises:
            UserError: the network's outputs are not finite.
        """
        chosen, images = np.asarray(labels, dtype=np.int64), []
        with Progress(len(latents), "decode", "image") as progress:
            for start in range(0, len(latents), self.batch):
                batch, part = join(latents[start : start + self.batch]), chosen[start : start + self.batch]
                count = len(part)
                if self._prefers_one_size and len(latents) > self.batch and count < self.batch:
                    # A smaller batch would be compiled or recorded again.
                    batch, part, _ = _filled(batch, part, self.batch)
                images.append(self._chain(batch, part)[-1].output[:count].float().cpu())
                progress.update(count)
                count_images(count)
        found = torch.cat(images)
        if not torch.isfinite(found).all():
            raise UserError(NOT_FINITE)
        return found

    def _chain(self, latent: Latent, labels: np.ndarray, start: Start | None = None) -> list[SamplingStep]:
        (base, noises, inputs), chosen = self._fed(latent, labels)
        if start is None:
            return sample(self.schedule, self._network, base, noises, chosen, self.posterior, inputs)
        level = start.level
        real = decode(block_sums(start.images, level), level, self.schedule.scale).transpose(0, 3, 1, 2)
        state = marginal(self.schedule, to_device(torch.from_numpy(real), self.device), level, noises[-level])
        remaining = noises[len(noises) - level + 1 :]
        return sample_from(self.schedule, self._network, state, remaining, chosen, self.posterior, inputs[-level:])

    def _fed(self, latent: Latent, labels: np.ndarray) -> tuple[Latent, torch.Tensor | None]:
        """Copy a batch to the device; no labels if the network takes none."""
        chosen = to_device(torch.from_numpy(labels), self.device) if self.classes else None
        return latent.map(lambda values: to_device(values, self.device)), chosen

    def _checked(self, count: int, labels: Sequence[int | str] | int | str | None) -> np.ndarray:
        if count < 1:
            raise UserError(f"count: must be at least 1, got {count}")
        if labels is None:
            return self.balanced_labels(count)
        if not self.classes:
            raise UserError(UNCONDITIONAL)
        several = [labels] * count if isinstance(labels, int | str | np.integer) else labels
        # Text is a name and a number a number, even if classes have numbers for names.
        numbers = [self.class_numbers([label])[0] if isinstance(label, str) else label for label in several]
        if len(numbers) != count:
            raise UserError(f"labels: {count} images need {count} labels, got {len(numbers)}")
        chosen = np.asarray(numbers)
        if chosen.shape != (count,) or not np.issubdtype(chosen.dtype, np.integer):
            raise UserError("labels: must be names of classes, or whole numbers")
        if chosen.min() < 0 or chosen.max() >= self.classes:
            raise UserError(f"labels: must be in 0..{self.classes - 1}, got {chosen.min()}..{chosen.max()}")
        return chosen.astype(np.int64)


def _filled(
    latent: Latent, labels: np.ndarray, batch: int, start: Start | None = None
) -> tuple[Latent, np.ndarray, Start | None]:
    """Fill up a batch with its last image."""
    missing = batch - len(labels)
    filled = latent.map(lambda part: torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]))
    if start is not None:
        start = start._replace(images=np.pad(start.images, ((0, missing), (0, 0), (0, 0), (0, 0)), mode="edge"))
    return filled, np.pad(labels, (0, missing), mode="edge"), start


def _guided(network: Network, weight: float) -> Network:
    """Return f(∅) + w·(f(y) - f(∅)): two evaluations of the network in one call with twice the batch."""

    def call(x: torch.Tensor, time: float, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        both = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
        conditional, free = network(torch.cat([x, x]), time, both).chunk(2)
        return free + weight * (conditional - free)

    return call
