"""`llamastream restart`, `drain`, `undrain`, `reload`, `stop`: orders to a running fleet, and how they go."""

from __future__ import annotations

import time
from typing import Annotated, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from llamastream.cli.fleets import AsJson, Name, NoWait, complete_instances, fleet_of, show_record
from llamastream.cli.screen import print_json
from llamastream.errors import SettingError
from llamastream.fleet.control_client import ControlClient, ControlError
from llamastream.fleet.messages import (
    AskDrain,
    AskReload,
    AskRestart,
    AskStop,
    AskUndrain,
    Done,
    Request,
    Said,
)
from llamastream.printable import printable

GONE_SECONDS = 5.0
"""From the last word of a fleet to the end of its process."""

Instances: TypeAlias = Annotated[
    list[str],
    typer.Argument(metavar="ID...", help="Instances, as `status` names them.", autocompletion=complete_instances),
]
SomeInstances: TypeAlias = Annotated[
    list[str] | None,
    typer.Argument(metavar="[ID...]", help="Instances, as `status` names them.", autocompletion=complete_instances),
]


def restart(
    ids: SomeInstances = None,
    *,
    rolling: Annotated[bool, typer.Option("--rolling", help="All instances, one after the other.")] = False,
    no_wait: NoWait = False,
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Replace instances by fresh ones: each finishes its requests first, when its turn comes, and keeps its prompt
    caches. One that has failed is started again.
    """
    if bool(ids) == rolling:
        raise SettingError("say which instances, or --rolling for all of them, one after the other")
    carry_out(fleet_of(name), AskRestart(tuple(ids or ()), wait=not no_wait), json=json)


def drain(
    ids: Instances,
    *,
    no_wait: NoWait = False,
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Send instances no new requests, and wait until those that run have ended. `undrain` ends it."""
    carry_out(fleet_of(name), AskDrain(tuple(ids), wait=not no_wait), json=json)


def undrain(
    ids: Instances,
    *,
    no_wait: NoWait = False,
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Let instances take requests again."""
    carry_out(fleet_of(name), AskUndrain(tuple(ids), wait=not no_wait), json=json)


def reload(
    *,
    no_wait: NoWait = False,
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Have the settings file read anew: instances whose options changed are replaced, one after the other; what is
    no longer wanted is stopped, and what is new is started.

    A file with a mistake changes nothing.
    """
    carry_out(fleet_of(name), AskReload(wait=not no_wait), json=json)


def stop(
    *,
    now: Annotated[bool, typer.Option("--now", help="Cut the requests that run.")] = False,
    no_wait: NoWait = False,
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Stop a fleet, as SIGTERM does: running requests may finish."""
    client = fleet_of(name)
    carry_out(client, AskStop(now=now, wait=not no_wait), json=json)
    end = time.monotonic() + GONE_SECONDS
    while not no_wait and client.path.parent.exists() and time.monotonic() < end:
        time.sleep(0.02)  # a new one can take its place only then


def carry_out(client: ControlClient, request: Request, *, json: bool) -> None:
    """Have it done, and show how it goes.

    Raises:
        ControlError: it was refused, or did not go well.
    """
    console = Console(stderr=True, highlight=False)
    try:
        for reply in client.ask(request):
            if isinstance(reply, Said):
                show_record(reply.record, console, json=json)
            elif isinstance(reply, Done):
                if json:
                    print_json({"event": "done", "message": reply.message})
                elif reply.message:
                    typer.echo(printable(reply.message))
    except KeyboardInterrupt:
        console.print(Text("what was asked for goes on; `llamastream status` shows how it is", style="yellow"))
        raise
    except ControlError as error:
        if json:
            print_json({"event": "error", "message": error.message})
        raise
