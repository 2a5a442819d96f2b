"""Guard a run's folder: it belongs to one configuration."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from udpm.config.dataset import DatasetConfig
from udpm.config.experiment import RunConfig
from udpm.config.load import check_name, read_resolved, to_json
from udpm.config.overrides import OPTION
from udpm.config.validation import Section, validate
from udpm.core.errors import UserError
from udpm.core.files import write_text
from udpm.core.kinds import weights_description
from udpm.core.reading import read_json
from udpm.runs.records import COMPLETE, WEIGHTS, has_checkpoint, read_complete

MUTABLE_KEYS = {
    "dataset.check_md5",
    "dataset.description",
    "dataset.expected_count",
    "dataset.expected_test_count",
    "dataset.licence",
    "dataset.max_file_bytes",
    "dataset.max_pixels",
    "dataset.obtain",
    "dataset.path",
    "dataset.workers",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.cuda_graphs",
    "training.data",
    "training.device",
    "training.keep_every",
    "training.log_every",
    "training.preview_every",
    "training.trackers",
    "training.workers",
}
"""Keys that may change between attempts: they do not influence the weights."""

EARLIER_MUTABLE_KEYS = {"training.tensorboard", "losses.feature_matching_weight"}
"""Such keys in the files of earlier versions, which this one reads under other names, or only if they had no effect."""

LIMITS = ("max_pixels", "max_file_bytes")
"""Keys of a data set that bound the size of images read from its source."""

WORLD_SIZE_KEYS = {"training.nodes", "training.processes_per_node", "training.accumulate"}
"""Keys that split the batch: weights then agree up to rounding."""

ITERATIONS = "training.iterations"
"""May grow, unless the learning rates decay to the end: no earlier iteration depends on the total."""


def mutable_keys(section: str) -> set[str]:
    """Return the mutable keys of one section ("dataset"), without its name."""
    return {key.removeprefix(f"{section}.") for key in MUTABLE_KEYS if key.startswith(f"{section}.")}


def check_config(run: Path, config: RunConfig, allow_world_size_change: bool, *, writes: bool) -> None:
    """Check that the run's folder is new or belongs to this configuration, and record the configuration in it.

    Args:
        allow_world_size_change: accept another number of processes than before.
        writes: write ``config.json``; if false, only check.

    Raises:
        UserError: the folder holds a run of another configuration (the message names the keys), or imported weights.
    """
    path = run / "config.json"
    # A sweep has hundreds of runs: equal text needs no parsing.
    earlier = None if _is_text(path, to_json(config)) else _earlier(run)
    if earlier is not None:
        free = MUTABLE_KEYS | WORLD_SIZE_KEYS if allow_world_size_change else MUTABLE_KEYS
        changed = run_changes(earlier, config, free)
        shorter = changed.keys() == {ITERATIONS} and (run / COMPLETE).exists()
        if shorter and read_complete(run).get("iterations") == config.training.iterations:
            # The run was extended, and the extension withdrawn: the files of its first end are still valid.
            return
        if changed:
            shown = "; ".join(changed.values())
            way = ", or pass --allow-world-size-change" if set(changed) <= WORLD_SIZE_KEYS else ""
            raise UserError(
                f"{run}: holds a run of another configuration ({shown}); undo the change, give the experiment a new "
                f"name, or delete the folder{way}"
            )
    if writes:
        write_text(path, to_json(config))


def check_weights(run: Path | None, config: RunConfig) -> None:
    """Check that the file of the initial weights exists, unless a run has gone beyond them.

    Args:
        run: the run's folder, if known.

    Raises:
        UserError: there is no such file.
    """
    if config.weights is None or os.path.isfile(config.weights):
        return
    if run is None or not (has_checkpoint(run) or (run / COMPLETE).exists()):
        raise UserError(f"weights: {config.weights}: no such file; name the weights to start training from, or null")


def missing(run: Path, config: RunConfig) -> int:
    """Return 0 if a folder holds exactly this configuration's run, 1 if it holds another run, 2 if it holds none."""
    try:
        earlier = read_json(run / "config.json", "resolved configuration")
    except UserError:
        return 2
    return int(earlier != config.model_dump(mode="json"))


def check_import(run: Path) -> None:
    """Check that imported weights may be written into a folder.

    Raises:
        UserError: it holds a trained run.
    """
    if (run / "config.json").exists() or "run" in weights_description(run / WEIGHTS):
        raise UserError(f"{run}: holds a trained run; give the experiment a new name, or delete the folder")


def _earlier(run: Path) -> RunConfig | None:
    """Read the configuration of the run in a folder, from ``config.json`` or else from the weights' header.

    Raises:
        UserError: the folder holds imported weights.
    """
    path, weights = run / "config.json", run / WEIGHTS
    if path.exists():
        return read_resolved(RunConfig, path)
    description = weights_description(weights)
    if "run" in description:
        return validate(RunConfig, description["run"], f"{weights}: run")
    if description.get("origin"):
        raise UserError(f"{run}: holds imported weights; give the experiment a new name, or delete the folder")
    return None


def _is_text(path: Path, text: str) -> bool:
    try:
        return path.read_bytes() == text.encode()
    except OSError:
        return False


def run_changes(earlier: RunConfig, now: RunConfig, free: set[str]) -> dict[str, str]:
    """Return, by key, the differences that make a configuration another run's, ignoring the keys in `free`."""
    changed = differences(earlier, now, free)
    trained = "imported" not in (earlier.training, now.training)
    if trained and now.training.iterations > earlier.training.iterations:
        if now.training.decays_to_the_end:
            changed[ITERATIONS] += ", which moves the end of the decay; runs with training.decay_iterations can grow"
        else:
            changed.pop(ITERATIONS)
    return changed


def state_changes(earlier: RunConfig, now: RunConfig) -> dict[str, str]:
    """Return, by key, the differences that make a state saved with an earlier configuration another run's."""
    return differences(earlier, now, _without_influence(now))


def _without_influence(config: RunConfig) -> set[str]:
    """Return the keys that no weights up to the last iteration depend on."""
    decays = config.training != "imported" and config.training.decays_to_the_end
    return MUTABLE_KEYS | WORLD_SIZE_KEYS | (set() if decays else {ITERATIONS})


def differences(earlier: Section, now: Section, free: set[str]) -> dict[str, str]:
    """Return, by key, how a configuration differs from an earlier one, ignoring the keys in `free`."""
    before, after = (flat(config.model_dump(mode="json")) for config in (earlier, now))
    return {
        key: f"{key} was {before.get(key)!r}, is {after.get(key)!r}"
        for key in after | before
        if before.get(key) != after.get(key) and key not in free
    }


def name_changed(before: RunConfig, after: RunConfig, given: Iterable[str]) -> RunConfig:
    """Name in a run's experiment what was changed on the command line, as in "digits+training.batch=32".

    Tables average over the runs of one name, so one that has other weights needs another. Keys that may change between
    attempts leave it alone, and so do the seed and, unless the learning rates decay to the end, the iterations; a name
    that was given is kept. The order of the changes does not matter.

    Args:
        before: without the changes.
        after: with them.
        given: dotted keys of the changes.

    Raises:
        UserError: the name that was given is not one of a file.
    """
    if "experiment" in given:
        check_name(after.experiment, f"{OPTION}: experiment: ")
        return after
    free = _without_influence(after) | {"seed"}
    earlier, values = (flat(config.model_dump(mode="json")) for config in (before, after))
    keys = set(differences(before, after, free))
    if ITERATIONS not in free and ITERATIONS in _without_influence(before):
        # The rates now depend on them, and the name may lack an earlier change of them.
        keys.add(ITERATIONS)
    # A value may contain "+", but a file's name does not.
    known = "|".join(map(re.escape, earlier | values))
    name, *parts = re.split(rf"\+(?=(?:{known})=)", before.experiment)
    words = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
    named = {part.partition("=")[0]: part for part in parts}
    named |= {key: f"{key}={words(values[key])}" for key in keys & values.keys()}
    return after.model_copy(
        update={"experiment": "+".join([name, *(named[key] for key in values if key in named and key not in free)])}
    )


def preparation_changes(record: dict[str, Any], config: DatasetConfig) -> dict[str, str]:
    """Return, by key, the differences between a configuration and the one that a data set was prepared with.

    Considers only keys that determine its images and splits.

    Args:
        record: ``dataset.json``.
        config: current configuration of the data set.
    """
    try:
        earlier = DatasetConfig.model_validate({**record["config"], "workers": None})
    except (KeyError, TypeError, ValueError):
        # Prepared by a version with other keys. The images exist, and runs compare the digest.
        return {}
    free = mutable_keys("dataset")
    # Limits matter only if images were skipped.
    return differences(earlier, config, free - set(LIMITS) if record.get("skipped") else free)


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested sections by dotted key; lists stay whole."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found
