"""Images from a trained generator; noise is drawn per image, or comes from a file."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from udpm.config.dataset import class_number
from udpm.core.arrays import check_array
from udpm.core.devices import AsyncHostCopy, bind_thread, pinned, to_device, to_uint8
from udpm.core.errors import UserError
from udpm.core.files import sha256
from udpm.core.progress import delay_by_one, prefetch
from udpm.core.provenance import count_images
from udpm.data.npz import read_npz
from udpm.diffusion.process import adjoint
from udpm.diffusion.sampler import Latent, Network, SamplingStep, join, sample, seeded
from udpm.diffusion.schedule import PosteriorForm, Schedule
from udpm.networks.inference import Precision, prepare_for_inference
from udpm.networks.layers import NO_LABEL
from udpm.networks.weights import Model

LARGEST = 1e4
"""No noise is larger: it still has a place in float16."""

NoiseSource = Callable[[range], Latent]
"""The noise of images of given numbers, on the CPU."""


def stored(path: str | Path, schedule: Schedule, side: int, count: int) -> tuple[NoiseSource, dict[str, Any]]:
    """Noise from a file: .npz with `base` (n, 3, N, N) and `eps_L` … `eps_1`, eps_l of (n, 3, N/2^l, N/2^l).

    Args:
        path: the file.
        schedule: for the number of levels.
        side: N.
        count: images that are wanted.

    Returns:
        The source, and the file's identity for the record.

    Raises:
        UserError: missing, unreadable, arrays missing, of other shapes or not finite, or too few images.
    """
    sides = {"base": side} | {f"eps_{level}": side >> level for level in range(schedule.levels, 0, -1)}
    arrays = read_npz(path, "noise file", names=sides)
    for name in sides:
        if name not in arrays:
            raise UserError(f"{path}: array {name} not found; this model needs {', '.join(sides)}")
    check_array(f"{path}: base", arrays["base"], np.floating, ("n", 3, side, side))
    count_held = len(arrays["base"])
    for name, size in sides.items():
        check_array(f"{path}: {name}", arrays[name], np.floating, (count_held, 3, size, size))
        if np.abs(arrays[name]).max() > LARGEST:
            raise UserError(f"{path}: {name} holds values beyond ±{LARGEST:g}; expected standard normal noise")
    if count_held < count:
        raise UserError(f"{path}: holds the noise of {count_held} images, but {count} are wanted")
    maps = [torch.from_numpy(arrays[name].astype(np.float32)) for name in sides]

    def look_up(numbers: range) -> Latent:
        base, *noises = [values[numbers.start : numbers.stop] for values in maps]
        return Latent(base, tuple(noises))

    return look_up, {"file": Path(path).name, "sha256": sha256(path)}


UNCONDITIONAL = "labels: this model is unconditional; leave them out"
NOT_FINITE = "the network's outputs are not finite (NaN or infinite), so these weights and this noise draw no images"


class Sampler:
    """Draws images; each one's noise comes from (seed, its number), whatever else is drawn beside it.

    Args:
        model: loaded weights.
        posterior: "scalar" or "exact".
        batch: images per network call.
        guidance: w of classifier-free guidance; 1 is none.
        precision: of the network; the chain stays float32. The model's own weights are prepared for it, in place.
        compiles: whether the network is compiled by torch.compile.
        graphs: whether a GPU replays CUDA graphs of the uncompiled network.

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
    ) -> None:
        self.model = model
        self.schedule = Schedule.from_config(model.config.process)
        self.posterior: PosteriorForm = posterior
        self.batch = batch
        self.classes = model.generator.shape.classes
        self.class_names: list[str] = model.record.get("class_names", [])
        self.drops_labels = model.generator.shape.label_dropout
        if guidance != 1 and not self.drops_labels:
            raise UserError("guidance: this model was not trained with label dropout; only 1 (none) is possible")
        network: Network = prepare_for_inference(model.generator, precision, compiles=compiles, graphs=graphs)
        self._network = network if guidance == 1 else _guided(network, guidance)
        self.nfe = self.schedule.levels * (1 if guidance == 1 else 2)
        self._device = next(model.generator.parameters()).device
        self._prefers_one_size = compiles or graphs

    def balanced_labels(self, count: int) -> np.ndarray:
        """Labels of images 0..count - 1: their number modulo the number of classes; zeros if unconditional."""
        return np.arange(count, dtype=np.int64) % max(self.classes, 1)

    def labels(self, count: int, wanted: str | Sequence[int | str] = "balanced") -> np.ndarray:
        """Labels of images 0..count - 1.

        Args:
            count: how many, > 0.
            wanted: "balanced"; "none", for a model trained with label dropout; or classes by name or number, taken in
                turn.

        Raises:
            UserError: labels out of range, or that this model does not know.
        """
        if wanted == "balanced":
            return self._checked(count, None)
        if wanted == "none":
            if not self.drops_labels:
                raise UserError("labels: none, but this model was not trained with label dropout")
            return np.full(count, NO_LABEL, dtype=np.int64)
        if not len(wanted):
            raise UserError("labels: the list is empty; name a class, or ask for balanced")
        return self._checked(count, np.resize(self.class_numbers(wanted), count).tolist())

    def class_numbers(self, labels: Sequence[int | str]) -> np.ndarray:
        """Numbers of classes that are given by name, or by number where no class has this number for a name.

        Raises:
            UserError: an unconditional model, or no class of such a name or number.
        """
        if not self.classes:
            raise UserError(UNCONDITIONAL)
        numbers = [class_number(label, self.class_names, self.classes) for label in labels]
        return np.array(numbers, dtype=np.int64)

    def sample(self, count: int, labels: Sequence[int | str] | int | str | None = None, seed: int = 0) -> np.ndarray:
        """Images 0..count - 1 of a seed.

        Args:
            count: how many, > 0.
            labels: one class for all, or one for each, by name ("cat") or by number from 0 (3); default balanced.
            seed: of the sample set.

        Returns:
            (count, N, N, 3) uint8, RGB.

        Raises:
            UserError: labels of the wrong number or range.
        """
        return self.images(self._checked(count, labels), seed)[1]

    def images(
        self, labels: np.ndarray, noise: int | NoiseSource, first: int = 0, levels: Sequence[int] = (1,)
    ) -> dict[int, np.ndarray]:
        """Images first..first + len(labels) - 1, and the network's outputs at coarser levels, at full side.

        A GPU is given a batch before the bytes of the last one are waited for.

        Args:
            labels: (n,) int64; `NO_LABEL` for none.
            noise: a seed, or where the noise comes from.
            first: number of the first image, a multiple of the batch.
            levels: whose outputs are wanted; 1 is the image.

        Returns:
            By level, (n, N, N, 3) uint8, RGB.

        Raises:
            UserError: the network's outputs are not finite, so that there are no images.
        """
        side, done = self.model.config.side, 0
        sets = {level: np.empty((len(labels), side, side, 3), dtype=np.uint8) for level in levels}
        launched = (
            (
                {step.level: AsyncHostCopy(self._shown(step)) for step in steps if step.level in sets},
                AsyncHostCopy(torch.isfinite(steps[-1].output).all()),
            )
            for steps in self.chains(labels, noise, first)
        )
        for batch, finite in delay_by_one(launched):
            if not finite.wait():
                raise UserError(NOT_FINITE)
            count = min(self.batch, len(labels) - done)
            for level, drawn in batch.items():
                sets[level][done : done + count] = drawn.wait().numpy()
            done += count
        return sets

    def _shown(self, step: SamplingStep) -> torch.Tensor:
        """f of a level as an image of side N: (Hᵀ)^{l-1} f, in the scale of images, as bytes."""
        times, scale = step.level - 1, self.schedule.scale
        # (Hᵀ)^k multiplies by (s/4)^k and f by s^k; dividing by both leaves block means, repeated.
        return to_uint8(adjoint(step.output, scale, times) * (4 / scale**2) ** times)

    @torch.inference_mode()
    def chains(self, labels: np.ndarray, noise: int | NoiseSource, first: int = 0) -> Iterator[list[SamplingStep]]:
        """The sampling chains of images first..first + len(labels) - 1, batch by batch.

        All batches of a set have one size, the last one is filled up: bits of an image depend on it, and are thus the
        same in whichever job of several it is drawn.

        Args:
            labels: (n,) int64; `NO_LABEL` for none.
            noise: a seed, or where the noise comes from.
            first: number of the first image, a multiple of the batch.
        """
        source = self._seeded(noise) if isinstance(noise, int) else noise
        several = first + len(labels) > self.batch

        def prepared(part: np.ndarray, start: int) -> tuple[Latent, np.ndarray]:
            latent = source(range(start, start + len(part)))
            if several and len(part) < self.batch:
                latent, part = _filled(latent, part, self.batch)
            base, *noises = [pinned(values, self._device) for values in (latent.base, *latent.noises)]
            return Latent(base, tuple(noises)), part

        starts = range(0, len(labels), self.batch)
        parts = [labels[start : start + self.batch] for start in starts]
        feed = prefetch(
            lambda index: prepared(parts[index], first + starts[index]),
            range(len(parts)),
            begin=partial(bind_thread, self._device),
        )
        with (
            closing(feed),
            tqdm(total=len(labels), unit="image", desc="sample", disable=not sys.stderr.isatty()) as progress,
        ):
            for part, (latent, chosen) in zip(parts, feed, strict=True):
                steps = self._chain(latent, chosen)
                yield steps if len(chosen) == len(part) else [_cut(step, len(part)) for step in steps]
                progress.update(len(part))
                count_images(len(part))

    def latent(self, seed: int) -> Latent:
        """The latent of image 0 of a seed, on the CPU."""
        return self._seeded(seed)(range(1))

    @torch.inference_mode()
    def decode(self, latents: Sequence[Latent], labels: Sequence[int]) -> torch.Tensor:
        """Images of given latents.

        Args:
            latents: n, each of one image.
            labels: n classes; of no effect if unconditional.

        Returns:
            (n, 3, N, N) float32 in about [-1, 1], on the CPU.

        Raises:
            UserError: the network's outputs are not finite.
        """
        chosen, images = np.asarray(labels, dtype=np.int64), []
        with tqdm(total=len(latents), unit="image", desc="decode", disable=not sys.stderr.isatty()) as progress:
            for start in range(0, len(latents), self.batch):
                batch, part = join(latents[start : start + self.batch]), chosen[start : start + self.batch]
                count = len(part)
                if self._prefers_one_size and len(latents) > self.batch and count < self.batch:
                    # The network would be compiled or recorded anew for a smaller batch.
                    batch, part = _filled(batch, part, self.batch)
                images.append(self._chain(batch, part)[-1].output[:count].float().cpu())
                progress.update(count)
                count_images(count)
        found = torch.cat(images)
        if not torch.isfinite(found).all():
            raise UserError(NOT_FINITE)
        return found

    def _chain(self, latent: Latent, labels: np.ndarray) -> list[SamplingStep]:
        return sample(self.schedule, self._network, *self._fed(latent, labels), self.posterior)

    def _fed(self, latent: Latent, labels: np.ndarray) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor | None]:
        """A batch on the device: base, noises, and labels where the network takes any."""
        base, *noises = [to_device(values, self._device) for values in (latent.base, *latent.noises)]
        return base, noises, to_device(torch.from_numpy(labels), self._device) if self.classes else None

    def _seeded(self, seed: int) -> NoiseSource:
        return partial(seeded, self.schedule, self.model.config.side, seed)

    def _checked(self, count: int, labels: Sequence[int | str] | int | str | None) -> np.ndarray:
        if count < 1:
            raise UserError(f"count: must be at least 1, got {count}")
        if labels is None:
            return self.balanced_labels(count)
        if not self.classes:
            raise UserError(UNCONDITIONAL)
        several = [labels] * count if isinstance(labels, int | str | np.integer) else labels
        # Text is a name; a number here is a number, even where classes have numbers for names.
        numbers = [self.class_numbers([label])[0] if isinstance(label, str) else label for label in several]
        if len(numbers) != count:
            raise UserError(f"labels: {count} images need {count} labels, got {len(numbers)}")
        chosen = np.asarray(numbers)
        if chosen.shape != (count,) or not np.issubdtype(chosen.dtype, np.integer):
            raise UserError("labels: must be names of classes, or whole numbers")
        if chosen.min() < 0 or chosen.max() >= self.classes:
            raise UserError(f"labels: must be in 0..{self.classes - 1}, got {chosen.min()}..{chosen.max()}")
        return chosen.astype(np.int64)


def _filled(latent: Latent, labels: np.ndarray, batch: int) -> tuple[Latent, np.ndarray]:
    """A batch filled up with its last image."""
    missing = batch - len(labels)
    maps = (latent.base, *latent.noises)
    base, *noises = [torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) for part in maps]
    return Latent(base, tuple(noises)), np.pad(labels, (0, missing), mode="edge")


def _cut(step: SamplingStep, count: int) -> SamplingStep:
    return step._replace(state=step.state[:count], output=step.output[:count])


def _guided(network: Network, weight: float) -> Network:
    """f(∅) + w·(f(y) - f(∅)): two evaluations of the network in one call of twice the batch."""

    def call(x: torch.Tensor, time: float, labels: torch.Tensor | None) -> torch.Tensor:
        assert labels is not None
        both = torch.cat([labels, torch.full_like(labels, NO_LABEL)])
        conditional, free = network(torch.cat([x, x]), time, both).chunk(2)
        return free + weight * (conditional - free)

    return call
