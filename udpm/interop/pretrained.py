"""Imported weights as the result of a run, or as the start of its training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from udpm.config.experiment import RunConfig
from udpm.core import provenance
from udpm.core.arrays import sealed
from udpm.core.errors import UserError
from udpm.core.files import sha256, write_json
from udpm.interop.architecture import Tensors
from udpm.interop.checkpoint import Imported, differences, read_weights
from udpm.networks.flops import count_cost
from udpm.networks.weights import save_weights
from udpm.runs.records import SEALED


def import_weights(config: RunConfig, run: Path) -> None:
    """Import a run's weights: write ``weights.safetensors`` and ``complete.json``, as training would.

    Args:
        config: configuration of a run whose training is imported.
        run: the run's folder.

    Raises:
        UserError: the weights are missing, damaged or of another model.
    """
    imported = _read(config)
    wrong = differences(imported.model(config.process, str(config.weights)), config.model)
    if wrong:
        raise UserError(f"{config.weights}: not the model of experiment {config.experiment}: {'; '.join(wrong)}")
    weights = run / "weights.safetensors"
    description = {
        "experiment": config.experiment,
        "run_seed": config.seed,
        "dataset": config.dataset_name,
        "iteration": imported.iteration,
        "origin": imported.origin,
        **imported.class_names,
    }
    save_weights(weights, config.model, imported.networks, description)
    record = {
        "format": "udpm-run/1",
        "experiment": config.experiment,
        "seed": config.seed,
        "iterations": imported.iteration,
        "origin": imported.origin,
        **imported.class_names,
        "parameters": {"generator": count_cost(config).generator_parameters},
        "dataset_sha256": imported.origin.get("dataset_sha256"),
        "weights_sha256": sha256(weights),
        "provenance": provenance.record(),
    }
    write_json(run / "complete.json", sealed(record, SEALED))


def load_pretrained(config: RunConfig) -> tuple[dict[str, Tensors], dict[str, Any]]:
    """Load state dicts to start training from: "raw", and "ema" and "discriminator" if the file has them.

    Returns:
        State dicts by name, and a record of their origin.

    Raises:
        UserError: the weights are missing, damaged or of another network. Their process may differ.
    """
    imported = _read(config)
    wanted = config.model
    wrong = differences(imported.model(wanted.process, str(config.weights)), wanted)
    wrong = [difference for difference in wrong if not difference.startswith("process.")]
    if wrong:
        raise UserError(f"{config.weights}: cannot start experiment {config.experiment}: {'; '.join(wrong)}")
    networks = imported.networks
    # A file without trained weights has averaged ones.
    raw = networks["raw"] if "raw" in networks else networks["ema"]
    return {"raw": raw, **networks}, imported.origin


def _read(config: RunConfig) -> Imported:
    assert config.weights is not None
    return read_weights([config.weights], config.model.classes or None)
