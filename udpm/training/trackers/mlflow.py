"""Metrics, previews and configuration in MLflow, on a server or in files of the run's folder."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from udpm.runs.config_guard import flat
from udpm.runs.layout import tracker_folder
from udpm.training.trackers.base import Tracker

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG = "udpm.run"
"""Tag of MLflow's run with the name that trackers know it by."""
VALUE = 6000
"""Longest value of a parameter that MLflow takes."""
AT_ONCE = 100
"""Most parameters that MLflow takes in one call."""
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "MLFLOW_ALLOW_FILE_STORE": "true"}
"""Environment that MLflow gets unless it says otherwise: no report to its makers, and files instead of a database."""


class MLflow(Tracker):
    """A run in MLflow, found again by a tag. What it already has of a metric is not added twice."""

    package = "mlflow"
    _client: MlflowClient
    _id: str

    def open(self) -> int:
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        own = tracker_folder(self.run.folder, "mlflow").resolve().as_uri()
        place = os.environ.get("MLFLOW_TRACKING_URI") or own
        self._client = MlflowClient(tracking_uri=place)
        run = self._find() or self._create()
        self._id = run.info.run_id
        # MLflow's files name their places, so those in a copy of the run's folder would be written to the original.
        self._takes_images = place != own or run.info.artifact_uri.startswith(f"{own}/")
        self._set_parameters(run.data.params)
        self._client.update_run(self._id, status="RUNNING")
        self._last = {name: self._last_step(name) for name in run.data.metrics}
        # A kill may have cut the last iteration, which is added again where it is missing.
        return max(self._last.values(), default=1) - 1

    def add(self, iteration: int, values: Mapping[str, float], image: np.ndarray | None) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = [
            Metric(name, value, now, iteration) for name, value in values.items() if iteration > self._last.get(name, 0)
        ]
        if new:
            self._client.log_batch(self._id, metrics=new)
            self._last |= {metric.key: iteration for metric in new}
        if image is not None and self._takes_images:
            self._client.log_image(self._id, image, artifact_file=f"previews/{iteration:09d}.png")

    def close(self, complete: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")

    def _experiment(self) -> str:
        from mlflow.exceptions import MlflowException

        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or self.run.config.experiment
        if (found := self._client.get_experiment_by_name(name)) is not None:
            return found.experiment_id
        try:
            return self._client.create_experiment(name)
        except MlflowException:
            # Another run may have created it just now.
            if (found := self._client.get_experiment_by_name(name)) is None:
                raise
            return found.experiment_id

    def _find(self) -> Run | None:
        found = self._client.search_runs([self._experiment()], f"tags.`{TAG}` = '{self.run.id}'", max_results=1)
        return found[0] if found else None

    def _create(self) -> Run:
        return self._client.create_run(self._experiment(), run_name=self.run.name, tags={TAG: self.run.id})

    def _set_parameters(self, known: Mapping[str, str]) -> None:
        """Log the configuration; MLflow keeps the first value of a parameter."""
        from mlflow.entities import Param

        values = flat(self.run.parameters)
        new = [Param(name, _text(value)[:VALUE]) for name, value in values.items() if name not in known]
        for part in _parts(new, AT_ONCE):
            self._client.log_batch(self._id, params=part)

    def _last_step(self, name: str) -> int:
        return max((metric.step for metric in self._client.get_metric_history(self._id, name)), default=0)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
