"""A fleet for the while of a measurement: `llamastream serve` itself, in a process of its own, so that the figures are
those that it would give. It ends with us, however we end."""

from __future__ import annotations

import os
import queue
import secrets
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import msgspec
from msgspec import Struct

from llamastream.bench.report import ServerFacts
from llamastream.engine import EngineOptions
from llamastream.engine.demo import DEMO_ALIAS, demo_model_path
from llamastream.engine.embedded import embedded_version
from llamastream.engine.logs import LogRing
from llamastream.engine.process import ServerProcess
from llamastream.engine.startup import new_directory
from llamastream.errors import BenchError
from llamastream.fleet.configuration import given_of
from llamastream.fleet.control_client import ControlError, find
from llamastream.fleet.messages import FleetStatus
from llamastream.gateway.settings import GatewaySettings
from llamastream.settings import declared
from llamastream.types import LogRecord

STOP_SECONDS = 10.0
"""For the end of servers that have nothing more to do."""
LOOK_SECONDS = 0.2
"""Between two looks whether it is ready."""
_OF_SYSTEMD = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
"""Variables that are meant for us, and not for a child."""


class Fleet(Struct, frozen=True):
    """One that runs. `key`: of its gateway, never shown."""

    url: str
    key: str
    status: FleetStatus

    def __repr__(self) -> str:
        return f"<Fleet {self.url}>"


@contextmanager
def fleet_of(instances: int, engine: EngineOptions, sources: Mapping[str, str], *, demo: bool) -> Iterator[Fleet]:
    """Run `serve` with so many instances of each model, until the block ends.

    What the command line says of the engine goes on to it; all else it reads where it always does. It has a key of its
    own, without limits, and tells nobody of alerts.

    Raises:
        BenchError: it did not become ready; the message says why.
    """
    name = f"bench-{os.getpid()}"
    key = f"sk-{secrets.token_hex(16)}"
    given = flags_of(engine, sources)
    environ = {variable: value for variable, value in os.environ.items() if variable not in _OF_SYSTEMD}
    if demo:
        given += ["--model", str(demo_model_path()), "--alias", DEMO_ALIAS]
        for field in declared(EngineOptions):
            if field.name in ("model", "hf", "alias"):
                environ.pop(field.env, None)
    limits = "requests_per_minute=0 tokens_per_minute=0 requests_at_once=0"
    environ[_variable("api_keys")] = f"bench:inference:{key} {limits}"
    command = [
        sys.executable, "-m", "llamastream", "serve", "--json", "--name", name, "--host", "127.0.0.1", "--port", "0",
        "--instances", str(instances), "--gateway", "--no-alerts", *given,
    ]  # fmt: skip
    ring = _Wake([key])
    process = ServerProcess(command, environment=environ, ring=ring, directory=new_directory())
    try:
        yield Fleet(*_ready(process, ring, name, key))
    finally:
        process.stop(STOP_SECONDS)


def facts_of(fleet: Fleet, instances: int, options: EngineOptions, told: Sequence[str]) -> ServerFacts:
    """What is known of it. `told`: settings that belong to its figures."""
    reports = fleet.status.instances
    kinds = " and ".join(sorted({report.kind for report in reports}))
    builds = sorted({report.build for report in reports if report.build})
    settings = {name: value for name in told if (value := getattr(options, name)) not in (None, ())}
    return ServerFacts(
        where=f"a fleet of its own behind the gateway, {len(reports)} instances, {kinds}",
        # the wheel's own build says nothing of its version
        build=f"xllamacpp {embedded_version()}" if kinds == "embedded" else ", ".join(builds),
        model=", ".join(sorted({report.model for report in reports})),
        slots=sum(report.slots for report in reports),
        own=True,
        settings={"instances": instances, **settings},
    )


def flags_of(engine: EngineOptions, sources: Mapping[str, str]) -> list[str]:
    """What our command line said of the engine, as a command line."""
    flags = {field.name: field.flags[0] for field in declared(EngineOptions) if field.flags}
    found: list[str] = []
    for name, value in given_of(engine, sources).items():
        flag = flags[name]
        if isinstance(value, bool):
            found.append(flag if value else f"--no-{flag[2:]}")
        else:
            found += [flag, str(value)]
    return found


def _variable(name: str) -> str:
    return next(field.env for field in declared(GatewaySettings) if field.name == name)


class _Wake(LogRing):
    """Keeps what it says, and wakes who waits for it."""

    def __init__(self, hidden: Sequence[str]) -> None:
        super().__init__(secrets=hidden)
        self.news: queue.SimpleQueue[None] = queue.SimpleQueue()

    def add_line(self, line: str) -> LogRecord:
        record = super().add_line(line)
        self.news.put(None)
        return record


def _ready(process: ServerProcess, ring: _Wake, name: str, key: str) -> tuple[str, str, FleetStatus]:
    process.when_ended(lambda: ring.news.put(None))
    while process.alive:
        with suppress(queue.Empty):
            ring.news.get(timeout=LOOK_SECONDS)
        with suppress(ControlError):  # it is not so far yet
            status = find(name).status()
            if status.phase == "running":
                return status.url, key, status
    process.wait()
    raise BenchError(f"the fleet to measure did not start: {_why([record.message for record in ring.records()])}")


def _why(lines: Sequence[str]) -> str:
    """From what it said: its last word of its own, else its last line."""
    for line in reversed(lines):
        with suppress(msgspec.DecodeError, AttributeError):
            said = msgspec.json.decode(line)
            if said.get("event") == "failed":
                return str(said.get("message"))
    return next((line for line in reversed(lines) if line.strip()), "it said nothing")
