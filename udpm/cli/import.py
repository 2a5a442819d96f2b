"""``udpm import``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FILE, Numbers, OutputFile, OutputFolder, OutputPlace, Verb, Whole, check
from udpm.core import kinds


@click.command(
    cls=Verb, name="import", epilog="Example: udpm import model_ema_state_cifar.pt --output resources/cifar.safetensors"
)
@click.argument("checkpoints", type=FILE, nargs=-1)
@click.option("--config", "flags_file", type=FILE, help="A published config_SUFFIX.json.")
@click.option("--command", "command_line", help="A published command line, pasted as it stands; - reads it from stdin.")
@click.option("--output", type=OutputFile(kinds.IMPORTED, ".safetensors"), help="Where the weights go, .safetensors.")
@click.option("--name", help="Also write this experiment (and its data set, unless --dataset names one).")
@click.option("--dataset", help="An existing data set, for --name.")
@click.option(
    "--gpus",
    type=Whole(1),
    help="GPUs that batch_per_GPU counts for; default 1, or as torchrun says.",
)
@click.option("--alphas", type=Numbers(float), help="The schedule, l = 1 first: 0.5,0.2,1e-3.")
@click.option("--sigmas", type=Numbers(float), help="The schedule, l = 1 first: 0.1,0.2,0.3.")
@click.option("--normalization", type=click.Choice(["norm", "sum"]), help="Of H's box; default: norm.")
@click.option("--classes", type=Whole(2, 100_000), help="Number of classes, where label dropout hides it.")
@click.option("--folder", type=OutputPlace(), default="config", show_default=True, help="Folder of the configuration.")
@click.option(
    "--run-config", type=FILE, help="Instead of all above: a run's resolved configuration, which names its weights."
)
@click.option("--run", type=OutputFolder(kinds.RUN), help="That run's folder.")
def command(
    checkpoints: tuple[Path, ...],
    flags_file: Path | None,
    command_line: str | None,
    output: Path | None,
    name: str | None,
    dataset: str | None,
    gpus: int | None,
    alphas: list[float] | None,
    sigmas: list[float] | None,
    normalization: str | None,
    classes: int | None,
    folder: Path,
    run_config: Path | None,
    run: Path | None,
) -> None:
    """Bring over published checkpoints, configurations and command lines.

    CHECKPOINTS are model_ema_state_*.pt (averaged weights) and model_state_*.pt (weights and discriminator) of one
    model. The architecture is read off the tensors; with --config or --command it is checked against them. Without any
    schedule, the paper's is taken and said so. Files are never executed: one that holds code is refused.
    """
    if run_config is not None or run is not None:
        _adopt(checkpoints, run_config, run)
        return
    if (dataset is not None or gpus is not None) and name is None:
        raise click.UsageError("--dataset and --gpus are for the experiment of --name", click.get_current_context())
    if not checkpoints and (output is not None or alphas is not None or normalization is not None):
        raise click.UsageError("--output and the schedule's options go with CHECKPOINTS", click.get_current_context())
    if not checkpoints and name is None:
        raise click.UsageError("give CHECKPOINTS, or --name with --config or --command", click.get_current_context())
    from udpm.networks import move

    if command_line == "-":
        command_line = click.get_text_stream("stdin").read()
    if (alphas is None) != (sigmas is None):
        raise click.UsageError("--alphas and --sigmas go together", click.get_current_context())
    described = move.describe(flags_file, command_line, name or "imported", dataset, gpus)
    schedule = move.Schedule(alphas, sigmas, normalization)
    for line in move.bring_over(list(checkpoints), described, schedule, classes, output, name, folder):
        click.echo(line)


def _adopt(checkpoints: tuple[Path, ...], run_config: Path | None, run: Path | None) -> None:
    from udpm.config import RunConfig, read_resolved
    from udpm.core.errors import UserError
    from udpm.core.outputs import Output
    from udpm.training.adopt import adopt
    from udpm.training.claim import claim_import

    if checkpoints or run_config is None or run is None:
        raise click.UsageError("--run-config and --run go together, without CHECKPOINTS", click.get_current_context())
    config = read_resolved(RunConfig, run_config)
    if config.training != "imported":
        raise UserError(f"{run_config}: training: is not imported, so `udpm train` makes this run")
    claim_import(run)
    check({"weights": config.weights}, [Output("--run", run / "weights.safetensors", kinds.IMPORTED_RUN)])
    adopt(config, run)
    click.echo(f"{run / 'weights.safetensors'}: from {config.weights}")
