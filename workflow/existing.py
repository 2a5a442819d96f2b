"""What planning finds of earlier work: what must be made again, and what may not be, since it would cost a training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from content import Content
from experiments import CONFIG, Experiments, one_line, read_prepared

from udpm.config import DatasetConfig, RunConfig, source_file, to_json
from udpm.core.errors import UserError
from udpm.core.reading import read_json
from udpm.runs.config_guard import check_config, check_import, preparation_changes
from udpm.runs.records import COMPLETE, WEIGHTS, has_checkpoint, is_finished, read_complete, read_completion

INVENTORY = "source.jsonl"


class Existing:
    """Prepared data sets and runs, as far as the plan needs them.

    Args:
        plan: the study's.
        content: told what must be made again.
    """

    def __init__(self, plan: Experiments, content: Content) -> None:
        self._plan, self._content, self._layout = plan, content, plan.layout
        self._images: dict[str, dict[str, Any] | None] = {}

    @one_line
    def check(self) -> None:
        """Compare what is there with the configuration and with what it was made from.

        Raises:
            SystemExit: going on would mix other images, weights or settings into a run, or cost a finished one its
                weights; told in one line, code 2.
        """
        for name in sorted({experiment.dataset for experiment in self._plan.known.values()}):
            self._images[name] = self._check_dataset(name)
        self._plan.each_run(self._check_run)
        self._content.digests.save()

    def _check_dataset(self, name: str) -> dict[str, Any] | None:
        """The record of a prepared data set that can be used as it is, or None."""
        path, config = Path(self._layout.dataset_record(name)), self._plan.dataset_config(name)
        if path.exists():
            folder, record = path.parent, read_prepared(path)
            changed = self._source_changes(folder, record, config)
            trained = next(self._trained_on(name), None) if changed else None
            if trained is not None:
                raise UserError(
                    f"data set {name}: {changed} since it was prepared, and {trained} was trained on it; undo the "
                    f"change, give what is new a name of its own (a file in {CONFIG}/datasets, and an experiment), or "
                    f"delete {folder} and {trained}"
                )
            changed = changed or self._damage(folder, record)
            if changed is None:
                _compare_counts(name, record, config)
                return record
            print(f"data set {name}: {changed} since it was prepared: it is prepared again", file=sys.stderr)
            self._content.forced.add(self._layout.dataset_record(name))
        self._rewrite(self._layout.dataset_config(name), config)
        return None

    def _source_changes(self, folder: Path, record: dict[str, Any], config: DatasetConfig) -> str | None:
        """How a data set's configuration or source differ from what was prepared."""
        changed = preparation_changes(record, config)
        if changed or INVENTORY not in record.get("files", {}):
            return "; ".join(changed.values()) or None
        # Not for data sets of a package: it imports what reads images.
        from udpm.data.open import difference, inventory_now, read_inventory

        before, now = read_inventory(folder), inventory_now(config, self._content.digests)
        found = difference(before, now) if before is not None and now is not None else None
        return f"images of {config.path} have changed ({found})" if found else None

    def _damage(self, folder: Path, record: dict[str, Any]) -> str | None:
        for name, digest in record.get("files", {}).items():
            if not (folder / name).is_file() or self._content.digests(folder / name) != digest:
                return f"{folder / name} has changed"
        return None

    def _trained_on(self, dataset: str) -> Iterator[Path]:
        """Folders of runs that were trained on a data set, also of other experiments than the plan's."""
        for path in self._layout.found(f"{self._layout.run('*', '*')}/config.json"):
            begun = (path.parent / COMPLETE).exists() or (path.parent / WEIGHTS).exists() or has_checkpoint(path.parent)
            if begun and read_json(path, "resolved configuration").get("dataset_name") == dataset:
                yield path.parent

    def _check_run(self, name: str, seed: int) -> None:
        if self._plan.trained_as(name, seed) != name:
            return
        folder, run = Path(self._layout.run(name, seed)), self._plan.run(name, seed)
        path = self._layout.run_config(name, seed)
        if not folder.is_dir():
            self._rewrite(path, run)
        elif self._plan.is_imported(name):
            self._check_imported(folder, run)
        else:
            check_config(folder, run, False, writes=False)
            self._check_start(folder, run)
            record = self._images[run.dataset_name]
            identity = record.get("sha256") if record else None
            if is_finished(folder, self._end(run, record), identity, self._content.digests):
                self._plan.finished.add((name, seed))
                return
            if (folder / WEIGHTS).exists() and (folder / COMPLETE).exists():
                self._content.forced.add(str(folder / WEIGHTS))
            self._rewrite(path, run)

    def _check_imported(self, folder: Path, run: RunConfig) -> None:
        """Weights that were changed since they were imported, there or here, are imported again."""
        check_import(folder)
        try:
            record = read_completion(folder, self._content.digests)
        except UserError:
            record = None
        its_own = record and (record["experiment"], record["seed"]) == (run.experiment, run.seed)
        if not its_own or self._has_other_weights(folder, run):
            self._content.forced.add(str(folder / WEIGHTS))

    def _check_start(self, folder: Path, run: RunConfig) -> None:
        """Weights that a run started from must still be those."""
        if self._has_other_weights(folder, run):
            raise UserError(
                f"{source_file(run.experiment, CONFIG)}: weights: {run.weights} has changed since {folder} started "
                "from it; put the file back, or give the experiment a new name"
            )

    def _has_other_weights(self, folder: Path, run: RunConfig) -> bool:
        """Whether the weights that a configuration names are others than those that a finished run is made of."""
        if run.weights is None or not (folder / COMPLETE).exists():
            return False
        origin = read_complete(folder).get("origin") or {}
        before = [file.get("sha256") for file in origin.get("files", [])]
        return bool(before) and self._content.digests(run.weights) not in before

    @staticmethod
    def _end(run: RunConfig, record: dict[str, Any] | None) -> int:
        if record is None or not run.training.epochs:
            # Without its images, a run of so many passes is taken to have ended where it did.
            return 0 if run.training.epochs else run.training.iterations
        start, stop = record["splits"]["train"]
        return run.training.ends_at(stop - start)

    def _rewrite(self, path: str, config: DatasetConfig | RunConfig) -> None:
        """Have a resolved configuration written again, for a job that is still to run, if any key changed."""
        if Path(path).exists():
            try:
                same = Path(path).read_bytes() == to_json(config).encode()
            except OSError:
                same = False
            if not same:
                self._content.forced.add(path)


def _compare_counts(name: str, record: dict[str, Any], config: DatasetConfig) -> None:
    """Say it where a prepared data set has not as many images as its configuration has come to expect."""
    for split, expected in {"train": config.expected_count, "test": config.expected_test_count}.items():
        start, stop = record.get("splits", {}).get(split, (0, 0))
        if expected is not None and stop - start != expected:
            print(f"warning: data set {name}: has {stop - start} {split} images, expected {expected}", file=sys.stderr)
