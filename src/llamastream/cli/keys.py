"""`llamastream keys`: API keys for the gateway."""

from __future__ import annotations

from typing import Annotated

import typer

from llamastream.cli.screen import print_json
from llamastream.gateway.keys import SCOPES, new_key

keys = typer.Typer(name="keys", help="API keys for the gateway.", no_args_is_help=True, rich_markup_mode=None)


@keys.callback()
def _root() -> None:
    """API keys for the gateway."""


@keys.command()
def new(
    name: Annotated[str, typer.Argument(help="Name of the key; it stands in logs.")] = "default",
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", help=f"What it may do: {', '.join(SCOPES)}; may be given several times."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a key. It is shown this once; what goes into the gateway's keys file is the line with its digest."""
    key, line = new_key(name, scope or ["inference"])
    if json:
        print_json({"key": key, "line": line})
        return
    typer.echo(key)
    typer.echo("\nThe key is shown this once. The line for the keys file (--keys-file):", err=True)
    typer.echo(line, err=True)
