"""`llamastream`: the command and what is common to its subcommands."""

from __future__ import annotations

import os
import signal
import sys
from typing import Annotated

import typer

from llamastream._version import __version__
from llamastream.cli.chat import chat
from llamastream.cli.check import check
from llamastream.cli.serve import serve
from llamastream.errors import LlamaStreamError

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
app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})(serve)
app.command()(check)


def main() -> None:
    """Entry point: errors as one clear message and an exit code, never as a traceback."""
    try:
        app()
    except LlamaStreamError as error:
        print(f"llamastream: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output (head, less) left. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)
