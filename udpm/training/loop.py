"""The training loop: one command trains, and the same command continues."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from udpm.config.experiment import RunConfig
from udpm.config.load import read_resolved, to_json
from udpm.core import provenance, runtime
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import read_json, sha256, write_json, write_text
from udpm.core.signals import StopRequest
from udpm.data.batches import Batches
from udpm.data.cache import Levels
from udpm.networks.weights import milestone, save_weights
from udpm.process.schedule import Schedule
from udpm.training.draws import Ahead, Draws, players_at
from udpm.training.metrics import Metrics
from udpm.training.noise import seed_dropout
from udpm.training.objective import Draw, LevelTerms, discriminator_losses, generator_losses, level_terms
from udpm.training.perceptual import Perceptual, load_lpips
from udpm.training.state import State, resume, save_checkpoint

INCIDENTAL = {
    "dataset.description",
    "dataset.licence",
    "dataset.path",
    "training.checkpoint_every",
    "training.data",
    "training.device",
    "training.keep_every",
    "training.log_every",
    "training.workers",
}
"""Keys that may change between attempts: they have no influence on the weights."""


class Trainer:
    """One run: its state, its data, and one iteration.

    Args:
        config: of the run.
        levels: the data set and its caches.
        device: where to train.

    Raises:
        UserError: weights to start from do not fit, LPIPS cannot be loaded, or the epochs are less than one batch.
    """

    def __init__(self, config: RunConfig, levels: Levels, device: torch.device) -> None:
        self.config, self.device = config, device
        self.schedule = Schedule.from_config(config.process)
        self.terms = level_terms(config)
        training = config.training
        batches = Batches(
            levels,
            self.schedule.scale,
            training.batch,
            config.seed,
            flip=training.flip,
            device=device,
            residence=training.data,
        )
        passes = batches.iterations_in(training.epochs) if training.epochs else training.iterations
        if not passes:
            raise UserError(
                f"training.epochs: {training.epochs} of data set {config.dataset_name} make no whole batch of "
                f"{training.batch}; lower training.batch"
            )
        self.iterations = min(training.iterations, passes)
        self.draws = Draws(config, self.terms, batches)
        if training.workers:
            self.draws = Ahead(self.draws, self.players, training.workers, self.iterations)
        self.state = State.fresh(config, device)
        self.perceptual: Perceptual | None = None
        if any(terms.lpips for terms in self.terms):
            losses = config.losses
            self.perceptual = load_lpips(losses.lpips_network, losses.lpips_exponent, device)

    def players(self, iteration: int) -> list[str]:
        """Who takes a step in an iteration, in order."""
        return players_at(self.config, iteration)

    def learning_rate(self, iteration: int, player: str = "generator") -> float:
        """rate · min(1, iteration/warmup); iterations count from 0."""
        training = self.config.training
        rate = training.learning_rate
        if player == "discriminator" and training.discriminator_learning_rate is not None:
            rate = training.discriminator_learning_rate
        return rate * min(1.0, iteration / training.warmup) if training.warmup else rate

    def iterate(self, metrics: Metrics | None = None) -> None:
        """One iteration: a discriminator step (where it is due), a generator step, an update of the average."""
        for player in self.players(self.state.iteration):
            level, losses = self._step(player, self.state.iteration)
            if metrics is not None:
                metrics.add(player, level, losses)
        if self.state.averaged is not None:
            self.state.averaged.update_parameters(self.state.generator)
        self.state.iteration += 1

    def _step(self, player: str, iteration: int) -> tuple[int, dict[str, torch.Tensor]]:
        optimizer = self.state.optimizers[player]
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration, player)
        draw = self.draws(player, iteration)
        seed_dropout(self.config, player, iteration)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.training.precision == "bfloat16"):
            losses = self._losses(player, draw, self.terms[draw.level - 1].at(iteration))
        optimizer.zero_grad(set_to_none=True)
        losses["total"].backward()
        optimizer.step()
        return draw.level, losses

    def _losses(self, player: str, draw: Draw, terms: LevelTerms) -> dict[str, torch.Tensor]:
        generator, discriminator = self.state.generator, self.state.discriminator
        generator.train(player == "generator")
        if discriminator is not None:
            discriminator.train(player == "discriminator").requires_grad_(player == "discriminator")
        if player == "discriminator":
            return discriminator_losses(generator, discriminator, self.schedule, terms, draw)
        return generator_losses(generator, discriminator, self.perceptual, self.schedule, terms, draw)


def train(config: RunConfig, levels: Levels, run: Path, stop: StopRequest) -> None:
    """Train until `training.iterations`, from the newest checkpoint in the run's folder if there is one.

    Writes ``config.json``, ``checkpoints/``, ``metrics.jsonl`` and, at the end, ``weights.safetensors`` and
    ``complete.json``.

    Args:
        config: of the run.
        levels: the data set and its caches.
        run: the run's folder.
        stop: asked after every iteration.

    Raises:
        StoppedEarly: a signal asked for it; the state is saved.
        UserError: another process trains in this folder, it holds another run, or a loss is not finite.
    """
    if config.training == "imported":
        raise UserError(f"{run}: training is imported, so there is nothing to train; `udpm import` makes this run")
    run.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(run / ".lock", timeout=0):
            _train(config, levels, run, stop)
    except Timeout:
        raise UserError(f"{run}: another process is training in this folder; wait for it or stop it") from None


def _train(config: RunConfig, levels: Levels, run: Path, stop: StopRequest) -> None:
    _claim(run, config)
    device = runtime.configure(config.training.device, config.training.threads)
    if _is_complete(run, levels.store.digest):
        print(f"{run}: complete already, nothing to do")
        return
    trainer = Trainer(config, levels, device)
    state, folder = trainer.state, run / "checkpoints"
    description = resume(folder, state)
    if description is not None and description["dataset_sha256"] != levels.store.digest:
        raise UserError(f"{run}: was trained on other images than those in {levels.store.folder}; delete the run")
    if state.iteration:
        print(f"resumed at iteration {state.iteration}", file=sys.stderr)
    metrics = Metrics(run / "metrics.jsonl", state.iteration)
    _loop(trainer, metrics, folder, stop, levels.store.digest)
    _finish(run, trainer, metrics, levels.store.digest)


def _loop(trainer: Trainer, metrics: Metrics, folder: Path, stop: StopRequest, digest: str) -> None:
    training, state, total = trainer.config.training, trainer.state, trainer.iterations
    remaining = range(state.iteration, total)
    interactive = sys.stderr.isatty()
    with tqdm(total=total, initial=state.iteration, desc="train", disable=not interactive) as progress:
        for _ in remaining:
            trainer.iterate(metrics)
            metrics.tick()
            progress.update()
            stopping = bool(stop) and state.iteration < total
            last = stopping or state.iteration == total
            saves = last or state.iteration % training.checkpoint_every == 0
            if saves or state.iteration % training.log_every == 0:
                rate = metrics.write(state.iteration, trainer.learning_rate(state.iteration - 1), training.batch)
                if not interactive:
                    _log(state.iteration, total, rate / training.batch)
            if training.keep_every and state.iteration % training.keep_every == 0:
                _keep(trainer, folder.parent, digest)
            if saves:
                save_checkpoint(folder, state, trainer.config, digest)
            if stopping:
                raise StoppedEarly(
                    f"stopped on {stop} at iteration {state.iteration} of {total}, state saved: "
                    "run the same command again"
                )


def _keep(trainer: Trainer, run: Path, digest: str) -> None:
    """A milestone: the averaged weights (the trained ones where there is no average), for good."""
    state = trainer.state
    kind, network = ("raw", state.generator) if state.averaged is None else ("ema", state.averaged.module)
    path = milestone(run / "weights.safetensors", state.iteration)
    description = _description(trainer.config, state.iteration, digest)
    save_weights(path, trainer.config.model, {kind: network.state_dict()}, description)


def _log(iteration: int, total: int, rate: float) -> None:
    minutes = (total - iteration) / rate / 60
    print(f"iteration {iteration} of {total}, {rate:.2f} per second, {minutes:.1f} minutes left", file=sys.stderr)


def _finish(run: Path, trainer: Trainer, metrics: Metrics, digest: str) -> None:
    weights, state = run / "weights.safetensors", trainer.state
    networks = {"raw": state.generator.state_dict()}
    if state.averaged is not None:
        networks = {"ema": state.averaged.module.state_dict(), **networks}
    save_weights(weights, trainer.config.model, networks, _description(trainer.config, state.iteration, digest))
    write_json(
        run / "complete.json",
        {
            "format": "udpm-run/1",
            "experiment": trainer.config.experiment,
            "seed": trainer.config.seed,
            "iterations": state.iteration,
            "seconds": metrics.seconds,
            "parameters": {name: _count(player) for name, player in state.players().items()},
            "device": runtime.describe(trainer.device),
            "dataset_sha256": digest,
            "weights_sha256": sha256(weights),
            "provenance": provenance.record(),
        },
    )


def _description(config: RunConfig, iteration: int, digest: str) -> dict[str, Any]:
    return {
        "experiment": config.experiment,
        "run_seed": config.seed,
        "dataset": config.dataset_name,
        "dataset_sha256": digest,
        "iteration": iteration,
        "run": config.model_dump(mode="json"),
    }


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def _is_complete(run: Path, digest: str) -> bool:
    record, weights = run / "complete.json", run / "weights.safetensors"
    if not (record.exists() and weights.exists()):
        return False
    found = read_json(record, "completion record")
    return found.get("weights_sha256") == sha256(weights) and found.get("dataset_sha256") == digest


def _claim(run: Path, config: RunConfig) -> None:
    """Write the run's configuration into its folder, or check that it is the one already there."""
    path = run / "config.json"
    if path.exists():
        earlier = _flat(read_resolved(RunConfig, path).model_dump(mode="json"))
        now = _flat(config.model_dump(mode="json"))
        changed = [key for key in now | earlier if now.get(key) != earlier.get(key) and key not in INCIDENTAL]
        if changed:
            shown = "; ".join(f"{key} was {earlier.get(key)!r}, is {now.get(key)!r}" for key in changed)
            raise UserError(
                f"{run}: holds a run of another configuration ({shown}); undo the change, give the experiment a new "
                "name, or delete the folder"
            )
    write_text(path, to_json(config))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
