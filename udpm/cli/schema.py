"""``udpm schema``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import OutputPlace, Verb


@click.command(cls=Verb, epilog="Example: udpm schema")
@click.option("--config", type=OutputPlace(), default="config", show_default=True, help="Folder of the configuration.")
@click.option("--docs", type=OutputPlace(), default="docs", show_default=True, help="Folder of the documentation.")
def command(config: Path, docs: Path) -> None:
    """Write what is made from the code's own models: run it after changing one.

    These are the JSON schemas of the configuration files, the key reference in their manual, and the table of published
    flags.
    """
    from udpm.config.published import flag_table
    from udpm.config.schema import FILES, FLAGS, KEYS, insert, json_schema, key_reference
    from udpm.core.files import write_json, write_text

    for kind in FILES:
        write_json(config / "schema" / f"{kind}.schema.json", json_schema(kind))
    for path, name, text in (
        (config / "README.md", KEYS, key_reference()),
        (docs / "published-code.md", FLAGS, flag_table()),
    ):
        write_text(path, insert(path.read_text(encoding="utf-8"), name, text))
