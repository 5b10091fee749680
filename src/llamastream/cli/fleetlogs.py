"""`llamastream logs`: what a running fleet and its servers say."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from llamastream.cli.control import SomeInstances
from llamastream.cli.fleets import AsJson, Name, fleet_of, show_record
from llamastream.cli.screen import need_stdout, print_json
from llamastream.fleet.messages import AskLogs, Dropped, Said
from llamastream.fleet.operations import MOST_LINES
from llamastream.fleet.records import Level


def logs(
    ids: SomeInstances = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is said from now on.")] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, max=MOST_LINES, help="So many of the last records.")
    ] = 100,
    level: Annotated[Level, typer.Option("--level", help="Records of this level or above.")] = "debug",
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Print the last records of instances, or of all of them and the fleet itself, in the order of time.

    Each has its time, the instance, and what its llama-server wrote or what happened to it. About 1000 of each kind are
    kept of each instance, also over its restarts.
    """
    need_stdout()
    client = fleet_of(name)
    console = Console(highlight=False)
    request = AskLogs(tuple(ids or ()), lines, level, follow)
    with contextlib.suppress(KeyboardInterrupt) if follow else contextlib.nullcontext():
        for reply in client.ask(request):
            if isinstance(reply, Said):
                show_record(reply.record, console, json=json, clock="%Y-%m-%d %H:%M:%S")
            elif isinstance(reply, Dropped):
                if json:
                    print_json({"event": "dropped", "count": reply.count})
                else:
                    console.print(Text(f"({reply.count} records are missing here)", style="yellow"))
