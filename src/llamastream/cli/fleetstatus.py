"""`llamastream status`: a running fleet, once or live."""

from __future__ import annotations

import contextlib
import os
import select
import sys
import termios
import time
import tty
from collections.abc import Callable, Collection, Iterator
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llamastream.backends import ROUTABLE, InstanceState
from llamastream.cli.fleets import AsJson, Name, fleet_of
from llamastream.cli.screen import need_stdout, print_json
from llamastream.fleet.control_client import STATUS_SECONDS, ControlClient, ControlError
from llamastream.fleet.messages import FleetStatus
from llamastream.fleet.report import InstanceReport
from llamastream.printable import one_line

NOT_READY = 3
"""Exit code: the fleet runs, but not every instance takes requests."""
INTERVAL = 1.0
"""Seconds between two looks."""
NARROW, MEDIUM, WIDE = 72, 90, 130
"""Columns of a terminal from which there is room for more."""

_STYLES: dict[InstanceState, str] = {
    "ready": "green", "busy": "yellow", "wedged": "red", "failed": "bold red", "restarting": "yellow",
}  # fmt: skip
_QUIT = ("q", "Q", "\x04")


def status(
    *,
    json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it live, until q or Ctrl-C.")] = False,
    any_ready: Annotated[
        bool, typer.Option("--any", help="Exit with 0 if at least one instance takes requests.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing: the exit code says it.")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, max=3600, help="Seconds that the fleet may take to answer.")
    ] = STATUS_SECONDS,
    name: Name = None,
) -> None:
    """Show the instances of a running fleet.

    Exits with 0 if all of them take requests, with 3 if some do not, with 1 if there is no fleet to ask.
    """
    if watch or not quiet:
        need_stdout()
    client = fleet_of(name)
    if watch:
        _watch(client, json, timeout)
        return
    found = client.status(timeout)
    if json:
        print_json(as_json(found))
    elif not quiet:
        console = _console()
        console.print(render(found, time.time(), console.width))
    ready = [report.state in ROUTABLE for report in found.instances]
    well = any(ready) if any_ready else bool(ready) and all(ready)
    raise typer.Exit(0 if well else NOT_READY)


def as_json(found: FleetStatus) -> dict[str, Any]:
    """For programs."""
    return {name: value for name, value in msgspec.to_builtins(found).items() if name != "kind"}


def render(found: FleetStatus, now: float, width: int) -> Group:
    """A fleet as a table with a line above it, and the reasons below it where the table has no room for them.

    Args:
        now: seconds since the epoch. width: of the terminal, in columns.
    """
    ready = sum(report.state in ROUTABLE for report in found.instances)
    total = sum(report.tokens_per_second for report in found.instances)
    head = Text.assemble(
        (found.name, "bold"),
        f" {found.phase}, pid {found.pid}, for {duration(now - found.started)}: "
        f"{ready} of {len(found.instances)} ready, {total:,.0f} tokens/s",
        f", {found.waiting} waiting" if found.waiting else "",
        (f", on {found.url}" if found.url else "", "bold"),
    )
    behind = bool(found.url)  # a gateway: nobody else goes to the servers themselves
    wide, narrow = width >= WIDE, width < NARROW
    places = [title for title, fits in (("url", not behind), ("pid", True)) if fits and not narrow]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("instance", "state", *places):
        table.add_column(title, no_wrap=True)
    for title in ("slots", "tokens/s", *(("memory", "restarts", "since") if width >= MEDIUM else ())):
        table.add_column(title, no_wrap=True, justify="right")
    if wide:
        table.add_column("reason", overflow="fold")
    for report in found.instances:
        table.add_row(*list(_cells(report, now, places))[: len(table.columns)])
    if wide:
        return Group(head, table)
    unwell = (report for report in found.instances if report.state not in ROUTABLE)
    below = (Text(_where(report, url=not behind)) for report in found.instances if narrow)
    return Group(
        head, table, *below, *(Text(f"{report.id}: {one_line(report.reason)}", style="dim") for report in unwell)
    )


def _where(report: InstanceReport, *, url: bool) -> str:
    pid = f"pid {report.pid}" if report.pid else "no process"
    return f"{report.id}: {report.url} {pid}" if url else f"{report.id}: {pid}"


def _cells(report: InstanceReport, now: float, places: Collection[str]) -> Iterator[Text]:
    yield Text(report.id, style="bold")
    yield Text(report.state, style=_STYLES.get(report.state, ""))
    if "url" in places:
        yield Text(report.url)
    if "pid" in places:
        yield Text(str(report.pid or ""))
    yield Text(f"{report.in_flight}/{report.slots}")
    yield Text(f"{report.tokens_per_second:,.0f}")
    yield Text(size(report.rss_bytes))
    yield Text(str(report.restarts))
    yield Text(duration(now - report.since) if report.since else "")
    yield Text(one_line(report.reason), style="dim")


def _console() -> Console:
    """In a pipe there is no width to keep to."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=200)


def size(count: int) -> str:
    """Bytes for people; "" for none."""
    return "" if not count else f"{count / 2**30:.1f} GiB" if count >= 1 << 30 else f"{count / 2**20:.0f} MiB"


def duration(seconds: float) -> str:
    """A time for people, in its largest unit or two: `42 s`, `5 min`, `3 h 10 min`, `2 d 4 h`."""
    whole = max(0, int(seconds))
    for unit, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole // 60} min" if whole >= 60 else f"{whole} s"


# -- live ---------------------------------------------------------------------------------------------------------


def _watch(client: ControlClient, json: bool, timeout: float) -> None:
    """Until q, Ctrl-C, or the end of the fleet."""
    console = _console()
    with contextlib.suppress(KeyboardInterrupt):
        if json or not console.is_terminal or console.is_dumb_terminal:
            _print_on(client, json, console, timeout)
        else:
            _draw(client, console, timeout)


def _print_on(client: ControlClient, json: bool, console: Console, timeout: float) -> None:
    while True:
        found = client.status(timeout)
        if json:
            print_json(as_json(found))
        else:
            console.print(render(found, time.time(), console.width))
        time.sleep(INTERVAL)


def _draw(client: ControlClient, console: Console, timeout: float) -> None:
    hint = Text("q ends this view; the fleet runs on", style="dim")
    with _keys() as pressed, Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            try:
                shown: Group | Text = render(client.status(timeout), time.time(), console.width)
            except ControlError as error:
                shown = Text(error.message, style="yellow")  # it may be starting again
            live.update(Group(shown, hint), refresh=True)
            if pressed(INTERVAL) in _QUIT:
                return


@contextlib.contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """A function that waits so many seconds for a key; within this, keys are not shown, and need no Enter."""
    if not sys.stdin.isatty():

        def pause(seconds: float) -> str:
            time.sleep(seconds)
            return ""

        yield pause
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def pressed(seconds: float) -> str:
        ready, _, _ = select.select([descriptor], [], [], seconds)
        return os.read(descriptor, 1).decode("ascii", "replace") or "q" if ready else ""

    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
