"""Training: the loop, an iteration, and a step of one network."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch

from udpm.config.experiment import RunConfig
from udpm.core import devices
from udpm.core.devices import as_user_errors
from udpm.core.distributed import Agreement, RankInfo, all_reduce_mean, detect_ranks, process_group
from udpm.core.errors import UserError
from udpm.core.work import StopRequest
from udpm.data.levels import Levels
from udpm.diffusion.schedule import Schedule
from udpm.networks.inference import compile_network
from udpm.runs.attempts import Attempt, attempted, make_folder
from udpm.runs.config_guard import preparation_changes
from udpm.runs.lock import STALE_SECONDS, RunLock
from udpm.training.augmentation import check_colours
from udpm.training.batch import (
    Batches,
    DataLocation,
    Prefetcher,
    TrainingBatch,
    draw_level,
    draw_noise,
    drops_out,
    players_at,
    seed_dropout,
)
from udpm.training.graphs import RecordedPasses, recorder_for
from udpm.training.losses import (
    LossWeights,
    discriminator_losses,
    generator_losses,
    loss_weights,
)
from udpm.training.metrics import Metrics, NotFinite
from udpm.training.perceptual import Perceptual, load_lpips
from udpm.training.state import State
from udpm.training.trackers.follow import check_installed
from udpm.training.writer import RunWriter

Losses = dict[str, torch.Tensor]


def train(
    config: RunConfig,
    levels: Levels,
    run: Path,
    stop: StopRequest | bool,
    *,
    max_minutes: float | None = None,
    allow_world_size_change: bool = False,
    stale: float = STALE_SECONDS,
    attempt: Attempt | None = None,
) -> None:
    """Train until `training.iterations`, from the newest checkpoint in the run's folder if there is one.

    Writes ``attempts.jsonl``, ``config.json``, ``checkpoints/``, ``metrics.jsonl`` and milestones, if configured
    ``previews/`` and the trackers' files, and at the end ``weights.safetensors`` and ``complete.json``. Waits while
    another trainer holds the folder.

    Args:
        stop: true once training is to stop; read after every iteration.
        max_minutes: stop after this time, with the state saved.
        allow_world_size_change: continue a run of another number of processes, and record it.
        stale: seconds without a sign of life after which another trainer counts as dead.
        attempt: this attempt, if already begun (`udpm.runs.attempts`).

    Raises:
        StoppedEarly: stopped by a signal or `max_minutes` with the state saved, or another trainer took over.
        UserError: the folder holds another run, the number of processes is wrong, the data set was prepared with
            another configuration, a loss is not finite, or an extra is not installed.
    """
    deadline = time.monotonic() + 60 * max_minutes if max_minutes is not None else float("inf")
    with open_run(config, levels, run, stop, deadline, stale, attempt, allow_world_size_change) as writer:
        if not writer.begin():
            return
        with as_user_errors(_memory_advice(config, writer.device)), closing(writer):
            trainer = Trainer(config, levels, writer.device, writer.ranks)
            metrics = writer.resume(trainer.state, trainer.iterations)
            try:
                while (iteration := trainer.state.iteration) < trainer.iterations:
                    trainer.iterate(metrics)
                    writer.after_iteration(trainer.learning_rate(iteration))
            except NotFinite as problem:
                writer.fail(problem, partial(trainer.global_batch, problem.player, problem.iteration))
            writer.finish()


@contextmanager
def open_run(
    config: RunConfig,
    levels: Levels,
    run: Path,
    stop: StopRequest | bool,
    deadline: float,
    stale: float,
    attempt: Attempt | None,
    allow_world_size_change: bool,
) -> Iterator[RunWriter]:
    """Connect the processes of a training and lock the run's folder, waiting while another trainer holds it.

    The arguments are those of `train`; `deadline` is on the monotonic clock.

    Raises:
        StoppedEarly: a signal came while waiting.
        UserError: the number of processes is wrong, the data set was prepared with another configuration, the device or
            an extra is missing.
    """
    with nullcontext(attempt) if attempt is not None else attempted(run, config, allow_world_size_change) as attempt:
        if otherwise := preparation_changes(levels.store.record, config.dataset):
            raise UserError(
                f"{levels.store.folder}: was prepared with another configuration than the run's "
                f"({'; '.join(otherwise.values())}); resolve the run again, or prepare the data set again"
            )
        check_colours(config.losses.augmentation, levels)
        training, ranks = config.training, detect_ranks(config.training.processes)
        check_installed(training.trackers)
        local = ranks.local if ranks.world > 1 else None
        device = devices.configure(
            training.device, training.threads, local, tf32=training.tf32, own_gpu=ranks.by_srun, stop=stop
        )
        make_folder(run)
        with process_group(ranks, _backend(config, device), run, stop, device):
            agreement = Agreement(ranks)
            with RunLock(run, stop, stale, attempt.record) if ranks.rank == 0 else nullcontext() as owner:
                attempt.take_over()
                # Barrier: no rank reads the folder before rank 0 has locked it.
                agreement.any_rank(False)
                yield RunWriter(
                    config, levels, run, stop, device, ranks, agreement, owner, attempt, deadline,
                    allow_world_size_change,
                )  # fmt: skip


class Trainer:
    """One run: its state, its data, and one iteration.

    Raises:
        UserError: LPIPS cannot be loaded, or the epochs have less than one batch.
    """

    def __init__(self, config: RunConfig, levels: Levels, device: torch.device, ranks: RankInfo | None = None) -> None:
        self.config, self.device, self.ranks = config, device, ranks or RankInfo()
        self.schedule = Schedule.from_config(config.process)
        self.loss_weights = loss_weights(config)
        self._levels = levels
        images = self._images(self.ranks, config.training.data)
        self.iterations = _iterations(config, images)
        self.batches: Callable[[str, int], TrainingBatch] = self.batch_source(config, images)
        if config.training.workers:
            self.batches = Prefetcher(self.batches, self.players, config.training.workers, self.iterations, device)
        self.state = State.fresh(config, device)
        self._calls: dict[str, Callable[..., torch.Tensor]] = {**self.state.networks}
        if config.training.compile:
            self._calls = {name: compile_network(network, "training.compile") for name, network in self._calls.items()}
        self.perceptual: Perceptual | None = None
        if any(weights.lpips for weights in self.loss_weights):
            losses = config.losses
            self.perceptual = load_lpips(losses.lpips_network, losses.lpips_exponent, device)
        self.autocast = partial(
            torch.autocast, device.type, torch.bfloat16, enabled=config.training.precision == "bfloat16"
        )
        record, self.graphs = recorder_for(config, device), None
        if record is not None:
            parameters = {name: list(network.parameters()) for name, network in self.state.networks.items()}
            self.graphs = RecordedPasses(self._run_pass, parameters, record, accumulate=config.training.accumulate > 1)

    def iterate(self, metrics: Metrics | None = None) -> None:
        """Train for one iteration: a discriminator step if due, a generator step, an update of the EMA."""
        for player in self.players(self.state.iteration):
            level, losses = self.train_step(player, self.state.iteration)
            if metrics is not None:
                metrics.add(player, level, losses)
        self.state.update_ema()
        self.state.iteration += 1

    def train_step(self, player: str, iteration: int) -> tuple[int, Losses]:
        """Take one optimizer step of one network, "discriminator" or "generator"; iterations count from 0.

        Returns:
            The level, and losses and the gradient's norm as scalars on the device.
        """
        network, optimizer = self.state.networks[player], self.state.optimizers[player]
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration, player)
        batch = self.batches(player, iteration)
        weights = self.loss_weights[batch.level - 1].at(iteration)
        compute_losses = self.losses_of(player, weights)
        optimizer.zero_grad(set_to_none=True)
        found, parts = [], self.config.training.accumulate
        for index, part in enumerate(batch.split(parts), start=self.ranks.rank * parts):
            if drops_out(self.config, player, weights.dropout):
                seed_dropout(self.config, player, iteration, index)
            if self.graphs is not None:
                found.append(self.graphs(player, part, weights))
                continue
            with self.autocast():
                losses = compute_losses(weights, part)
            found.append(self._backward(losses))
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        all_reduce_mean(gradients, self.ranks)
        means = found[0]
        if len(found) > 1:
            means = {name: torch.stack([losses[name] for losses in found]).mean() for name in means}
        means["gradient"] = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        return batch.level, means

    def losses_of(self, player: str, weights: LossWeights) -> Callable[[LossWeights, TrainingBatch], Losses]:
        """Return the loss function of a player's step, and set the train and eval modes that it needs."""
        state, training_discriminator = self.state, player == "discriminator"
        if self.config.generator.dropout:
            state.generator.train(not training_discriminator)
        if state.discriminator is not None:
            state.discriminator.train(training_discriminator).requires_grad_(training_discriminator)
        generator, discriminator = self._calls["generator"], self._calls.get("discriminator")
        if not training_discriminator:
            return partial(generator_losses, generator, discriminator, self.perceptual, self.schedule)
        # A compiled network cannot be differentiated twice.
        trained = state.discriminator if weights.penalised else discriminator
        assert trained is not None
        return partial(discriminator_losses, generator, trained, self.schedule)

    def players(self, iteration: int) -> list[str]:
        """Return the players of an iteration, in order."""
        return players_at(self.config, iteration)

    def learning_rate(self, iteration: int, player: str = "generator") -> float:
        """Return rate · min(1, iteration/warmup), after it on half a cosine to its end; iterations count from 0."""
        training = self.config.training
        rate = training.learning_rate
        if player == "discriminator" and training.discriminator_learning_rate is not None:
            rate = training.discriminator_learning_rate
        if iteration < training.warmup:
            return rate * (iteration / training.warmup)
        if training.learning_rate_end == 1:
            return rate
        decays = (training.decay_iterations or self.iterations) - training.warmup
        left = (1 + math.cos(math.pi * min(1.0, (iteration - training.warmup) / decays))) / 2
        return rate * (training.learning_rate_end + (1 - training.learning_rate_end) * left)

    def batch_source(self, config: RunConfig, images: Batches) -> Callable[[str, int], TrainingBatch]:
        """Return a function that makes the batch of a player's step; `images` gives this process's part."""

        def make(player: str, iteration: int) -> TrainingBatch:
            level = draw_level(config, player, iteration)
            target, labels = images(iteration, level)
            std = self.loss_weights[level - 1].at(iteration).noise
            return draw_noise(config, player, iteration, level, target, labels, std, images.part)

        return make

    def global_batch(self, player: str, iteration: int) -> TrainingBatch:
        """Return the batch of a player's step over all processes."""
        return self.batch_source(self.config, self._images(RankInfo(), "memory"))(player, iteration)

    def _run_pass(self, player: str, batch: TrainingBatch, weights: LossWeights) -> Losses:
        """Run the forward and backward pass of `train_step`, for CUDA graphs to record."""
        compute_losses = self.losses_of(player, weights)
        with self.autocast():
            losses = compute_losses(weights, batch)
        return self._backward(losses)

    def _backward(self, losses: Losses) -> Losses:
        """Add the gradients of a part of the batch, scaled for a mean over parts, and return its losses, detached."""
        (losses["total"] / self.config.training.accumulate).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _images(self, ranks: RankInfo, location: DataLocation) -> Batches:
        training = self.config.training
        return Batches(
            self._levels,
            self.schedule.scale,
            training.batch,
            self.config.seed,
            flip=training.flip,
            device=self.device,
            location=location,
            rank=ranks.rank,
            world=ranks.world,
        )


def _iterations(config: RunConfig, images: Batches) -> int:
    training = config.training
    passes = images.iterations_in(training.epochs) if training.epochs else training.iterations
    if not passes:
        raise UserError(
            f"training.epochs: {training.epochs} of data set {config.dataset_name} have less than one batch of "
            f"{training.batch}; lower training.batch"
        )
    return min(training.iterations, passes)


def _memory_advice(config: RunConfig, device: torch.device) -> str:
    """Return what to change if memory runs out."""
    training = config.training
    advice = [f"raise training.accumulate (is {training.accumulate}) or lower training.batch (is {training.batch})"]
    if device.type == "cuda" and training.data != "memory":
        advice.append("keep the images off the GPU (training.data: memory)")
    if device.type == "cuda" and training.precision == "float32":
        advice.append("train in training.precision: bfloat16")
    return ", ".join(advice)


def _backend(config: RunConfig, device: torch.device) -> str:
    if config.training.backend == "nccl" and device.type != "cuda":
        raise UserError("training.backend: nccl needs GPUs, but this training is on the CPU; use auto or gloo")
    if config.training.backend != "auto":
        return config.training.backend
    return "nccl" if device.type == "cuda" else "gloo"
