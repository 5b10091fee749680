"""`llamastream config`: every setting, its value, and where the value came from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
import typer
from msgspec import Struct
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamastream.cli.options import unknown_variables
from llamastream.cli.screen import print_json
from llamastream.cli.serve import DEFAULT_PORT
from llamastream.engine import EngineOptions
from llamastream.settings import ClientSettings, config_path, declared, describe_type, load

GROUPS: dict[str, type[Struct]] = {"client": ClientSettings, "serve": EngineOptions}


def config(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print the settings as one JSON object.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of the settings file.")] = False,
    path: Annotated[bool, typer.Option("--path", help="Print where the settings file is, or would be.")] = False,
) -> None:
    """Show every setting, its value and where it came from: environment, settings file or default.

    Flags of a command win over all of these. Secrets are not shown.
    """
    if path:
        typer.echo(config_path())
    elif schema:
        print_json(settings_schema())
    else:
        found = {name: rows(group) for name, group in GROUPS.items()}
        if json:
            print_json({name: {row["name"]: row for row in rows} for name, rows in found.items()})
        else:
            _print(found)
        for note in unknown_variables(os.environ, GROUPS.values()):
            Console(stderr=True, highlight=False).print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def settings_schema() -> dict[str, Any]:
    """The JSON schema of the settings file: one object for each table."""
    refs, components = msgspec.json.schema_components(GROUPS.values(), ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llamastream settings",
        "type": "object",
        "properties": dict(zip(GROUPS, refs, strict=True)),
        "additionalProperties": False,
        "$defs": components,
    }


def rows(group: type[Struct]) -> list[dict[str, Any]]:
    """Each setting of a group as a dict: name, value, source, env, description, allowed.

    Raises:
        SettingError: a value from the environment or the file is not allowed.
    """
    settings, sources = load(group, environ=os.environ)
    if isinstance(settings, EngineOptions) and settings.socket is None and sources["port"] == "default":
        settings = msgspec.structs.replace(settings, port=DEFAULT_PORT)  # what `serve` would do
    found = []
    for field in declared(group):
        value = getattr(settings, field.name)
        found.append(
            {
                "name": field.name,
                "value": "(set, hidden)" if field.secret and value is not None else value,
                "source": sources[field.name],
                "env": field.env,
                "description": field.description,
                "allowed": describe_type(field.type),
            }
        )
    return found


def _print(found: Mapping[str, list[dict[str, Any]]]) -> None:
    console = Console(highlight=False)
    for name, shown_rows in found.items():
        table = Table(box=None, title=Text(f"[{name}]", style="bold"), title_justify="left", padding=(0, 1))
        table.add_column("setting", no_wrap=True)
        table.add_column("value", overflow="fold")
        table.add_column("from", overflow="fold")
        for row in shown_rows:
            value = row["value"]
            shown = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
            changed = row["source"] != "default"
            style = "bold" if changed else ""
            table.add_row(Text(row["name"], style=style), Text(shown, style=style), Text(row["source"], style="dim"))
        console.print(table, width=None if console.is_terminal else 200)
        console.print()
    file = config_path()
    console.print(Text(f"settings file: {file}{'' if file.exists() else ' (not there)'}", style="dim"), soft_wrap=True)
