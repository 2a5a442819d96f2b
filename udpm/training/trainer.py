"""One iteration of training: a discriminator step, a generator step, an update of the average."""

from __future__ import annotations

from collections.abc import Callable

import torch

from udpm.config.experiment import RunConfig
from udpm.core.distributed import Place, average
from udpm.core.errors import UserError
from udpm.data.levels import Levels
from udpm.data.loader import Batches, Residence
from udpm.diffusion.schedule import Schedule
from udpm.networks.inference import compiled
from udpm.training.draws import Ahead, Draws, players_at
from udpm.training.graphs import RecordedPasses, recorder_for
from udpm.training.metrics import Metrics
from udpm.training.noise import drops_out, seed_dropout
from udpm.training.objective import Draw, LevelTerms, discriminator_losses, generator_losses, level_terms
from udpm.training.perceptual import Perceptual, load_lpips
from udpm.training.state import State


class Trainer:
    """One run: its state, its data, and one iteration.

    Args:
        config: of the run.
        levels: the data set and its caches.
        device: where to train.
        place: this process among those that train together.

    Raises:
        UserError: LPIPS cannot be loaded, or the epochs are less than one batch.
    """

    def __init__(self, config: RunConfig, levels: Levels, device: torch.device, place: Place | None = None) -> None:
        self.config, self.device, self.place = config, device, place or Place()
        self.schedule = Schedule.from_config(config.process)
        self.terms = level_terms(config)
        self._levels = levels
        batches = self._batches(self.place, config.training.data)
        self.iterations = _iterations(config, batches)
        self.draws = self.feed(config, batches)
        if config.training.workers:
            self.draws = Ahead(self.draws, self.players, config.training.workers, self.iterations, device)
        self.state = State.fresh(config, device)
        self._calls = {name: self._prepared(network) for name, network in self.state.players().items()}
        self._passes = self._recorded()
        self.perceptual: Perceptual | None = None
        if any(terms.lpips for terms in self.terms):
            losses = config.losses
            self.perceptual = load_lpips(losses.lpips_network, losses.lpips_exponent, device)

    def feed(self, config: RunConfig, batches: Batches) -> Draws:
        """What each player's step is fed, as a configuration says."""
        return Draws(config, self.terms, batches)

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
        self.state.average()
        self.state.iteration += 1

    def _step(self, player: str, iteration: int) -> tuple[int, dict[str, torch.Tensor]]:
        """Gradients over the parts of this process's batch, their mean over all processes, and Adam's step."""
        optimizer, network = self.state.optimizers[player], self.state.players()[player]
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate(iteration, player)
        draw = self.draws(player, iteration)
        terms = self.terms[draw.level - 1].at(iteration)
        optimizer.zero_grad(set_to_none=True)
        chunks = draw.chunks(self.config.training.accumulate)
        found = [self._gradients(player, chunk, terms, iteration, index) for index, chunk in enumerate(chunks)]
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        average(gradients, self.place)
        losses = found[0]
        if len(found) > 1:
            losses = {name: torch.stack([losses[name] for losses in found]).mean() for name in losses}
        losses["gradient"] = torch.nn.utils.get_total_norm(gradients)
        optimizer.step()
        return draw.level, losses

    def _gradients(
        self, player: str, draw: Draw, terms: LevelTerms, iteration: int, index: int
    ) -> dict[str, torch.Tensor]:
        if drops_out(self.config, player, terms.dropout):
            seed_dropout(self.config, player, iteration, self.place.rank, index)
        return self._passes(player, draw, terms)

    def _backward(self, player: str, draw: Draw, terms: LevelTerms) -> dict[str, torch.Tensor]:
        training = self.config.training
        with torch.autocast(self.device.type, torch.bfloat16, enabled=training.precision == "bfloat16"):
            losses = self._losses(player, draw, terms)
        (losses["total"] / training.accumulate).backward()
        return {name: value.detach() for name, value in losses.items()}

    def _losses(self, player: str, draw: Draw, terms: LevelTerms) -> dict[str, torch.Tensor]:
        generator, discriminator = self.state.generator, self.state.discriminator
        if self.config.generator.dropout:
            generator.train(player == "generator")
        if discriminator is not None:
            discriminator.train(player == "discriminator").requires_grad_(player == "discriminator")
        generate, judge = self._calls["generator"], self._calls.get("discriminator")
        if player == "discriminator":
            if terms.r1 > 0:
                # What is compiled cannot be differentiated twice.
                judge = discriminator
            return discriminator_losses(generate, judge, self.schedule, terms, draw)
        return generator_losses(generate, judge, self.perceptual, self.schedule, terms, draw)

    def whole_draw(self, player: str, iteration: int) -> Draw:
        """What all processes together are fed in a player's step."""
        return Draws(self.config, self.terms, self._batches(Place(), "memory"))(player, iteration)

    def _batches(self, place: Place, residence: Residence) -> Batches:
        training = self.config.training
        return Batches(
            self._levels,
            self.schedule.scale,
            training.batch,
            self.config.seed,
            flip=training.flip,
            device=self.device,
            residence=residence,
            rank=place.rank,
            world=place.world,
        )

    def _recorded(self) -> Callable[[str, Draw, LevelTerms], dict[str, torch.Tensor]]:
        """The forward and backward pass of a player's step, recorded where that is asked for."""
        record = recorder_for(self.config, self.device)
        if record is None:
            return self._backward
        parameters = {name: list(network.parameters()) for name, network in self.state.players().items()}
        return RecordedPasses(self._backward, parameters, record, accumulate=self.config.training.accumulate > 1)

    def _prepared(self, network: torch.nn.Module) -> Callable[..., torch.Tensor]:
        """The network as it is called: compiled where that is asked for."""
        return compiled(network, "training.compile") if self.config.training.compile else network


def _iterations(config: RunConfig, batches: Batches) -> int:
    training = config.training
    passes = batches.iterations_in(training.epochs) if training.epochs else training.iterations
    if not passes:
        raise UserError(
            f"training.epochs: {training.epochs} of data set {config.dataset_name} make no whole batch of "
            f"{training.batch}; lower training.batch"
        )
    return min(training.iterations, passes)
