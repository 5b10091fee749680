"""From what happens to the values that rules judge: requests, changes of instances, and looks at the whole. Pure."""

from __future__ import annotations

import math
from array import array
from collections import deque
from collections.abc import Iterator, Mapping

from msgspec import Struct

from llamastream.alerts.settings import RuleName
from llamastream.backends import ROUTABLE, InstanceState
from llamastream.events import InstanceChanged, RequestServed

KEPT = 10_000
"""Requests of the window that are kept at most; of more, the last ones count."""
FEWEST_GAPS = 8
"""Gaps between chunks, without which a stream says nothing about speed."""


class Reading(Struct, frozen=True):
    """A value for a rule: of the whole, or of the `subject`. None: there is no evidence."""

    rule: RuleName
    subject: str
    value: float | None
    detail: str = ""


class Look(Struct, frozen=True, kw_only=True):
    """The whole at one moment.

    Attributes:
        instances: state of each. memory: bytes of each process that runs. heavy: why the memory of some is too much, or
            will be soon, by the fleet's own limits. growth: bytes per second of each that was
            watched for long enough. waiting: requests that wait for a slot. free: bytes of each directory.
    """

    instances: Mapping[str, InstanceState] = {}
    memory: Mapping[str, int] = {}
    heavy: Mapping[str, str] = {}
    growth: Mapping[str, float] = {}
    waiting: int | None = None
    free: Mapping[str, int] = {}


_TIME, _FAILED, _WAITED, _FIRST, _SPEED, _MENDED = range(6)


class Requests:
    """The requests of the last `window` seconds. What they take of memory is taken at once, and stays the same."""

    def __init__(self, window: float, fewest: int, model: str | None = None) -> None:
        """`model`: the one whose streams say how fast they are; None: all."""
        self._window = window
        self._fewest = fewest
        self._model = model
        # rings, one for each figure: the request with number n is at n modulo KEPT
        self._rings = tuple(array("d", bytes(8 * KEPT)) for _ in range(6))
        self._oldest = self._next = 0

    def add(self, event: RequestServed, now: float) -> None:
        """One is over. Only those that wanted an answer count: a scrape of metrics shows nothing of them."""
        if not event.finish_reason:
            return
        speed = speed_of(event) if self._model in (None, event.model) else None
        first, waited = event.time_to_first_token, event.queue_wait
        figures = (now, event.failed, _known(waited), _known(first), _known(speed), len(event.recoveries))
        for ring, figure in zip(self._rings, figures, strict=True):
            ring[self._next % KEPT] = figure
        self._next += 1
        self._oldest = max(self._oldest, self._next - KEPT)

    def readings(self, now: float) -> Iterator[Reading]:
        """What they show."""
        times = self._rings[_TIME]
        while self._oldest < self._next and now - times[self._oldest % KEPT] > self._window:
            self._oldest += 1
        count = self._next - self._oldest
        failed = int(sum(self._figures(_FAILED)))
        rate = failed / count if count >= self._fewest else None
        yield Reading("error_rate", "", rate, f"{failed} of {count} requests failed")
        yield Reading("recoveries", "", int(sum(self._figures(_MENDED))))
        yield self._quantile("queue_wait", 0.95, _WAITED)
        yield self._quantile("time_to_first_token", 0.95, _FIRST)
        yield self._quantile("tokens_per_second", 0.5, _SPEED)

    def _figures(self, which: int) -> array[float]:
        """A figure of each request, in the order in which they ended."""
        ring, start, end = self._rings[which], self._oldest % KEPT, self._next % KEPT
        if self._oldest == self._next:
            return ring[:0]
        return ring[start:end] if start < end else ring[start:] + ring[:end]

    def _quantile(self, rule: RuleName, share: float, which: int) -> Reading:
        known = sorted(value for value in self._figures(which) if not math.isnan(value))
        value = quantile(known, share) if len(known) >= self._fewest else None
        return Reading(rule, "", value, f"of {len(known)} requests")


def _known(value: float | None) -> float:
    return math.nan if value is None else value


def quantile(ordered: list[float], share: float) -> float:
    """Of values in order, of which there is one at least: the smallest that so many are not above."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def speed_of(event: RequestServed) -> float | None:
    """Tokens per second after the first, None where there are too few to tell."""
    count = sum(times for _, times in event.gaps)
    seconds = sum(gap * times for gap, times in event.gaps)
    if count < FEWEST_GAPS or seconds <= 0:
        return None
    tokens = count if event.completion_tokens is None else max(count, event.completion_tokens - 1)
    return tokens / seconds


class Instances:
    """What instances went through, of which a look at their states shows too little: it may come too late."""

    def __init__(self, window: float, crash_loop: int) -> None:
        self._window = window
        self._crash_loop = crash_loop
        self._states: dict[str, InstanceState] = {}
        self._was_up: set[str] = set()
        self._planned: set[str] = set()
        self._wedged: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._ends: dict[str, deque[float]] = {}

    def judge_by(self, window: float, crash_loop: int) -> None:
        """Other figures from now on; what instances went through is kept."""
        self._window = window
        self._crash_loop = crash_loop

    def changed(self, event: InstanceChanged, now: float) -> Iterator[Reading]:
        """One came to another state."""
        name, after = event.id, event.after
        self._states[name] = after
        self._reasons[name] = event.reason
        if after in ROUTABLE:
            self._was_up.add(name)
            self._planned.discard(name)
            self._wedged.discard(name)
        elif after in ("draining", "stopped"):
            self._planned.add(name)
        elif after == "wedged":
            self._wedged.add(name)
            self._planned.discard(name)
        elif after in ("restarting", "failed") and event.before != "draining":
            self._planned.discard(name)
            if after == "restarting":
                self._ends.setdefault(name, deque(maxlen=KEPT)).append(now)
        yield from self._of(name, now)

    def seen(self, states: Mapping[str, InstanceState]) -> None:
        """A look: what sources that tell of no changes have, and which instances are gone."""
        for name, state in states.items():
            self._states[name] = state
            if state in ROUTABLE:
                self._was_up.add(name)
                self._planned.discard(name)
                self._wedged.discard(name)
        for name in self._states.keys() - states.keys():
            del self._states[name]
            self._ends.pop(name, None)
            self._reasons.pop(name, None)
            for group in (self._was_up, self._planned, self._wedged):
                group.discard(name)

    def readings(self, now: float) -> Iterator[Reading]:
        """How all of them are."""
        for name in tuple(self._states):
            yield from self._of(name, now)

    def _of(self, name: str, now: float) -> Iterator[Reading]:
        state, reason = self._states[name], self._reasons.get(name, "")
        yield Reading("instance_down", name, float(self._is_down(name, state)), reason or f"it is {state}")
        yield Reading("wedge", name, float(name in self._wedged), reason)
        ends = self._ends.setdefault(name, deque(maxlen=KEPT))
        while ends and now - ends[0] > self._window:
            ends.popleft()
        gone = max(len(ends), self._crash_loop) if state == "failed" else len(ends)
        yield Reading("crash_loop", name, gone, reason)

    def _is_down(self, name: str, state: InstanceState) -> bool:
        if state in ROUTABLE or state in ("draining", "stopped") or name in self._planned:
            return False
        # a first start takes its time, unless it has gone wrong once
        return state in ("failed", "wedged", "restarting") or name in self._was_up or bool(self._ends.get(name))


def of_look(look: Look, *, sizes: bool = True) -> Iterator[Reading]:
    """What a look shows by itself. `sizes`: the memory of instances in bytes, else whether the fleet warns of it."""
    for name in look.instances:
        heavy = look.heavy.get(name, "")
        size = look.memory.get(name)
        yield Reading("memory", name, size) if sizes else Reading("memory", name, float(bool(heavy)), heavy)
        slope = look.growth.get(name)
        yield Reading("memory_growth", name, None if slope is None else slope * 3600)
    if look.waiting is not None:
        yield Reading("queue_length", "", look.waiting)
    for directory, free in look.free.items():
        yield Reading("disk", directory, free)
