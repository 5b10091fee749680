"""The `llamastream` command and its subcommands."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from llamastream._version import __version__
from llamastream.cli.plainvalues import lighten

_RAW = {"allow_extra_args": True, "ignore_unknown_options": True}
"""For commands that hand on what they do not know."""
_HOME = {
    "chat": "chat",
    "serve": "serve",
    "status": "fleetstatus",
    "logs": "fleetlogs",
    "restart": "control",
    "drain": "control",
    "undrain": "control",
    "reload": "control",
    "stop": "control",
    "bench": "bench",
    "tune": "tune",
    "check": "check",
    "config": "config",
    "keys": "keys",
    "alerts": "alerts",
}
"""The module of each subcommand, in the order of the help."""


class Commands(TyperGroup):
    """The subcommands, each imported when it is asked for.

    So a supervisor, which runs for months, does not hold the client, its event loop and TLS in memory for a chat that
    it will never have.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """For typer: take the arguments before the subcommand."""
        lighten(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: Any) -> list[str]:
        """For typer: all names."""
        return list(_HOME)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """For typer: one of them, or None."""
        if cmd_name not in _HOME:
            for known in _HOME:
                self._load(known)  # whatever was meant is proposed
            return None
        return self._load(cmd_name)

    def _load(self, name: str) -> Any:
        if name not in self.commands:
            self.commands[name] = typer.main.get_command(_app_of(name))
        return self.commands[name]


def _app_of(name: str) -> typer.Typer:
    """A subcommand as an application of its own; a group of commands is one already."""
    found = getattr(import_module(f"llamastream.cli.{_HOME[name]}"), name)
    if isinstance(found, typer.Typer):
        return found
    single = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    if name in ("serve", "bench", "tune"):
        from llamastream.cli.options import GroupedCommand

        single.command(name, cls=GroupedCommand, context_settings=_RAW if name == "serve" else None)(found)
    else:
        single.command(name)(found)
    return single


app = typer.Typer(
    name="llamastream",
    cls=Commands,
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
