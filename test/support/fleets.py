"""Fleets for tests: quick to look, and with a record of what happened."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from llamastream.backends import InstanceState
from llamastream.engine import EngineOptions
from llamastream.events import FleetEvent, InstanceChanged
from llamastream.fleet import Fleet, FleetSettings, Pool

PATIENCE = 60.0
"""Seconds: only a machine that is very busy takes so long."""


class Watched:
    """A fleet and everything that it said."""

    def __init__(self, models: EngineOptions | list[Pool] | None, instances: int, settings: FleetSettings) -> None:
        self.events: list[FleetEvent] = []
        self._changed = threading.Condition()
        self.fleet = Fleet(models, instances=instances, settings=settings, listeners=[self._hear])

    def _hear(self, event: FleetEvent) -> None:
        with self._changed:
            self.events.append(event)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[], Any], what: str = "the condition") -> None:
        """Until it holds, looked at after each event and a few times a second besides."""
        end = time.monotonic() + PATIENCE
        with self._changed:
            while not condition():
                assert time.monotonic() < end, f"{what} did not come about; {self.events[-5:]}"
                self._changed.wait(0.1)

    def wait_state(self, index: int, state: InstanceState, generation: int | None = None) -> None:
        """Until an instance is in a state (in its so-manieth process)."""

        def reached() -> bool:
            now = self.fleet.snapshot()[index]
            return now.state == state and (generation is None or now.generation >= generation)

        self.wait_for(reached, f"{state} of instance {index}, process {generation}")

    def wait_all_ready(self) -> None:
        """Until every instance takes requests; one that was killed a moment ago, and is not missed yet, does not."""

        def alive(pid: int) -> bool:
            try:
                return pid > 0 and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                return False

        self.wait_for(lambda: all(x.state == "ready" and alive(x.pid) for x in self.fleet.snapshot()), "all ready")

    def kill(self, index: int) -> None:
        """End an instance's process at once."""
        pid = self.fleet.snapshot()[index].pid
        assert pid > 0  # 0 would be this process and its group
        os.kill(pid, signal.SIGKILL)

    def states(self, id: str) -> list[InstanceState]:  # noqa: A002  # that is its name everywhere
        """What an instance went through."""
        return [event.after for event in self.events if isinstance(event, InstanceChanged) and event.id == id]

    def reason(self, index: int) -> str:
        return self.fleet.status()[index].reason


def quick(**changes: Any) -> FleetSettings:
    """Settings for tests: frequent looks, short delays, warm restarts only where they are asked for."""
    chosen: dict[str, Any] = {"look_interval": 0.2, "restart_delay": 0.05, "drain_timeout": 10.0, "warm": False}
    return FleetSettings(**{**chosen, **changes})


@contextmanager
def running(
    models: EngineOptions | list[Pool] | None = None, *, instances: int = 2, **changes: Any
) -> Iterator[Watched]:
    """A fleet that has been started, and is stopped afterwards; no process of it is left."""
    watched = Watched(models, instances, quick(**changes))
    try:
        watched.fleet.start()
        yield watched
    finally:
        pids = [backend.pid for backend in watched.fleet.snapshot() if backend.pid]
        watched.fleet.stop(drain=False)
        assert not [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]
