"""What the commands share that talk to a running fleet."""

from __future__ import annotations

from typing import Annotated, TypeAlias

import typer

from llamastream.cli.options import with_settings
from llamastream.errors import LlamaStreamError
from llamastream.fleet.control_client import ControlClient, find
from llamastream.fleet.settings import FleetSettings

with_fleet_name = with_settings(FleetSettings, "fleet", only=("name",))
"""Gives a command the option `--name`."""

AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON.")]
NoWait: TypeAlias = Annotated[bool, typer.Option("--no-wait", help="Do not wait until it is done.")]


def fleet_of(settings: FleetSettings) -> ControlClient:
    """The fleet that a command is about.

    Raises:
        ControlError: there is none, or there are several.
    """
    return find(settings.name)


def complete_instances(incomplete: str) -> list[str]:
    """For the shell: the instances of the fleet that runs, if it is the only one."""
    try:
        return [report.id for report in find().status().instances if report.id.startswith(incomplete)]
    except LlamaStreamError:
        return []
