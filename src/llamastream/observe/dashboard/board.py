"""The state of the dashboard: a listener to requests and to a fleet, and a point for the charts each second."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from msgspec import Struct

from llamastream.events import ClientEvent, FleetEvent, InstanceChanged, InstanceWarning, RequestServed
from llamastream.observe.dashboard.recent import Recent, RecentFigures
from llamastream.observe.dashboard.rings import History
from llamastream.observe.dashboard.tail import Line, Tail

LOG_LINES = 400
"""Lines that are kept of each source."""
TROUBLES = 100

SERIES = (
    "tokens_per_second",
    "requests",
    "failed",
    "ttft_p50",
    "ttft_p95",
    "waiting",
    "busy",
    "slots",
    "memory",
    "cached",
)
OWN = ("/dashboard", "/health", "/v1/health", "/metrics", "/fleet", "other")
"""Beginnings of routes that are not counted: asked by those who watch, or not there at all (clients ask what a server
can do, and scanners ask for anything)."""

Event: TypeAlias = RequestServed | ClientEvent | FleetEvent


class CacheFigures(Struct, frozen=True, kw_only=True):
    """What became of the response cache.

    Attributes:
        hits: requests that were answered from it. shared: with the same request in flight. misses: that had to be
            generated. tokens_saved: that were not. entries: answers that are kept. memory_bytes, disk_bytes: what they
            take; None: none are on disk.
    """

    hits: int
    shared: int
    misses: int
    tokens_saved: int
    entries: int
    memory_bytes: int
    disk_bytes: int | None = None


class Facts(Struct, frozen=True, kw_only=True):
    """What is read at one moment.

    Attributes:
        instances: each as a mapping with `id`, `state`, `slots`, and what else is known of it (see `InstanceReport`).
        waiting: requests in line. active: requests at work. refused: by the line, since the start. connections: of
            clients, None if nobody tells. alerts: those that are active, as mappings. response_cache: None: it is off.
    """

    instances: Sequence[Mapping[str, Any]] = ()
    waiting: int = 0
    active: int = 0
    refused: int = 0
    connections: int | None = None
    alerts: Sequence[Any] = ()
    response_cache: CacheFigures | None = None


class Totals(Struct, kw_only=True):
    """Since the start."""

    requests: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    recoveries: dict[str, int] = {}


class Board:
    """Takes what happens (any thread) and says how things are (`look`, for one thread).

    Attributes:
        logs, troubles: the last lines of logs; what went wrong. history: for the charts. telling: whether logs come.
        on_news: called, in any thread, after a line was added: it must be quick, and wait for nothing.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        """`clock`: seconds since the epoch."""
        self._clock = clock
        self._lock = threading.Lock()
        self._recent = Recent()
        self._totals = Totals()
        self._recoveries: Counter[str] = Counter()
        self._seen: dict[str, tuple[str, float]] = {}
        self.started = clock()
        self.logs = Tail(LOG_LINES)
        self.troubles = Tail(TROUBLES)
        self.history = History(SERIES)
        self.telling = False
        self.on_news: Callable[[], None] = lambda: None

    # -- what happens -----------------------------------------------------------------------------------------------

    def __call__(self, event: Event) -> None:
        """For listeners."""
        if isinstance(event, RequestServed):
            if not event.route.startswith(OWN):
                self._served(event)
        elif isinstance(event, InstanceWarning):
            self._trouble("warning", event.id, f"{event.topic}: {event.message}", event.time, event.topic)
        elif isinstance(event, InstanceChanged) and (level := _level(event)):
            self._trouble(level, event.id, f"{event.before} → {event.after}: {event.reason}", event.time, "state")

    def log(self, time: float, level: str, message: str, *, instance: str = "", event: str = "") -> None:
        """A line of a log; `event` is `server_log` for what a server itself says."""
        self.logs.add(Line(time=time, level=level, message=message, instance=instance, event=event))
        self.on_news()

    def _served(self, event: RequestServed) -> None:
        failed = event.failed
        with self._lock:
            self._recent.add(event, self._clock())
            totals = self._totals
            totals.requests += 1
            totals.failed += failed
            totals.prompt_tokens += event.prompt_tokens or 0
            totals.cached_tokens += event.cached_tokens or 0
            totals.completion_tokens += event.completion_tokens or 0
            self._recoveries.update(event.recoveries)
        if failed:
            what = f"{event.method} {event.route} {event.status}"
            message = " ".join(filter(None, (what, event.model, event.error, f"(request {event.request_id})")))
            self._trouble("error", event.instance, message, event.time + event.duration, "request")

    def _trouble(self, level: str, instance: str, message: str, at: float, event: str) -> None:
        self.troubles.add(Line(time=at, level=level, message=message, instance=instance, event=event))
        self.on_news()

    # -- how things are ---------------------------------------------------------------------------------------------

    def look(self, facts: Facts, *, point: bool) -> dict[str, Any]:
        """How everything is now, as it is sent to those who watch. `point`: the second is over, so that it becomes a
        point of the charts."""
        now = self._clock()
        with self._lock:
            recent = self._recent.figures(now)
            totals = {**_fields(self._totals), "recoveries": dict(self._recoveries)}
        instances = [self._with_since(instance, now) for instance in facts.instances]
        values = _values(facts, recent)
        found: dict[str, Any] = {
            "time": now,
            "uptime": now - self.started,
            "instances": instances,
            "waiting": facts.waiting,
            "active": facts.active,
            "refused": facts.refused,
            "connections": facts.connections,
            "alerts": list(facts.alerts),
            "response_cache": facts.response_cache,
            "recent": recent,
            "totals": totals,
            "now": values,
        }
        if point:
            found["point"] = {**values, "time": now}
            if (coarse := self.history.add(now, values)) is not None:
                found["coarse"] = coarse
        return found

    def _with_since(self, instance: Mapping[str, Any], now: float) -> Mapping[str, Any]:
        """With the time when it came to its state, for sources that do not tell."""
        if instance.get("since") is not None:
            return instance
        name, state = instance["id"], instance["state"]
        if name not in self._seen or self._seen[name][0] != state:
            self._seen[name] = (state, now)
        return {**instance, "since": self._seen[name][1]}


def _values(facts: Facts, recent: RecentFigures) -> dict[str, float | None]:
    """The point of the charts."""
    speeds = [speed for each in facts.instances if (speed := each.get("tokens_per_second")) is not None]
    memory = [size for each in facts.instances if (size := each.get("rss_bytes"))]
    slots = sum(max(1, each["slots"]) for each in facts.instances if each["state"] in ("ready", "busy"))
    requests, failed, tokens = recent.last_second
    return {
        "tokens_per_second": sum(speeds) if speeds else tokens,
        "requests": requests,
        "failed": failed,
        "ttft_p50": recent.ttft_p50,
        "ttft_p95": recent.ttft_p95,
        "waiting": facts.waiting,
        "busy": min(facts.active, slots),
        "slots": slots,
        "memory": sum(memory) if memory else None,
        "cached": 100 * recent.cached_tokens / recent.prompt_tokens if recent.prompt_tokens else None,
    }


def _fields(totals: Totals) -> dict[str, Any]:
    return {name: getattr(totals, name) for name in totals.__struct_fields__}


def _level(event: InstanceChanged) -> str:
    """How bad a change is; "" for what is as it should be."""
    if event.after == "failed":
        return "error"
    unplanned = event.after == "restarting" and event.before != "draining"
    return "warning" if event.after == "wedged" or unplanned else ""
