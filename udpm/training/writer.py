"""What a training writes into its run's folder, and how the folder is claimed, resumed and finished.

Only rank 0 writes, and only while the folder is still its own; all processes decide alike to save or to stop.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from udpm.config.experiment import RunConfig
from udpm.config.validation import validate
from udpm.core import devices, provenance
from udpm.core.arrays import sealed
from udpm.core.distributed import Agreement, RankInfo
from udpm.core.errors import StoppedEarly, UserError
from udpm.core.files import remove_temporary, sha256, write_json
from udpm.core.processes import StopRequest
from udpm.core.provenance import count_images
from udpm.data.levels import Levels
from udpm.networks.flops import parameters
from udpm.networks.weights import save_weights
from udpm.runs.attempts import Attempt
from udpm.runs.config_guard import (
    ITERATIONS,
    MUTABLE_KEYS,
    WORLD_SIZE_KEYS,
    check_config,
    differences,
)
from udpm.runs.layout import milestone
from udpm.runs.lock import RECORD, RunLock
from udpm.runs.records import SEALED, is_finished, read_complete
from udpm.training.batch import TrainingBatch
from udpm.training.checkpoint import forget_after, resume, save_checkpoint, save_failure
from udpm.training.estimate import estimate_resources, milestone_warning
from udpm.training.metrics import Events, Metrics, NotFinite, progress_line, progress_text
from udpm.training.previews import draw_preview, preview_path, write_preview
from udpm.training.state import State


@dataclass
class RunWriter:
    """The run's folder, as one of the processes of an attempt sees it.

    Attributes:
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
        allow_world_size_change: whether the number of processes may be another than before.
        history: numbers of processes so far, and from which iteration.
        origin: of the weights that training started from, if any.
        saved: when the last checkpoint was written, on the monotonic clock.
        events: TensorBoard's, where they are asked for.
        state: what is saved; given to `resume`, as are the following.
        iterations: at the end of training.
        metrics: of the interval.
        progress: a bar, on terminals.
    """

    config: RunConfig
    levels: Levels
    run: Path
    stop: StopRequest | bool
    device: torch.device
    place: RankInfo
    agreement: Agreement
    owner: RunLock | None
    attempt: Attempt
    deadline: float
    allow_world_size_change: bool
    history: list[dict[str, int]] = field(default_factory=list)
    origin: dict[str, Any] | None = None
    saved: float = 0.0
    events: Events | None = None
    state: State = field(init=False)
    iterations: int = field(init=False)
    metrics: Metrics = field(init=False)
    progress: tqdm = field(init=False)

    def begin(self) -> bool:
        """Claim the folder for this run; return whether anything is left to train.

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
        """Load the newest checkpoint, or the weights to start from; return the metrics to add to.

        Args:
            state: what is loaded into, and saved from now on.
            iterations: at the end of training.

        Raises:
            StoppedEarly: not all processes could read the same checkpoint.
            UserError: a checkpoint is of another run, or none of them can be read.
        """
        self.state, self.iterations = state, iterations
        folder = self.run / "checkpoints"
        description = resume(folder, state, iterations, self._check_checkpoint)
        if not self.agreement.all_equal(state.iteration):
            raise StoppedEarly(f"{folder}: not all processes could read the same one: run the same command again")
        if self.owner is not None:
            forget_after(folder, state.iteration)
            remove_temporary(self.run, keep=RECORD)
            for part in ("checkpoints", "milestones", "failures", "previews"):
                remove_temporary(self.run / part)
        if description is None:
            if self.config.weights is not None:
                self.origin = state.start_from(self.config)
        else:
            self.history, self.origin = description["processes"], description["origin"]
            self._log(f"resumed at iteration {state.iteration}", sys.stderr)
        if not self.history or self.history[-1]["processes"] != self.place.world:
            self.history.append({"from_iteration": state.iteration, "processes": self.place.world})
        self.metrics = Metrics(self.run / "metrics.jsonl", state.iteration, self.place)
        self._warn_disk()
        if self.config.training.tensorboard and self.owner is not None:
            self.events = Events(self.run / "tensorboard", state.iteration)
        interactive = sys.stderr.isatty() and self.owner is not None
        self.progress = tqdm(total=iterations, initial=state.iteration, desc="train", disable=not interactive)
        self.saved = time.monotonic()
        return self.metrics

    def _check_checkpoint(self, checkpoint: Path, description: dict[str, Any]) -> None:
        """Check that a checkpoint is this run's: of these images, and of this configuration."""
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

    def _check_images(self, where: Path, record: dict[str, Any]) -> None:
        differs = self.levels.store.difference(record)
        if differs:
            raise UserError(
                f"{where}: was trained on {differs}; bring that data set back, or give the experiment a new name"
            )

    def _warn_disk(self) -> None:
        """Say how much disk the milestones still ahead will take, where that is much."""
        needs = estimate_resources(self.config, self.iterations)
        warning = milestone_warning(needs, self.state.iteration, self.config.training.keep_every, self.run)
        if warning is not None:
            self._log(warning, sys.stderr)

    def after_iteration(self, learning_rate: float) -> None:
        """Write what is due after an iteration, and stop where that is asked for.

        Args:
            learning_rate: of the iteration.

        Raises:
            NotFinite: a loss or a gradient of the last interval is not.
            StoppedEarly: a signal or the time asked for it, and the state is saved; or another trainer took over.
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
        # Nothing is written before its losses were looked at.
        if saves or keeps or iteration % training.log_every == 0:
            self._write_metrics(learning_rate)
        if training.preview_every and iteration % training.preview_every == 0:
            self._save_preview()
        if keeps:
            self._commit(self._save_milestone)
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
        """Write a line of metrics, and show it."""
        line = self.metrics.take(self.state.iteration, learning_rate, self.config.training.batch)

        def write() -> None:
            self.metrics.write(line)
            if self.events is not None:
                self.events.add_line(line)

        self._commit(write)
        if self.progress.disable:
            self._log(progress_line(line, self.iterations, self.config.training.batch), sys.stderr)
        else:
            self.progress.set_postfix_str(progress_text(line), refresh=False)

    def _save_preview(self) -> None:
        """Save images that rank 0 draws while the others wait."""
        state, grid = self.state, None
        if self.owner is not None:
            network = next((ema.module for ema in state.ema_models.values()), state.generator)
            grid = draw_preview(network, self.config.model)
        self._commit(lambda: self._write_preview(grid))

    def _write_preview(self, grid: np.ndarray | None) -> None:
        assert grid is not None
        write_preview(preview_path(self.run, self.state.iteration), grid)
        if self.events is not None:
            self.events.add_image(grid, self.state.iteration)

    def _save_milestone(self) -> None:
        """Keep the averaged weights (the trained ones where there is no average), for good."""
        state = self.state
        networks = {name: ema.module.state_dict() for name, ema in state.ema_models.items()}
        path = milestone(self.run, state.iteration)
        save_weights(path, self.config.model, networks or {"raw": state.generator.state_dict()}, self._description())

    def _save_checkpoint(self) -> None:
        # Weights do not say their splits: the bytes of a model stay what they were.
        save_checkpoint(self.run / "checkpoints", self.state, self._description() | self.levels.store.identity)

    def _check_replicas_equal(self) -> None:
        """Check that all processes hold the same weights and averages; if not, nothing of this is worth saving."""
        if self.place.world > 1 and not self.agreement.all_equal(self.state.fingerprint()):
            raise UserError(
                f"{self.run}: the processes' weights differ after iteration {self.state.iteration}: their machines "
                "do not compute alike; the last checkpoint is from before that"
            )

    def fail(self, problem: NotFinite, batch: Callable[[], TrainingBatch]) -> None:
        """Keep state and batch of an iteration whose loss is not finite, and end the training.

        Args:
            problem: which loss of which iteration.
            batch: makes the batch of all processes.

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
        self._log(f"{self.run / 'weights.safetensors'}: {self.state.iteration} iterations of training")

    def _write_result(self) -> None:
        weights, state = self.run / "weights.safetensors", self.state
        networks = {name: ema.module.state_dict() for name, ema in state.ema_models.items()}
        networks["raw"] = state.generator.state_dict()
        # A record of fewer iterations: it must not stand next to weights that it does not describe.
        (self.run / "complete.json").unlink(missing_ok=True)
        save_weights(weights, self.config.model, networks, self._description())
        record = {
            "format": "udpm-run/1",
            "experiment": self.config.experiment,
            "seed": self.config.seed,
            "iterations": state.iteration,
            "seconds": self.metrics.seconds,
            "parameters": {name: parameters(network) for name, network in state.networks.items()},
            "device": devices.describe(self.device),
            "processes": self.history,
            "origin": self.origin,
            **self.levels.store.identity,
            **self._class_names(),
            "weights_sha256": sha256(weights),
            "provenance": provenance.record(),
        }
        write_json(self.run / "complete.json", sealed(record, SEALED))

    def close(self) -> None:
        """Let go of event files and progress bar."""
        if self.events is not None:
            self.events.close()
        if hasattr(self, "progress"):
            self.progress.close()

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
        taken, failed = self.agreement.any_rank(lost, problem is not None)
        if taken:
            raise StoppedEarly(f"{self.run}: another trainer took it over; nothing more is written by this one")
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
        """Return the names of the classes that the network knows, where they have any."""
        names = self.levels.store.class_names if self.config.model.classes else []
        return {"class_names": names} if names else {}

    def _log(self, text: str, file: Any = None) -> None:
        # A log that cannot be written is no reason to end.
        if self.place.rank == 0:
            with suppress(OSError):
                print(text, file=file or sys.stdout)
