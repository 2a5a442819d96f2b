"""``udpm push``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import RUN, OutputFolder, Verb
from udpm.core import kinds


@click.command(
    cls=Verb,
    epilog="Example: udpm push results/runs/digits/seed0 owner/udpm-digits --license mit --private, or with "
    "--dry-run digits-model to see first what would be uploaded",
)
@click.argument("run", type=RUN)
@click.argument("name", metavar="OWNER/NAME")
@click.option("--license", "licence", help="Licence of the weights, as the Hub abbreviates it: mit, cc-by-4.0, …")
@click.option("--private", is_flag=True, help="Make the repository private.")
@click.option("--dry-run", "folder", type=OutputFolder(kinds.BUNDLE), help="Write this folder and upload nothing.")
def push_command(run: Path, name: str, licence: str | None, private: bool, folder: Path | None) -> None:
    """Upload a finished run to the Hugging Face Hub: weights, configuration, model card, scores and samples.

    OWNER/NAME is a repository of models, which is made if there is none. It is changed in one commit, or not at all;
    one that holds anything but an earlier push is refused. udpm.load("hf://OWNER/NAME") and all commands that take
    weights load it. The token is that of HF_TOKEN or `hf auth login`, the server that of HF_ENDPOINT.
    """
    from udpm.core.hub import check_name, push
    from udpm.report.card import bundle_run
    from udpm.runs.records import read_complete

    read_complete(run)
    check_name(name)
    address = f"hf://{name}"
    if folder is not None:
        click.echo(f"{folder}: {', '.join(bundle_run(run, folder, licence, address))}; nothing was uploaded")
        return
    page, count = push(name, lambda made: bundle_run(run, made, licence, address), private=private)
    click.echo(f"{page}: {count} files; load them with udpm.load({address!r})")
