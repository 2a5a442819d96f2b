"""Check existing data sets and runs: which must be made again, and which must not, since trainings depend on them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from content import Content
from dataset_facts import read_prepared
from experiments import CONFIG, Experiments, one_line

from udpm.config import DatasetConfig, RunConfig, source_file, to_json
from udpm.core.errors import UserError
from udpm.core.reading import read_json
from udpm.runs.config_guard import check_config, check_import, preparation_changes
from udpm.runs.records import COMPLETE, WEIGHTS, has_checkpoint, is_finished, read_complete, read_completion

INVENTORY = "source.jsonl"


class Existing:
    """Check the prepared data sets and runs that the plan uses; `content` collects outputs that must be made again."""

    def __init__(self, plan: Experiments, content: Content) -> None:
        self._plan, self._content, self._layout = plan, content, plan.layout
        self._images: dict[str, dict[str, Any] | None] = {}

    @one_line
    def check(self) -> None:
        """Compare existing results with the configuration and with what they were made from.

        Raises:
            SystemExit: other images, weights or settings would be mixed into a run, or a finished one would lose its
                weights; reported in one line, code 2.
        """
        for name in sorted({experiment.dataset for experiment in self._plan.known.values()}):
            self._images[name] = self._check_dataset(name)
        self._plan.each_run(self._check_run)
        self._content.digests.save()

    def _check_dataset(self, name: str) -> dict[str, Any] | None:
        """Return the record of a prepared data set; None if it must be prepared again."""
        path, config = Path(self._layout.dataset_record(name)), self._plan.dataset_config(name)
        if path.exists():
            folder, record = path.parent, read_prepared(path)
            changed = self._source_changes(folder, record, config)
            trained = next(self._trained_on(name), None) if changed else None
            if trained is not None:
                raise UserError(
                    f"data set {name}: {changed} since it was prepared, and {trained} was trained on it; undo the "
                    f"change, give the new images another name (a file in {CONFIG}/datasets, and an experiment), or "
                    f"delete {folder} and {trained}"
                )
            changed = changed or self._damage(folder, record)
            if changed is None:
                _compare_counts(name, record, config)
                return record
            print(f"data set {name}: {changed} since it was prepared: preparing it again", file=sys.stderr)
            self._content.forced.add(self._layout.dataset_record(name))
        self._rewrite(self._layout.dataset_config(name), config)
        return None

    def _source_changes(self, folder: Path, record: dict[str, Any], config: DatasetConfig) -> str | None:
        """Describe how a data set's configuration or source differ from what was prepared."""
        changed = preparation_changes(record, config)
        if changed or INVENTORY not in record.get("files", {}):
            return "; ".join(changed.values()) or None
        # Imported here, because it imports image libraries, which embedded data sets do not need.
        from udpm.data.inventory import difference, inventory_now, read_inventory

        before, now = read_inventory(folder), inventory_now(config, self._content.digests)
        found = difference(before, now) if before is not None and now is not None else None
        return f"images of {config.path} have changed ({found})" if found else None

    def _damage(self, folder: Path, record: dict[str, Any]) -> str | None:
        for name, digest in record.get("files", {}).items():
            if not (folder / name).is_file() or self._content.digests(folder / name) != digest:
                return f"{folder / name} has changed"
        return None

    def _trained_on(self, dataset: str) -> Iterator[Path]:
        """Yield the folders of runs trained on a data set, including runs of experiments outside the plan."""
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
        """Import weights again if they have changed since, in their source or in the run."""
        check_import(folder)
        try:
            record = read_completion(folder, self._content.digests)
        except UserError:
            record = None
        is_own = record and (record["experiment"], record["seed"]) == (run.experiment, run.seed)
        if not is_own or self._has_other_weights(folder, run):
            self._content.forced.add(str(folder / WEIGHTS))

    def _check_start(self, folder: Path, run: RunConfig) -> None:
        """Check that the weights that a run started from have not changed."""
        if self._has_other_weights(folder, run):
            raise UserError(
                f"{source_file(run.experiment, CONFIG)}: weights: {run.weights} has changed since {folder} started "
                "from it; put the file back, or give the experiment a new name"
            )

    def _has_other_weights(self, folder: Path, run: RunConfig) -> bool:
        """Return whether a configuration names other weights than a finished run was made from."""
        if run.weights is None or not (folder / COMPLETE).exists():
            return False
        origin = read_complete(folder).get("origin") or {}
        before = [file.get("sha256") for file in origin.get("files", [])]
        return bool(before) and self._content.digests(run.weights) not in before

    @staticmethod
    def _end(run: RunConfig, record: dict[str, Any] | None) -> int:
        if record is None or not run.training.epochs:
            # The end of a run of N passes over the images is unknown without them, so any end is accepted.
            return 0 if run.training.epochs else run.training.iterations
        start, stop = record["splits"]["train"]
        return run.training.ends_at(stop - start)

    def _rewrite(self, path: str, config: DatasetConfig | RunConfig) -> None:
        """Have an existing resolved configuration written again if any key has changed, for the jobs still to run."""
        if Path(path).exists():
            with suppress(OSError):
                if Path(path).read_bytes() == to_json(config).encode():
                    return
            self._content.forced.add(path)


def _compare_counts(name: str, record: dict[str, Any], config: DatasetConfig) -> None:
    """Warn if a prepared data set does not have the number of images that its configuration expects."""
    for split, expected in {"train": config.expected_count, "test": config.expected_test_count}.items():
        start, stop = record.get("splits", {}).get(split, (0, 0))
        if expected is not None and stop - start != expected:
            print(f"warning: data set {name}: has {stop - start} {split} images, expected {expected}", file=sys.stderr)
