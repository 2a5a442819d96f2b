"""The training loop: one command trains, and the same command continues."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from udpm.config.experiment import RunConfig
from udpm.config.load import validate
from udpm.core import devices, provenance
from udpm.core.arrays import sealed
from udpm.core.devices import as_user_errors
from udpm.core.distributed import Agreement, Place, find_place, joined
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import remove_temporary, sha256, write_json
from udpm.core.processes import StopRequest
from udpm.core.usage import count_images
from udpm.data.levels import Levels
from udpm.networks.weights import save_weights
from udpm.runs.attempts import Attempt, attempted, make_folder
from udpm.runs.config_guard import (
    ITERATIONS,
    MUTABLE_KEYS,
    WORLD_SIZE_KEYS,
    check_config,
    differences,
    preparation_changes,
)
from udpm.runs.layout import milestone
from udpm.runs.lock import RECORD, STALE_SECONDS, RunLock
from udpm.runs.records import SEALED, is_finished, read_complete
from udpm.training.checkpoint import forget_after, resume, save_checkpoint
from udpm.training.events import Events, writer_class
from udpm.training.failure import save_failure
from udpm.training.metrics import Metrics, NotFinite
from udpm.training.needs import count_needs, milestone_needs
from udpm.training.previews import draw_preview, preview_path, write_preview
from udpm.training.telling import postfix, progress_line
from udpm.training.trainer import Trainer


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

    Writes ``attempts.jsonl``, ``config.json``, ``checkpoints/``, ``metrics.jsonl``, milestones, where they are asked
    for ``previews/`` and ``tensorboard/``, and, at the end, ``weights.safetensors`` and ``complete.json``. While
    another trainer is at work in the folder, waits for it.

    Args:
        config: of the run.
        levels: the data set and its caches.
        run: the run's folder.
        stop: asked after every iteration.
        max_minutes: stop, with the state saved, after so long.
        allow_world_size_change: continue a run of another number of processes, and note it.
        stale: seconds after which another trainer that shows no sign of life is taken for dead.
        attempt: this attempt, if it has begun already (`udpm.runs.attempts`).

    Raises:
        StoppedEarly: a signal or the time asked for it and the state is saved; or another trainer took over.
        UserError: the folder holds another run, the number of processes is wrong, the data set was prepared otherwise
            than the configuration says, a loss is not finite, or an extra is not installed.
    """
    with nullcontext(attempt) if attempt is not None else attempted(run, config, allow_world_size_change) as attempt:
        _check_prepared(levels, config)
        training, place = config.training, find_place(config.training.processes)
        if training.tensorboard:
            writer_class()
        device = devices.configure(
            training.device, training.threads, place.local, tf32=training.tf32, own_gpu=place.by_srun
        )
        make_folder(run)
        deadline = time.monotonic() + 60 * max_minutes if max_minutes is not None else float("inf")
        with joined(place, _backend(config, device), run, stop, device):
            agreement = Agreement(place)
            with RunLock(run, stop, stale, attempt.record) if place.rank == 0 else nullcontext() as owner:
                attempt.take_over()
                # Nobody looks into the folder before it is this run's.
                agreement.any(False)
                session = Session(config, levels, run, stop, device, place, agreement, owner, attempt, deadline)
                session.train(allow_world_size_change)


def _check_prepared(levels: Levels, config: RunConfig) -> None:
    otherwise = preparation_changes(levels.store.record, config.dataset)
    if otherwise:
        raise UserError(
            f"{levels.store.folder}: was not prepared as the run's configuration says "
            f"({'; '.join(otherwise.values())}); resolve the run again, or prepare the data set again"
        )


class Session:
    """One attempt at a run, in one of its processes.

    Only rank 0 writes, and only while the run's folder is still its own; decisions to stop or to save are taken by all
    processes after the same iteration.

    Args:
        config: of the run.
        levels: the data set and its caches.
        run: the run's folder.
        stop: asked after every iteration.
        device: where to train.
        place: this process among all.
        agreement: with the others.
        owner: the claim to the folder, on rank 0.
        attempt: this attempt.
        deadline: on the monotonic clock.
    """

    def __init__(
        self,
        config: RunConfig,
        levels: Levels,
        run: Path,
        stop: StopRequest | bool,
        device: torch.device,
        place: Place,
        agreement: Agreement,
        owner: RunLock | None,
        attempt: Attempt,
        deadline: float,
    ) -> None:
        self.config, self.levels, self.run, self.stop = config, levels, run, stop
        self.device, self.place, self.agreement, self.owner = device, place, agreement, owner
        self.attempt, self.deadline = attempt, deadline
        self.digest = levels.store.digest
        training_split = levels.store.split("train")
        self.iterations = config.training.ends_at(training_split.stop - training_split.start)
        self.history: list[dict[str, int]] = []
        self.origin: dict[str, Any] | None = None
        self.events: Events | None = None

    def train(self, allow_world_size_change: bool) -> None:
        """Claim the folder, continue where the run stands, and bring it to its end."""
        check_config(self.run, self.config, allow_world_size_change, writes=False)
        if is_finished(self.run, self.iterations, self.digest):
            self._check_images(self.run, read_complete(self.run))
            self._say(f"{self.run}: complete already, nothing to do")
            return
        self.attempt.begin()
        check_config(self.run, self.config, allow_world_size_change, writes=self.owner is not None)
        relief = _relief(self.config, self.device)
        with as_user_errors(relief):
            trainer = Trainer(self.config, self.levels, self.device, self.place)
            self._continue(trainer)
        metrics = Metrics(self.run / "metrics.jsonl", trainer.state.iteration, self.place)
        self._say_needs(trainer)
        if self.config.training.tensorboard and self.owner is not None:
            self.events = Events(self.run / "tensorboard", trainer.state.iteration)
        with as_user_errors(relief):
            self._bring_to_its_end(trainer, metrics)

    def _bring_to_its_end(self, trainer: Trainer, metrics: Metrics) -> None:
        try:
            self._loop(trainer, metrics)
        except NotFinite as found:
            problem = found
            kept = "state and batch are in failures/"
            try:
                self._commit(lambda: save_failure(self.run, trainer, problem, self._description(trainer)))
            except UserError as error:
                kept = f"state and batch are not kept: {error}"
            raise UserError(f"{self.run}: {problem} ({kept}; the last checkpoint is older)") from None
        finally:
            if self.events is not None:
                self.events.close()
        self._commit(lambda: self._finish(trainer, metrics))
        self._say(f"{self.run / 'weights.safetensors'}: {trainer.state.iteration} iterations of training")

    def _continue(self, trainer: Trainer) -> None:
        folder = self.run / "checkpoints"
        description = resume(folder, trainer.state, trainer.iterations, self._check)
        if not self.agreement.same(trainer.state.iteration):
            raise StoppedEarly(f"{folder}: not all processes could read the same one: run the same command again")
        if self.owner is not None:
            forget_after(folder, trainer.state.iteration)
            remove_temporary(self.run, keep=RECORD)
            for part in ("checkpoints", "milestones", "failures", "previews"):
                remove_temporary(self.run / part)
        if description is None:
            if self.config.weights is not None:
                self.origin = trainer.state.start_from(self.config)
        else:
            self.history, self.origin = description["processes"], description["origin"]
            self._say(f"resumed at iteration {trainer.state.iteration}", file=sys.stderr)
        if not self.history or self.history[-1]["processes"] != self.place.world:
            self.history.append({"from_iteration": trainer.state.iteration, "processes": self.place.world})

    def _check(self, checkpoint: Path, description: dict[str, Any]) -> None:
        """Whether a checkpoint is this run's: of these images, and of this configuration."""
        self._check_images(checkpoint, description)
        earlier = validate(RunConfig, description["run"], str(checkpoint))
        changed = differences(earlier, self.config, MUTABLE_KEYS | WORLD_SIZE_KEYS | {ITERATIONS})
        if changed:
            shown = "; ".join(changed.values())
            raise UserError(f"{checkpoint}: is of another run ({shown}); take it out of the folder")
        if description["iteration"] > self.iterations:
            raise UserError(
                f"{checkpoint}: is of iteration {description['iteration']}, but training ends after {self.iterations}; "
                "take it out of the folder"
            )

    def _check_images(self, where: Path, told: dict[str, Any]) -> None:
        differs = self.levels.store.difference(told)
        if differs:
            raise UserError(
                f"{where}: was trained on {differs}; bring that data set back, or give the experiment a new name"
            )

    def _loop(self, trainer: Trainer, metrics: Metrics) -> None:
        training, state, total = self.config.training, trainer.state, trainer.iterations
        saved, interactive = time.monotonic(), sys.stderr.isatty() and self.owner is not None
        with tqdm(total=total, initial=state.iteration, desc="train", disable=not interactive) as progress:
            while state.iteration < total:
                trainer.iterate(metrics)
                metrics.tick()
                count_images(training.batch)
                progress.update()
                overdue = time.monotonic() - saved > 60 * training.checkpoint_minutes
                wishes = self.agreement.any(bool(self.stop), time.monotonic() > self.deadline, overdue)
                stopping = any(wishes[:2]) and state.iteration < total
                last = stopping or state.iteration == total
                saves = last or wishes[2] or state.iteration % training.checkpoint_every == 0
                keeps = training.keep_every and state.iteration % training.keep_every == 0
                # Nothing is written before its losses were looked at.
                if saves or keeps or state.iteration % training.log_every == 0:
                    told = self._log(trainer, metrics, interactive)
                    progress.set_postfix_str(told, refresh=False)
                if training.preview_every and state.iteration % training.preview_every == 0:
                    self._preview(trainer)
                if keeps:
                    self._commit(lambda: self._keep(trainer))
                if saves:
                    self._check_together(trainer)
                    self._commit(lambda: self._save(trainer))
                    saved = time.monotonic()
                if stopping:
                    signal = str(self.stop) if self.stop else "another process's signal"
                    reason = signal if wishes[0] else "--max-minutes"
                    raise StoppedEarly(
                        f"stopped on {reason} at iteration {state.iteration} of {total}, state saved: run the same "
                        "command again"
                    )

    def _save(self, trainer: Trainer) -> None:
        # Weights do not say their splits: the bytes of a model stay what they were.
        description = self._description(trainer) | self.levels.store.identity
        save_checkpoint(self.run / "checkpoints", trainer.state, description)

    def _check_together(self, trainer: Trainer) -> None:
        """All processes hold the same weights and averages; if not, nothing of this is worth saving."""
        if self.place.world > 1 and not self.agreement.same(trainer.state.fingerprint()):
            raise UserError(
                f"{self.run}: the processes' weights differ after iteration {trainer.state.iteration}: their machines "
                "do not compute alike; the last checkpoint is from before that"
            )

    def _log(self, trainer: Trainer, metrics: Metrics, interactive: bool) -> str:
        """Write a line of metrics, and tell it in a log; returns what a progress bar should say."""
        iteration, batch = trainer.state.iteration, self.config.training.batch
        line = metrics.take(iteration, trainer.learning_rate(iteration - 1), batch)
        self._commit(lambda: self._write_line(metrics, line))
        if not interactive:
            self._say(progress_line(line, trainer.iterations, batch), sys.stderr)
        return postfix(line)

    def _write_line(self, metrics: Metrics, line: dict[str, Any]) -> None:
        metrics.write(line)
        if self.events is not None:
            self.events.add_line(line)

    def _preview(self, trainer: Trainer) -> None:
        """Images that rank 0 draws while the others wait."""
        state, grid = trainer.state, None
        if self.owner is not None:
            network = next((average.module for average in state.averages.values()), state.generator)
            grid = draw_preview(network, self.config.model)
        self._commit(lambda: self._write_preview(grid, state.iteration))

    def _write_preview(self, grid: np.ndarray, iteration: int) -> None:
        write_preview(preview_path(self.run, iteration), grid)
        if self.events is not None:
            self.events.add_image(grid, iteration)

    def _commit(self, write: Callable[[], None]) -> None:
        """Let rank 0 write, if the folder is still its own; all processes go on together, or none does."""
        lost, problem = False, None
        if self.owner is not None:
            lost = not self.owner.is_held()
            if not lost:
                try:
                    write()
                except (UserError, OSError) as error:
                    problem = error if isinstance(error, UserError) else UserError(f"{self.run}: {error}")
                    lost = not self.owner.is_held()
        taken, failed = self.agreement.any(lost, problem is not None)
        if taken:
            raise StoppedEarly(f"{self.run}: another trainer took it over; nothing more is written by this one")
        if problem is not None:
            raise problem from None
        if failed:
            raise StoppedEarly(f"{self.run}: rank 0 could not write")

    def _keep(self, trainer: Trainer) -> None:
        """A milestone: the averaged weights (the trained ones where there is no average), for good."""
        state = trainer.state
        kept = {name: average.module.state_dict() for name, average in state.averages.items()}
        path = milestone(self.run, state.iteration)
        networks = kept or {"raw": state.generator.state_dict()}
        save_weights(path, self.config.model, networks, self._description(trainer))

    def _finish(self, trainer: Trainer, metrics: Metrics) -> None:
        weights, state = self.run / "weights.safetensors", trainer.state
        networks = {name: average.module.state_dict() for name, average in state.averages.items()}
        networks["raw"] = state.generator.state_dict()
        # A record of fewer iterations: it must not stand next to weights that it does not describe.
        (self.run / "complete.json").unlink(missing_ok=True)
        save_weights(weights, self.config.model, networks, self._description(trainer))
        record = {
            "format": "udpm-run/1",
            "experiment": self.config.experiment,
            "seed": self.config.seed,
            "iterations": state.iteration,
            "seconds": metrics.seconds,
            "parameters": {name: _count(player) for name, player in state.players().items()},
            "device": devices.describe(self.device),
            "processes": self.history,
            "origin": self.origin,
            **self.levels.store.identity,
            **self._class_names(),
            "weights_sha256": sha256(weights),
            "provenance": provenance.record(),
        }
        write_json(self.run / "complete.json", sealed(record, SEALED))

    def _say_needs(self, trainer: Trainer) -> None:
        """Say how much disk the milestones still ahead will take, where that is much."""
        needs = count_needs(self.config, trainer.iterations)
        told = milestone_needs(needs, trainer.state.iteration, self.config.training.keep_every, self.run)
        if told is not None:
            self._say(told, sys.stderr)

    def _description(self, trainer: Trainer) -> dict[str, Any]:
        return {
            "experiment": self.config.experiment,
            "run_seed": self.config.seed,
            "dataset": self.config.dataset_name,
            "dataset_sha256": self.digest,
            **self._class_names(),
            "iteration": trainer.state.iteration,
            "processes": self.history,
            "origin": self.origin,
            "run": self.config.model_dump(mode="json"),
        }

    def _class_names(self) -> dict[str, list[str]]:
        """Names of the classes that the network knows, where they have any."""
        names = self.levels.store.class_names if self.config.model.classes else []
        return {"class_names": names} if names else {}

    def _say(self, text: str, file: Any = None) -> None:
        # A log that cannot be written is no reason to end.
        if self.place.rank == 0:
            with suppress(OSError):
                print(text, file=file or sys.stdout)


def _backend(config: RunConfig, device: torch.device) -> str:
    if config.training.backend == "nccl" and device.type != "cuda":
        raise UserError("training.backend: nccl is for GPUs, and this training is on the CPU; use auto or gloo")
    if config.training.backend != "auto":
        return config.training.backend
    return "nccl" if device.type == "cuda" else "gloo"


def _relief(config: RunConfig, device: torch.device) -> str:
    """What to change where memory runs out."""
    training = config.training
    advice = [f"raise training.accumulate (is {training.accumulate}) or lower training.batch (is {training.batch})"]
    if device.type == "cuda" and training.data != "memory":
        advice.append("keep the images off the GPU (training.data: memory)")
    if device.type == "cuda" and training.precision == "float32":
        advice.append("train in training.precision: bfloat16")
    return ", ".join(advice)


def _count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())
