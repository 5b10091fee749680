"""`llamastream alerts`: the rules and how they are, a test of the receivers, silence for a while."""

from __future__ import annotations

import re
import time
from typing import Annotated, Any

import msgspec
import typer
from rich.table import Table
from rich.text import Text

from llamastream.alerts.messages import Outcome
from llamastream.alerts.receivers import receivers_of
from llamastream.alerts.rules import rules_of
from llamastream.alerts.settings import RULE_NAMES, AlertSettings, known_rule
from llamastream.alerts.watchman import example_message, try_all
from llamastream.cli.fleets import AsJson, Name, fleet_of
from llamastream.cli.screen import output, print_json
from llamastream.engine.machine import memory
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.fleet.control_client import ControlClient, ControlError
from llamastream.fleet.messages import AlertStatus, AlertTested, AskAlerts, AskAlertTest, AskSilence, Request
from llamastream.printable import one_line
from llamastream.settings import load

FIRING = 3
"""Exit code: something is not well."""
_STYLES = {"firing": "bold red", "clearing": "yellow", "pending": "yellow", "off": "dim"}
_UNITS = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}

alerts = typer.Typer(name="alerts", help="Rules that watch a running fleet, and who is told.", rich_markup_mode=None)


def _complete(incomplete: str) -> list[str]:
    return [name for name in RULE_NAMES if name.startswith(incomplete)]


@alerts.callback(invoke_without_command=True)
def show(context: typer.Context, *, json: AsJson = False, name: Name = None) -> None:
    """Show the rules of a running fleet, and how everything under them is.

    Exits with 0 if all is well, with 3 if something is not, with 1 if there is no fleet to ask.
    """
    if context.invoked_subcommand is not None:
        return
    found = _first(fleet_of(name), AskAlerts(), AlertStatus)
    if json:
        print_json({"rules": msgspec.to_builtins(found.rules), "receivers": msgspec.to_builtins(found.receivers)})
    else:
        _print(found)
    raise typer.Exit(FIRING if any(each.phase in ("firing", "clearing") for each in found.rules) else 0)


@alerts.command("test")
def send_test(
    *,
    rule: Annotated[
        str | None, typer.Option("--rule", help="As of this rule.", autocompletion=_complete, show_default=False)
    ] = None,
    json: AsJson = False,
    name: Name = None,
) -> None:
    """Send a test message to every receiver, and say what came of each.

    The running fleet sends it, with its own settings; where none runs, this command does, with those that it finds.
    Exits with 1 if a receiver did not take it.
    """
    if rule is not None:
        known_rule(rule)
    try:
        client = fleet_of(name)
    except ControlError:
        if name is not None:
            raise
        outcomes = _test_here(rule)
    else:
        outcomes = _first(client, AskAlertTest(rule), AlertTested).outcomes
    if json:
        print_json(msgspec.to_builtins(outcomes))
    else:
        for outcome in outcomes:
            typer.echo(f"{outcome.receiver}: {one_line(outcome.error) or 'took it'}")
        if len(outcomes) <= 1:
            typer.echo("no other receiver is set: see webhook, command and apprise in [alerts]", err=True)
    raise typer.Exit(1 if any(outcome.error for outcome in outcomes) else 0)


@alerts.command()
def silence(
    rule: Annotated[str, typer.Argument(metavar="RULE", help="See `llamastream alerts`.", autocompletion=_complete)],
    *,
    duration: Annotated[
        str | None, typer.Option("--for", help="How long: 30m, 1h, 2d; 0 ends it.", show_default=False)
    ] = None,
    name: Name = None,
) -> None:
    """Tell nothing of a rule for a while, or until the fleet ends. For longer than that: `silenced` in [alerts]."""
    known_rule(rule)
    seconds = None if duration is None else parse_duration(duration)
    for _ in fleet_of(name).ask(AskSilence(rule, seconds)):
        pass
    if seconds == 0:
        typer.echo(f"{rule} is told of again")
    else:
        end = time.localtime(time.time() + (seconds or 0))
        until = "the fleet ends" if seconds is None else time.strftime("%H:%M:%S", end)
        typer.echo(f"{rule} is silent until {until}")


def parse_duration(text: str) -> float:
    """Seconds of `90`, `90s`, `30m`, `1.5h`, `2d`.

    Raises:
        SettingError: it is none of these.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|m|h|d)?", text.strip().lower())
    seconds = float(match[1]) * _UNITS[match[2] or ""] if match else -1.0
    if not 0 <= seconds <= 1e8:
        raise SettingError(f"--for {text!r} is not allowed; allowed: a time such as 30m, 1h or 2d, or 0")
    return seconds


def _test_here(rule: str | None) -> list[Outcome]:
    settings, _ = load(AlertSettings)
    message = example_message(rules_of(settings, memory=memory().usable), rule, "")
    return try_all(receivers_of(settings), message)


def _first(client: ControlClient, request: Request, kind: Any) -> Any:
    for reply in client.ask(request):
        if isinstance(reply, kind):
            return reply
    raise LlamaStreamError(f"{client.name} does not say how it is")


def _print(found: AlertStatus) -> None:
    console = output()
    table = Table(box=None, padding=(0, 1))
    for column in ("rule", "about", "state", "value", "what it means"):
        table.add_column(column, overflow="fold", no_wrap=column in ("rule", "state"))
    for each in found.rules:
        state = each.phase
        if each.since is not None:
            state += time.strftime(" since %H:%M:%S", time.localtime(each.since))
        if each.silenced_until is not None:
            until = time.strftime(" until %H:%M", time.localtime(each.silenced_until)) if each.silenced_until else ""
            state += f", silent{until}"
        style = _STYLES.get(each.phase, "")
        table.add_row(each.rule, one_line(each.subject), Text(state, style=style), each.shown, each.what)
    console.print(table)
    for receiver in found.receivers:
        line = f"{receiver.name}: {receiver.sent} sent, {receiver.failed} failed, {receiver.dropped} dropped"
        error = f"; last error: {one_line(receiver.last_error)}" if receiver.last_error else ""
        console.print(Text(line + error, style="yellow" if error else "dim"), soft_wrap=True)
