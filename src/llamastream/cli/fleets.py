"""What the commands share that talk to a running fleet."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Annotated, TypeAlias

import typer
from rich.console import Console

from llamastream.cli.screen import print_json
from llamastream.cli.servelog import human_line
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.fleet.control_client import ControlClient, find
from llamastream.fleet.records import Record, as_dict
from llamastream.fleet.settings import FleetSettings
from llamastream.settings import declared, load

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NoWait: TypeAlias = Annotated[bool, typer.Option("--no-wait", help="Do not wait until it is done.")]

_NAME = next(field for field in declared(FleetSettings) if field.name == "name")
Name: TypeAlias = Annotated[
    str | None,
    typer.Option(
        *_NAME.flags,
        help=f"Which fleet, where several run: serve-PORT, or what `serve --name` said. [env: {_NAME.env}]",
        show_default=False,
    ),
]


def fleet_of(name: str | None) -> ControlClient:
    """The fleet that a command is about: by its option, the environment, the settings file, or the only one.

    A settings file with a mistake is not looked at: whoever has just broken it, needs these commands.

    Raises:
        ControlError: there is none, or there are several.
    """
    name = name or os.environ.get(_NAME.env) or None
    if name is None:
        with suppress(SettingError):
            name = load(FleetSettings)[0].name
    return find(name)


def show_record(record: Record, console: Console, *, json: bool, clock: str = "%H:%M:%S") -> None:
    """A record of a fleet as it comes: a JSON object on stdout, or a line for people."""
    if json:
        print_json(as_dict(record))
    else:
        when = time.strftime(clock, time.localtime(record.time))
        console.print(human_line(record, when), soft_wrap=True)


def complete_instances(incomplete: str) -> list[str]:
    """For the shell: the instances of the fleet that runs, if it is the only one."""
    try:
        return [report.id for report in fleet_of(None).status().instances if report.id.startswith(incomplete)]
    except LlamaStreamError:
        return []
