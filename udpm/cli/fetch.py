"""``udpm fetch``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import OutputPlace, Verb

FILES = ("inception", "vgg", "cifar10")


@click.command(cls=Verb, epilog="Example: udpm fetch inception --folder resources/weights")
@click.argument("file", type=click.Choice(FILES))
@click.option(
    "--folder",
    type=OutputPlace(),
    help="Where it goes; default: resources/weights (inception), torchvision's own (vgg), resources/cifar10 (cifar10).",
)
@click.option("--sha256", metavar="HEX", help="SHA-256 that it must have; default: the published file's.")
@click.option("--offline", is_flag=True, help="Only look whether it is there and whole; UDPM_OFFLINE=1 does the same.")
def command(file: str, folder: Path | None, sha256: str | None, offline: bool) -> None:
    """Bring weights or a data set here before they are needed, on a machine that has a network.

    What is there already is checked and left as it is.
    """
    from dataclasses import replace

    from udpm.core import published
    from udpm.core.download import obtain

    wanted = {"inception": published.INCEPTION, "vgg": published.VGG, "cifar10": published.CIFAR10}[file]
    wanted = replace(wanted, sha256=sha256.lower()) if sha256 else wanted
    path = obtain(wanted, folder or _default_folder(file), download=not offline)
    click.echo(f"{path}: ok, SHA-256 {wanted.sha256}")


def _default_folder(file: str) -> Path:
    if file == "vgg":
        from torch import hub

        return Path(hub.get_dir()) / "checkpoints"
    return Path("resources/weights" if file == "inception" else "resources/cifar10")
