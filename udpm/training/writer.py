"""The run's folder during training: claim, resume, save, finish.

Only rank 0 writes, and only while it holds the folder's lock; all processes decide alike to save or to stop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from udpm.config.experiment import RunConfig
from udpm.config.validation import validate
from udpm.core import devices, provenance
from udpm.core.arrays import sealed
from udpm.core.distributed import Agreement, RankInfo
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import remove_temporary, sha256, write_json
from udpm.core.provenance import count_images
from udpm.core.work import StopRequest
from udpm.data.levels import Levels
from udpm.networks.inference import count_parameters
from udpm.networks.weights import save_weights
from udpm.runs.attempts import Attempt
from udpm.runs.config_guard import check_config, state_changes
from udpm.runs.layout import milestone
from udpm.runs.lock import RECORD, RunLock
from udpm.runs.records import CHECKPOINTS, COMPLETE, RUN_FORMAT, SEALED, WEIGHTS, is_finished, read_complete
from udpm.training.batch import TrainingBatch
from udpm.training.checkpoint import forget_after, resume, save_checkpoint, save_failure
from udpm.training.estimate import estimate_resources, milestone_warning
from udpm.training.metrics import (
    Metrics,
    NotFinite,
    Watch,
    draw_preview,
    preview_path,
    progress_line,
    progress_text,
    write_preview,
)
from udpm.training.posthoc import save_snapshot
from udpm.training.state import State
from udpm.training.trackers.follow import Trackers


@dataclass
class RunWriter:
    """The run's folder, as seen by one process of an attempt.

    Attributes:
        stop: true once training is to stop; read after every iteration.
        owner: the folder's lock, on rank 0.
        deadline: on the monotonic clock, like `saved`.
        allow_world_size_change: accept another number of processes than before.
        history: numbers of processes so far, with their first iterations.
        origin: of the initial weights, if they were imported.
        saved: time of the last checkpoint.
        trackers: on rank 0, from `resume` on.
        finished: the weights are written.
        state: to save; set by `resume`, like the following.
        iterations: of the whole training.
        metrics: of the interval.
        watch: of the discriminator, whose verdicts are logged.
        progress: a bar, on terminals.
    """

    config: RunConfig
    levels: Levels
    run: Path
    stop: StopRequest | bool
    device: torch.device
    ranks: RankInfo
    agreement: Agreement
    owner: RunLock | None
    attempt: Attempt
    deadline: float
    allow_world_size_change: bool
    history: list[dict[str, int]] = field(default_factory=list)
    origin: dict[str, Any] | None = None
    saved: float = 0.0
    trackers: Trackers | None = None
    finished: bool = False
    state: State = field(init=False)
    iterations: int = field(init=False)
    metrics: Metrics = field(init=False)
    watch: Watch = field(init=False)
    progress: tqdm = field(init=False)

    def begin(self) -> bool:
        """Claim the folder for this run; return False if training is complete.

        Raises:
            UserError: the folder holds another run, or this one trained on other images.
        """
        check_config(self.run, self.config, self.allow_world_size_change, writes=False)
        train_split = self.levels.store.split("train")
        ends = self.config.training.ends_at(train_split.stop - train_split.start)
        if is_finished(self.run, ends, self.levels.store.digest):
            self._check_images(self.run, read_complete(self.run))
            self._log(f"{self.run}: complete already, nothing to do")
            return False
        self.attempt.begin()
        check_config(self.run, self.config, self.allow_world_size_change, writes=self.owner is not None)
        return True

    def resume(self, state: State, iterations: int) -> Metrics:
        """Load the newest checkpoint or the initial weights into `state`; return the metrics to add to.

        Raises:
            StoppedEarly: the processes read different checkpoints.
            UserError: a checkpoint is of another run, or none can be read.
        """
        self.state, self.iterations = state, iterations
        folder = self.run / CHECKPOINTS
        description = resume(folder, state, iterations, self._check_checkpoint)
        if not self.agreement.all_equal(state.iteration):
            raise StoppedEarly(f"{folder}: the processes read different checkpoints: run the same command again")
        if self.owner is not None:
            forget_after(folder, state.iteration)
            remove_temporary(self.run, keep=RECORD)
            for part in (CHECKPOINTS, "milestones", "snapshots", "failures", "previews"):
                remove_temporary(self.run / part)
        if description is None:
            if self.config.weights is not None:
                self.origin = state.start_from(self.config)
        else:
            self.history, self.origin = description["processes"], description["origin"]
            self._log(f"resumed at iteration {state.iteration}", sys.stderr)
        if not self.history or self.history[-1]["processes"] != self.ranks.world:
            self.history.append({"from_iteration": state.iteration, "processes": self.ranks.world})
        self.metrics = Metrics(self.run / "metrics.jsonl", state.iteration, self.ranks)
        self.watch = Watch(self.config.losses.adversarial_start)
        self._warn_disk()
        if self.owner is not None:
            self.trackers = Trackers(self.run, self.config, state.iteration, self.owner.is_held)
        interactive = sys.stderr.isatty() and self.owner is not None
        self.progress = tqdm(total=iterations, initial=state.iteration, desc="train", disable=not interactive)
        self.saved = time.monotonic()
        return self.metrics

    def _check_checkpoint(self, checkpoint: Path, description: dict[str, Any]) -> None:
        """Check that a checkpoint has this run's images and configuration."""
        self._check_images(checkpoint, description)
        earlier = validate(RunConfig, description["run"], str(checkpoint))
        changed = state_changes(earlier, self.config)
        if changed:
            shown = "; ".join(changed.values())
            raise UserError(f"{checkpoint}: is of another run ({shown}); remove it from the folder")

    def _check_images(self, where: Path, record: dict[str, Any]) -> None:
        differs = self.levels.store.difference(record)
        if differs:
            raise UserError(
                f"{where}: was trained on {differs}; restore that data set, or give the experiment a new name"
            )

    def _warn_disk(self) -> None:
        """Log the disk space of the remaining milestones if it is large."""
        needs = estimate_resources(self.config, self.iterations)
        warning = milestone_warning(needs, self.state.iteration, self.config.training.keep_every, self.run)
        if warning is not None:
            self._log(warning, sys.stderr)

    def after_iteration(self, learning_rate: float) -> None:
        """Write what is due after an iteration; stop on a signal or at the deadline.

        Raises:
            NotFinite: a loss or a gradient of the last interval is not finite.
            StoppedEarly: stopped with the state saved, or another trainer took over.
            UserError: the disk is full or cannot be written, or the processes' weights differ.
        """
        training, iteration = self.config.training, self.state.iteration
        self.metrics.tick()
        count_images(training.batch)
        self.progress.update()
        overdue = time.monotonic() - self.saved > 60 * training.checkpoint_minutes
        stop, timeout, checkpoint_due = self.agreement.any_rank(
            bool(self.stop), time.monotonic() > self.deadline, overdue
        )
        stopping = (stop or timeout) and iteration < self.iterations
        saves = stopping or iteration == self.iterations or checkpoint_due or iteration % training.checkpoint_every == 0
        keeps = training.keep_every and iteration % training.keep_every == 0
        # The losses are checked before weights are written.
        logs = saves or keeps or iteration % training.log_every == 0
        shows = training.preview_every and iteration % training.preview_every == 0
        if logs:
            self._write_metrics(learning_rate)
        if shows:
            self._commit(self._save_preview)
        if self.trackers is not None and (logs or shows):
            self.trackers.note(iteration)
        if keeps:
            self._commit(self._save_milestone)
        if self.state.power_models and (keeps or iteration == self.iterations):
            self._commit(self._save_snapshot)
        if saves:
            self._check_replicas_equal()
            self._commit(self._save_checkpoint)
            self.saved = time.monotonic()
        if stopping:
            signal = str(self.stop) if self.stop else "another process's signal"
            raise StoppedEarly(
                f"stopped on {signal if stop else '--max-minutes'} at iteration {iteration} of {self.iterations}, "
                "state saved: run the same command again"
            )

    def _write_metrics(self, learning_rate: float) -> None:
        """Write a line of metrics and log it."""
        line = self.metrics.take(self.state.iteration, learning_rate, self.config.training.batch)
        self._commit(lambda: self.metrics.write(line))
        if self.progress.disable:
            self._log(progress_line(line, self.iterations, self.config.training.batch), sys.stderr)
        else:
            self.progress.set_postfix_str(progress_text(line), refresh=False)
        for text in self.watch.verdicts(line, self.config.process.levels):
            self._log(f"warning: {text}; `udpm diagnose` measures it on held-out images", sys.stderr)

    def _save_preview(self) -> None:
        """Draw and save a preview with the first average, or the trained weights without one."""
        state = self.state
        network = next((ema.module for ema in state.ema_models.values()), state.generator)
        write_preview(preview_path(self.run, state.iteration), draw_preview(network, self.config.model))

    def _save_milestone(self) -> None:
        """Keep the averaged weights, or the trained ones without an average, for good."""
        state = self.state
        networks = {name: ema.module.state_dict() for name, ema in state.ema_models.items()}
        path = milestone(self.run, state.iteration)
        save_weights(path, self.config.model, networks or {"raw": state.generator.state_dict()}, self._description())

    def _save_snapshot(self) -> None:
        """Keep the averages that `udpm average` combines."""
        averages = {name: model.module.state_dict() for name, model in self.state.power_models.items()}
        save_snapshot(self.run, self.state.iteration, averages, self._description())

    def _save_checkpoint(self) -> None:
        # Not in weight files: their bytes stay as they were before splits were recorded.
        save_checkpoint(self.run / CHECKPOINTS, self.state, self._description() | self.levels.store.identity)

    def _check_replicas_equal(self) -> None:
        """Check that all processes have the same weights and averages."""
        if self.ranks.world > 1 and not self.agreement.all_equal(self.state.fingerprint()):
            raise UserError(
                f"{self.run}: the processes' weights differ after iteration {self.state.iteration}: their machines "
                "do not compute alike; the last checkpoint is older"
            )

    def fail(self, problem: NotFinite, batch: Callable[[], TrainingBatch]) -> None:
        """Save state and batch of an iteration whose loss is not finite, and end the training.

        `batch` makes the batch of all processes.

        Raises:
            UserError: always.
        """
        kept = "state and batch are in failures/"
        try:
            self._commit(lambda: save_failure(self.run, self.state, problem, batch(), self._description()))
        except UserError as error:
            kept = f"state and batch are not kept: {error}"
        raise UserError(f"{self.run}: {problem} ({kept}; the last checkpoint is older)") from None

    def finish(self) -> None:
        """Write the weights and the completion record."""
        self._commit(self._write_result)
        self.finished = True
        self._log(f"{self.run / WEIGHTS}: {self.state.iteration} iterations of training")

    def _write_result(self) -> None:
        weights, state = self.run / WEIGHTS, self.state
        networks = {name: ema.module.state_dict() for name, ema in state.ema_models.items()}
        networks["raw"] = state.generator.state_dict()
        # The record of a shorter training must never describe the new weights.
        (self.run / COMPLETE).unlink(missing_ok=True)
        save_weights(weights, self.config.model, networks, self._description())
        record = {
            "format": RUN_FORMAT,
            "experiment": self.config.experiment,
            "seed": self.config.seed,
            "iterations": state.iteration,
            "seconds": self.metrics.seconds,
            "cpu_seconds": self.metrics.cpu_seconds,
            "parameters": {name: count_parameters(network) for name, network in state.networks.items()},
            "device": devices.describe(self.device),
            "processes": self.history,
            "origin": self.origin,
            **self.levels.store.identity,
            **self._class_names(),
            "weights_sha256": sha256(weights),
            "provenance": provenance.record(),
        }
        write_json(self.run / COMPLETE, sealed(record, SEALED))

    def close(self) -> None:
        """Close the progress bar, and let trackers end, for a limited time."""
        if hasattr(self, "progress"):
            self.progress.close()
        if self.trackers is not None:
            self.trackers.close(self.finished)

    def _commit(self, write: Callable[[], None]) -> None:
        """Let rank 0 write if it still holds the lock; all processes continue, or none does."""
        lost, problem = False, None
        if self.owner is not None:
            lost = not self.owner.is_held()
            if not lost:
                try:
                    write()
                except (UserError, OSError) as error:
                    problem = error if isinstance(error, UserError) else UserError(f"{self.run}: {error}")
                    lost = not self.owner.is_held()
        taken, failed = self.agreement.any_rank(lost, problem is not None)
        if taken:
            raise StoppedEarly(f"{self.run}: another trainer took over; this one writes nothing more")
        if problem is not None:
            raise problem from None
        if failed:
            raise StoppedEarly(f"{self.run}: rank 0 could not write")

    def _description(self) -> dict[str, Any]:
        return {
            "experiment": self.config.experiment,
            "run_seed": self.config.seed,
            "dataset": self.config.dataset_name,
            "dataset_sha256": self.levels.store.digest,
            **self._class_names(),
            "iteration": self.state.iteration,
            "processes": self.history,
            "origin": self.origin,
            "run": self.config.model_dump(mode="json"),
        }

    def _class_names(self) -> dict[str, list[str]]:
        """Return the class names of a conditional network, if the data set has any."""
        names = self.levels.store.class_names if self.config.model.classes else []
        return {"class_names": names} if names else {}

    def _log(self, text: str, file: Any = None) -> None:
        # Training does not fail because a log cannot be written.
        if self.ranks.rank == 0:
            with suppress(OSError):
                print(text, file=file or sys.stdout)
