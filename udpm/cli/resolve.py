"""``udpm resolve``."""

from __future__ import annotations

import os
from pathlib import Path

import click

from udpm.cli.options import CONFIG, OutputFile, Verb, Whole
from udpm.core.kinds import FileKind

CONFIG_KEYS = 0.75
"""Share of its keys that a resolved configuration has at least: one of an earlier version may lack some."""
OF_A_RUN = ("complete.json", "checkpoints", "owner.json", "attempts.jsonl", "weights.safetensors", "bundle.json")
"""What lies next to the config.json that a run was begun with."""
PARTS = ("run", "sampling", "scoring", "selection_sampling", "selection_scoring", "latents", "dataset")


def _is_resolved(path: Path) -> bool:
    """Whether a file is a configuration as this command writes it: complete, in its layout."""
    import json

    from udpm.config import DatasetConfig, Latents, RunConfig, Sampling, Scoring
    from udpm.core.files import leading

    try:
        text = leading(path).decode()
        values = json.loads(text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(values, dict) or text != json.dumps(values, indent=2, ensure_ascii=False) + "\n":
        return False
    models = (set(model.model_fields) for model in (DatasetConfig, Latents, RunConfig, Sampling, Scoring))
    return any(values.keys() <= keys and len(values) >= CONFIG_KEYS * len(keys) for keys in models)


def _check_claim(output: Path, text: str) -> None:
    """Refuse to replace what a run was trained with: what it made would be told to come of something else.

    Raises:
        UserError: the output is a run's config.json, and says something else.
    """
    from udpm.core.errors import UserError

    place = Path(os.path.realpath(output))
    others = [name for name in OF_A_RUN if os.path.lexists(place.parent / name)]
    if place.name == "config.json" and others and place.exists() and place.read_text(encoding="utf-8") != text:
        raise UserError(
            f"--output: {output}: is the configuration of the run in this folder ({others[0]} lies next to it), and "
            "says something else; name another file"
        )


RESOLVED = FileKind("resolved configuration", _is_resolved)


@click.command(
    cls=Verb, epilog="Example: udpm resolve digits --part run --seed 0 --output results/configs/digits/seed0.json"
)
@click.argument("experiment", required=False)
@click.option("--dataset", metavar="NAME", help="Resolve this data set instead of an experiment.")
@click.option("--part", type=click.Choice(PARTS), default="run", show_default=True, help="Which part to write.")
@click.option("--seed", type=Whole(0, 2**63 - 1), default=0, show_default=True, help="Training seed, for part run.")
@click.option("--config", type=CONFIG, default="config", show_default=True, help="Folder of the configuration.")
@click.option("--output", type=OutputFile(RESOLVED), help="Where to; default: print it.")
def command(
    experiment: str | None, dataset: str | None, part: str, seed: int, config: Path, output: Path | None
) -> None:
    """Validate a configuration and write one part of it out complete, with all defaults.

    EXPERIMENT is the name of a file in config/experiments/. The result is what the other commands read. The config.json
    of a run that was begun is never replaced by another configuration.
    """
    if (experiment is None) == (dataset is None):
        raise click.UsageError("give either an EXPERIMENT or --dataset NAME", click.get_current_context())
    from udpm.config import load_dataset, load_experiment, place_of, resolve_run, to_json
    from udpm.core.errors import UserError
    from udpm.core.files import write_text

    if dataset is not None:
        resolved = load_dataset(dataset, config)
    else:
        run = resolve_run(experiment, seed, config)
        parts = {"run": run, "dataset": run.dataset}
        resolved = parts.get(part) or getattr(load_experiment(experiment, config), part)
        if resolved is None:
            raise UserError(f"{place_of(experiment, config)}: scoring: is null, so it has no part {part}")
    if output is None:
        click.echo(to_json(resolved), nl=False)
    else:
        _check_claim(output, to_json(resolved))
        write_text(output, to_json(resolved))
        what = f"data set {dataset}" if dataset is not None else f"{part} of experiment {experiment}"
        click.echo(f"{output}: {what}{f', seed {seed}' if part == 'run' and dataset is None else ''}")
