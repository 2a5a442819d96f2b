"""``udpm schema``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import FOLDER


@click.command(epilog="Example: udpm schema")
@click.option("--config", type=FOLDER, default="config", show_default=True, help="Folder of the configuration.")
def command(config: Path) -> None:
    """Write the JSON schemas of the configuration files, and the key reference in their manual.

    Both are made from the code's own models: run it after changing one.
    """
    from udpm.config.schema import FILES, insert_reference, json_schema
    from udpm.core.files import write_json, write_text

    for kind in FILES:
        write_json(config / "schema" / f"{kind}.schema.json", json_schema(kind))
    manual = config / "README.md"
    write_text(manual, insert_reference(manual.read_text(encoding="utf-8")))
