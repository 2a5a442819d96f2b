"""How a score that nobody measured comes to be: commands, and keys for an experiment's file, that are not refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml
from pydantic import ValidationError

from udpm.config.experiment import Experiment
from udpm.config.points import split_name
from udpm.config.scoring import Selection
from udpm.config.training import Training
from udpm.metrics.protocol import BEST

FEW = 8
"""Milestones that an experiment without any is advised to keep."""


@dataclass(frozen=True)
class Advice:
    """What leads to a score; one of the two is empty.

    Attributes:
        how: what to write and run.
        why: why nothing leads to it.
    """

    how: str = ""
    why: str = ""


def command(experiment: str, config: Experiment | None, target: str = "all") -> str:
    """What makes a target of the workflow of one experiment."""
    several_nodes = config is not None and isinstance(config.training, Training) and config.training.nodes > 1
    profile = "--profile slurm " if several_nodes else ""
    return f"`snakemake {profile}{target} --config experiments={experiment}`"


def advice(experiment: str, checkpoint: str, config: Experiment | None, target: str = "all") -> Advice:
    """How a score of a checkpoint comes to be, and with it what a target of the workflow makes of scores.

    Args:
        experiment: name.
        checkpoint: last or best.
        config: of the experiment; None where its file cannot be read.
        target: of the workflow.
    """
    if config is None:
        return Advice(why=f"config/experiments/{experiment}.yaml cannot be read")
    if config.scoring is None:
        return Advice(why=f"{experiment} is not scored (scoring: null)")
    if checkpoint != BEST or config.selection is not None:
        return Advice(how=command(experiment, config, target))
    if not isinstance(config.training, Training):
        return Advice(why=f"{experiment}: imported weights have no milestones, of which one could be the best")
    keys = _keys_for_best(config)
    if keys is None or split_name(experiment) is not None:
        return Advice(why=f"{experiment}: no milestones that one could be chosen from")
    if "training" in keys:
        kept = f"training.keep_every is {config.training.keep_every}, iterations are {config.training.iterations}"
        return Advice(why=f"{experiment}: its training keeps no milestones ({kept})")
    return Advice(
        how=f"`{_line(keys)}` in config/experiments/{experiment}.yaml, then {command(experiment, config, target)}"
    )


def another_with_best(experiment: str, config: Experiment) -> Advice:
    """How an experiment that keeps no milestones is run again with some, under a name of its own."""
    keys = _keys_for_best(config)
    if keys is None or split_name(experiment) is not None:
        return advice(experiment, BEST, config)
    name = f"{experiment}-best"
    values = _line({"extends": experiment, **keys})
    return Advice(how=f"`{{{values}}}` as config/experiments/{name}.yaml, then {command(name, config)}")


def _keys_for_best(config: Experiment) -> dict[str, Any] | None:
    """Keys to add, for the best milestone to be chosen; None if no keys do."""
    training, sampling = config.training, config.sampling
    if not isinstance(training, Training):
        return None
    default, selection = Selection(), {}
    if sampling.seed == default.seed:
        selection["seed"] = default.seed + 1
    if 2 <= sampling.count < default.count:
        selection["count"] = sampling.count
    keys: dict[str, Any] = {"selection": selection}
    if not 1 <= training.keep_every <= training.iterations:
        keys = {"training": {"keep_every": max(1, training.iterations // FEW)}} | keys
    values = config.model_dump()
    values["training"] |= keys.get("training", {})
    try:
        Experiment.model_validate(values | {"selection": selection})
    except ValidationError:
        return None
    return keys


def _line(keys: dict[str, Any]) -> str:
    text = yaml.safe_dump(keys, default_flow_style=True, sort_keys=False, width=10_000)
    return text.strip().removeprefix("{").removesuffix("}")
