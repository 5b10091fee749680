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

from llamastream.alerts.settings import AlertSettings
from llamastream.bench.settings import BenchSettings
from llamastream.bench.tune.settings import TuneSettings
from llamastream.cli.options import unknown_variables
from llamastream.cli.screen import print_json
from llamastream.engine import EngineOptions
from llamastream.fleet.configuration import DEFAULT_PORT, ModelTable, configure, model_tables
from llamastream.fleet.settings import FleetSettings
from llamastream.gateway.settings import GatewaySettings
from llamastream.settings import ClientSettings, config_path, declared, describe_type, load

GROUPS: dict[str, type[Struct]] = {
    "client": ClientSettings,
    "serve": EngineOptions,
    "fleet": FleetSettings,
    "gateway": GatewaySettings,
    "bench": BenchSettings,
    "alerts": AlertSettings,
    "tune": TuneSettings,
}


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
        models = model_rows()
        if json:
            shown: dict[str, Any] = {name: _by_name(each) for name, each in found.items()}
            if models:
                shown["models"] = {name: _by_name(each) for name, each in models.items()}
            print_json(shown)
        else:
            _print(found | {f"models.{name}": each for name, each in models.items()})
        for note in unknown_variables(os.environ, GROUPS.values()):
            Console(stderr=True, highlight=False).print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def settings_schema() -> dict[str, Any]:
    """The JSON schema of the settings file: one object for each table."""
    groups = (*GROUPS.values(), ModelTable)
    refs, components = msgspec.json.schema_components(groups, ref_template="#/$defs/{name}")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "llamastream settings",
        "type": "object",
        "properties": {
            **dict(zip(GROUPS, refs[:-1], strict=True)),
            "models": {"type": "object", "additionalProperties": refs[-1]},
        },
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
    return _rows(settings, sources)


def model_rows() -> dict[str, list[dict[str, Any]]]:
    """The same for each table `[models.NAME]` that `serve` would run: what its servers are started with.

    Raises:
        SettingError: a value in one of them is not allowed.
    """
    if not (tables := model_tables(os.environ)):
        return {}
    found = {}
    configuration = configure({}, {}, environ=os.environ)
    for pool in configuration.pools:
        if pool.name not in tables:
            continue  # a model that the environment names is served alone
        count = next(field for field in declared(ModelTable) if field.name == "instances")
        row = {"name": "instances", "value": pool.instances, "source": configuration.sources[pool.name]["instances"]}
        row |= {"env": "", "description": count.description, "allowed": describe_type(count.type)}
        found[pool.name] = [row, *_rows(pool.options, configuration.sources[pool.name])]
    return found


def _rows(settings: Struct, sources: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    for field in declared(type(settings)):
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


def _by_name(found: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found}


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
