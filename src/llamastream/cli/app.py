"""The `llamastream` command and its subcommands."""

from __future__ import annotations

from typing import Annotated

import typer

from llamastream._version import __version__
from llamastream.cli.chat import chat
from llamastream.cli.check import check
from llamastream.cli.config import config
from llamastream.cli.control import drain, reload, restart, stop, undrain
from llamastream.cli.fleetlogs import logs
from llamastream.cli.fleetstatus import status
from llamastream.cli.keys import keys
from llamastream.cli.options import GroupedCommand
from llamastream.cli.serve import serve

app = typer.Typer(
    name="llamastream",
    help="Run llama.cpp's llama-server for streaming, and stream from it.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"llamastream {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Run llama.cpp's llama-server for streaming, and stream from it."""


app.command()(chat)
app.command(cls=GroupedCommand, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
for command in (status, logs, restart, drain, undrain, reload, stop, check, config):
    app.command()(command)
app.add_typer(keys)
