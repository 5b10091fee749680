"""One process of an instance, from the moment when it is ready to its end: what looks at it find, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from msgspec import Struct

from llamastream.engine import Engine
from llamastream.fleet import questions
from llamastream.fleet.footprint import Footprint
from llamastream.fleet.settings import FleetSettings
from llamastream.fleet.tally import Tally
from llamastream.policy.memory import MemoryVerdict, MemoryWatch
from llamastream.policy.restarts import due
from llamastream.policy.wedge import Look, Verdict, WedgeWatch

DRAIN_POLL = 0.05
WEDGED_PATIENCE = 2.0
"""Seconds from SIGTERM to SIGKILL for a process that hangs: what it still holds is lost in any case."""


Drained: TypeAlias = Literal["empty", "late", "wedged", "gone"]
"""How a drain ended: nothing runs any more, the time was up, the server hangs, or its process has ended."""


class Findings(Struct, frozen=True):
    """What a look found. `full`: every slot is taken; None: not known."""

    verdict: Verdict
    in_flight: int
    full: bool | None
    tokens_per_second: float
    memory: int
    memory_verdict: MemoryVerdict


class Run:
    """One process. Used by the instance's thread alone.

    Attributes:
        engine: the process. ready_at: when it was ready, in monotonic seconds. tally: what its log counted.
    """

    def __init__(self, engine: Engine, settings: FleetSettings, usable_memory: int, tally: Tally) -> None:
        self.engine = engine
        self.tally = tally
        self.ready_at = time.monotonic()
        self._started = datetime.now(UTC)
        self._settings = settings
        self._footprint = Footprint(engine.pid)
        self._wedge = WedgeWatch(settings.wedge_policy, self.ready_at)
        self._memory = MemoryWatch(settings.memory_policy(usable_memory))
        self._in_flight = 0

    @property
    def good_for(self) -> float:
        """Seconds since it was ready."""
        return time.monotonic() - self.ready_at

    def look(self) -> Findings:
        """Look at it; where it shows no life for too long, ask it for a token."""
        tells = self.engine.capabilities.slots_endpoint
        found = questions.slots(self.engine) if tells else None
        healthy = None if tells else questions.healthy(self.engine)
        now = time.monotonic()
        verdict = self._wedge.observe(
            Look(now=now, slots=found, healthy=healthy, cpu_seconds=self._footprint.cpu_seconds())
        )
        if verdict == "canary" and self.engine.alive:
            came = questions.canary(self.engine, self._settings.canary_timeout)
            now = time.monotonic()
            verdict = self._wedge.observe(Look(now=now, slots=None, canary=came))
        decoding = 0
        if found is not None:
            self._in_flight = questions.in_flight(found)
            decoding = questions.decoded(found)
        memory = self._footprint.memory()
        return Findings(
            verdict=verdict,
            in_flight=self._in_flight,
            full=None if found is None else self._in_flight >= len(found),
            tokens_per_second=self.tally.tokens_per_second(now, decoding),
            memory=memory,
            memory_verdict=self._memory.observe(now, memory),
        )

    def explain_wedge(self) -> str:
        """Why it is taken to hang."""
        return self._wedge.explain(time.monotonic())

    def due(self) -> str | None:
        """Why its time for a restart has come by schedule; None if it has not."""
        now = datetime.now().astimezone()
        return due(self._settings.schedule, now=now, started=self._started.astimezone(), requests=self.tally.requests)

    def drain(self, timeout: float, wait: Callable[[float], bool], saw: Callable[[Findings], None]) -> Drained:
        """Wait until nothing runs on it; what came of that.

        Args:
            timeout: seconds at most. wait: waits so many seconds, or less; True: give up. saw: gets what looks at it
                find meanwhile, as often as otherwise.
        """
        deadline = time.monotonic() + timeout
        look_at = time.monotonic() + self._settings.look_interval
        quiet = 0
        while self.engine.alive:
            if time.monotonic() >= look_at:
                found = self.look()
                saw(found)
                if found.verdict == "wedged":
                    return "wedged"
                look_at = time.monotonic() + self._settings.look_interval * (1.0 if found.verdict == "well" else 0.25)
            # twice: a request may stand between the server's line and its slot
            quiet = quiet + 1 if questions.load(self.engine) == 0 else 0
            if quiet >= 2:
                return "empty"
            left = deadline - time.monotonic()
            if left <= 0 or wait(min(DRAIN_POLL, left)):
                return "late"
        return "gone"

    def end(self, *, hangs: bool = False) -> int | None:
        """End the process, whatever it does; its exit code."""
        return self.engine.stop(WEDGED_PATIENCE if hangs else None)
