"""``udpm schema``."""

from __future__ import annotations

from pathlib import Path

import click

from udpm.cli.options import OutputPlace, Verb, check
from udpm.core.files import leading
from udpm.core.kinds import FileKind
from udpm.core.outputs import Output

MANUAL_BYTES = 1 << 24
SCHEMA_BYTES = 1 << 20


def _is_schema(path: Path) -> bool:
    from udpm.config.schema import is_schema

    return is_schema(leading(path, SCHEMA_BYTES))


SCHEMA = FileKind("JSON schema", _is_schema)


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
    from udpm.core.reading import read_text

    manuals = ((config / "README.md", KEYS, key_reference()), (docs / "published-code.md", FLAGS, flag_table()))
    texts = {path: insert(path, read_text(path, "manual", MANUAL_BYTES), name, text) for path, name, text in manuals}
    schemas = {config / "schema" / f"{kind}.schema.json": json_schema(kind) for kind in FILES}
    check(writes=[Output("--config", path, SCHEMA) for path in schemas])
    for path, schema in schemas.items():
        write_json(path, schema)
    for path, text in texts.items():
        write_text(path, text)
    click.echo(f"{config / 'schema'}: {len(schemas)} schemas; {' and '.join(map(str, texts))}: brought up to date")
