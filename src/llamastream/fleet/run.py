"""One process of an instance, from the moment when it is ready to its end: what looks at it find, and how it ends."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal, TypeAlias

from msgspec import Struct

from llamastream.engine import Engine
from llamastream.fleet import questions, sessions
from llamastream.fleet.footprint import Footprint
from llamastream.fleet.settings import FleetSettings
from llamastream.fleet.tally import Tally
from llamastream.policy.memory import MemoryVerdict, MemoryWatch
from llamastream.policy.restarts import due
from llamastream.policy.wedge import Look, Remedy, Verdict, WedgeWatch, remedy

DRAIN_POLL = 0.05
WEDGED_PATIENCE = 2.0
"""Seconds from SIGTERM to SIGKILL for a process that hangs: what it still holds is lost in any case."""
RESCUE_SECONDS = 2.0
"""Seconds that one which hangs may take to get on again, once it gets no more requests."""
RESCUE_LOOK = 0.5
"""Seconds that an answer may take then."""
CANCEL_SECONDS = 3.0
"""Seconds for cancelling what a server holds for clients that may come back."""

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

    def __init__(
        self, engine: Engine, settings: FleetSettings, usable_memory: int, allowance: int, tally: Tally
    ) -> None:
        self.engine = engine
        self.tally = tally
        self.ready_at = time.monotonic()
        self._started = datetime.now(UTC)
        self._settings = settings
        self._footprint = Footprint(engine.pid)
        self._wedge = WedgeWatch(settings.wedge_policy, self.ready_at)
        self._memory = MemoryWatch(settings.memory_policy(usable_memory, allowance))
        self._in_flight = 0
        self._answers = True
        self._hung_before = 0

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
                if found.verdict == "wedged" and self.rescue(wait) == "end":
                    return "wedged"
                look_at = time.monotonic() + self._settings.look_interval * (1.0 if found.verdict == "well" else 0.25)
            # twice: a request may stand between the server's line and its slot
            load = questions.load(self.engine)
            self._answers = load is not None
            quiet = quiet + 1 if load == 0 else 0
            if quiet >= 2:
                return "empty"
            left = deadline - time.monotonic()
            if left <= 0 or wait(min(DRAIN_POLL, left)):
                return "late"
        return "gone"

    def rescue(self, wait: Callable[[float], bool]) -> Remedy:
        """It is taken to hang: cancel what can be cancelled, and see whether it gets on again, for a moment.

        Args:
            wait: waits so many seconds, or less; True: give up.

        Returns:
            `serve`, `replace` or `end`, see `policy.wedge.remedy`.
        """
        began = time.monotonic()
        cancelled = False
        while self.engine.alive:
            waited = time.monotonic() - began
            next_step = remedy(lives=self._lives(), hung_before=self._hung_before, waited=waited, grace=RESCUE_SECONDS)
            if next_step in ("serve", "replace"):
                self._hung_before += 1
            if next_step != "wait":
                return next_step
            if not cancelled:
                # its HTTP threads may answer though its decode loop hangs: in one of these generations, perhaps
                cancelled = True
                sessions.cancel_all(self.engine, RESCUE_SECONDS / 2)
            elif wait(DRAIN_POLL):
                break
        return "end"

    def _lives(self) -> bool:
        """Whether it shows life now."""
        tells = self.engine.capabilities.slots_endpoint
        found = questions.slots(self.engine, RESCUE_LOOK) if tells else None
        healthy = None if tells else questions.healthy(self.engine, RESCUE_LOOK)
        look = Look(now=time.monotonic(), slots=found, healthy=healthy, cpu_seconds=self._footprint.cpu_seconds())
        return self._wedge.observe(look) == "well"

    def cancel_held(self) -> int:
        """Before its end: cancel the generations that it holds under an id, for which it would not end; how many.

        A request that is answered in one piece, and has no such id, cannot be cancelled by anybody but its client.
        """
        return sessions.cancel_all(self.engine, CANCEL_SECONDS) if self._answers and self.engine.alive else 0

    def end(self, *, hangs: bool = False) -> int | None:
        """End the process, whatever it does; its exit code."""
        return self.engine.stop(WEDGED_PATIENCE if hangs else None)
