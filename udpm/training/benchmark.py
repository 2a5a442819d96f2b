"""How fast a run trains on this machine, and where the time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from udpm.config.experiment import RunConfig
from udpm.core import runtime
from udpm.core.errors import UserError
from udpm.data.cache import Levels
from udpm.networks.cost import count_cost
from udpm.training.trainer import Trainer

WARM_UP = 5
MATRIX = 2048
PRODUCTS = 8


class Clock:
    """Seconds spent in named parts; waits for the device on both sides of each."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.seconds: dict[str, float] = {}

    def now(self) -> float:
        """Seconds, once the device has done all it was given."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def timed(self, part: str, function: Callable) -> Callable:
        """The function, its time added to `part`."""

        def call(*arguments, **options):
            with self.of(part):
                return function(*arguments, **options)

        return call

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Add the time of a block to `part`."""
        since = self.now()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + self.now() - since


def bench_training(config: RunConfig, levels: Levels, iterations: int) -> list[str]:
    """Train so many iterations twice, first undisturbed for the speed, then with clocks around the parts.

    Args:
        config: of a run; its number of processes is ignored.
        levels: its data set and caches.
        iterations: measured, after a few that are not.

    Returns:
        Lines to print.

    Raises:
        UserError: training is imported.
    """
    if config.training == "imported":
        raise UserError(f"{config.experiment}: training is imported; there is nothing to measure")
    training = config.training
    device = runtime.configure(training.device, training.threads, tf32=training.tf32)
    trainer = Trainer(config, levels, device)
    clock = Clock(device)
    for _ in range(WARM_UP):
        trainer.iterate()
    since = clock.now()
    for _ in range(iterations):
        trainer.iterate()
    rate = iterations / (clock.now() - since)
    return [
        f"{config.experiment} on {runtime.describe(device)}: batch {training.batch}, {training.precision}"
        f"{', TF32' * (training.tf32 and device.type == 'cuda')}{', channels last' * training.channels_last}"
        f"{', compiled' * training.compile}",
        f"{rate:.2f} iterations/s, {rate * training.batch:.1f} images/s",
        *_shares(trainer, clock, iterations),
        *_utilisation(trainer, rate),
        *_memory(device),
    ]


def _shares(trainer: Trainer, clock: Clock, iterations: int) -> list[str]:
    """Time by part; a step's own share is what remains of it without its parts."""
    trainer.draws = clock.timed("data and noise", trainer.draws)
    if trainer.perceptual is not None:
        trainer.perceptual.forward = clock.timed("LPIPS", trainer.perceptual.forward)
    for player, optimizer in trainer.state.optimizers.items():
        optimizer.step = clock.timed(f"optimiser, {player}", optimizer.step)
    trainer.state.average = clock.timed("averages", trainer.state.average)
    gradients = trainer._gradients

    def timed(player: str, *arguments):
        with clock.of(f"{player} step"):
            return gradients(player, *arguments)

    trainer._gradients = timed
    with clock.of("all"):
        for _ in range(iterations):
            trainer.iterate()
    seconds, whole = clock.seconds, clock.seconds.pop("all")
    if "LPIPS" in seconds:
        seconds["generator step"] -= seconds["LPIPS"]
    seconds["rest"] = whole - sum(seconds.values())
    ordered = sorted(seconds.items(), key=lambda item: -item[1])
    return [f"  {part:24} {100 * spent / whole:5.1f} %" for part, spent in ordered]


def _utilisation(trainer: Trainer, rate: float) -> list[str]:
    """The generator's and discriminator's multiply-adds against what a large matrix product reaches here."""
    config = trainer.config
    calls = count_cost(config).calls
    shares = config.training.level_probabilities or [1 / len(calls)] * len(calls)
    forward = sum(share * call for share, call in zip(shares, calls, strict=True))
    # A step costs its forward pass three times; the discriminator's step adds the generator's forward pass.
    per_image = 3 * forward + (forward if config.adversarial else 0)
    used = 2 * per_image * config.training.batch * rate
    reached = _product_speed(trainer)
    return [
        f"generator's own arithmetic: {used / 1e9:.4g} GFLOP/s, {100 * used / reached:.1f} % of the "
        f"{reached / 1e9:.4g} GFLOP/s that a {MATRIX}×{MATRIX} matrix product reaches here"
    ]


def _product_speed(trainer: Trainer) -> float:
    kind = torch.bfloat16 if trainer.config.training.precision == "bfloat16" else torch.float32
    matrix = torch.randn(MATRIX, MATRIX, device=trainer.device, dtype=kind)
    clock = Clock(trainer.device)
    matrix @ matrix
    since = clock.now()
    for _ in range(PRODUCTS):
        matrix @ matrix
    return PRODUCTS * 2 * MATRIX**3 / (clock.now() - since)


def _memory(device: torch.device) -> list[str]:
    if device.type != "cuda":
        return []
    return [f"GPU memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB at most"]
