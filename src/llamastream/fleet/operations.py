"""What a request over the control socket has done to a fleet, as the replies that tell of it while it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from llamastream.alerts.watchman import Watchman
from llamastream.backends import ROUTABLE
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.fleet import questions
from llamastream.fleet.feed import Feed, Follower
from llamastream.fleet.fleet import Fleet
from llamastream.fleet.messages import (
    AlertStatus,
    AlertTested,
    AskAlerts,
    AskAlertTest,
    AskDrain,
    AskLogs,
    AskReload,
    AskRestart,
    AskSilence,
    AskStatus,
    AskStop,
    AskUndrain,
    Done,
    Dropped,
    FleetStatus,
    Refused,
    Reply,
    Request,
    Said,
)
from llamastream.fleet.orders import Order
from llamastream.fleet.records import Record, at_least

TICK = 0.25
"""Seconds between two looks at how far something is."""
PATIENCE = 10.0
"""Seconds after which whoever waits for a restart is told what that waits for."""
MOST_LINES = 100_000
_GONE = ("gone", "the fleet has ended")
_UNDER_WAY = frozenset({"starting", "loading", "stopped"})


class Reloaded(Struct, frozen=True):
    """What a reload set off: orders to instances, the names of new ones, what it could not do, and what the gateway
    has taken over."""

    orders: tuple[Order, ...] = ()
    fresh: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()

    def summary(self) -> str:
        """For people: what has changed."""
        changed = sorted({order.instance for order in self.orders} | set(self.fresh))
        parts = []
        if changed:
            parts.append(f"changed: {', '.join(changed)}")
        if self.taken:
            parts.append(f"taken over: {', '.join(self.taken)}")
        return "; ".join((*(parts or ["nothing has changed"]), *self.notes))


class Host(Protocol):
    """Who runs the fleet; `fleet` is None where the servers are somebody else's."""

    feed: Feed
    alerts: Watchman | None

    @property
    def fleet(self) -> Fleet | None: ...

    def status(self) -> FleetStatus:
        """How everything is."""

    def reload(self) -> Reloaded:
        """Read the configuration anew and apply it; raises `LlamaStreamError` if it is not allowed."""

    def stop(self, *, now: bool) -> None:
        """Begin to end the fleet; `feed` ends when it has ended."""


def carry_out(request: Request, host: Host) -> Iterator[Reply | None]:
    """Do it, and tell of it; None while there is nothing to tell. Whoever stops listening changes nothing."""
    try:
        yield from _carry_out(request, host)
    except LlamaStreamError as error:
        yield Refused(error.message)


def _carry_out(request: Request, host: Host) -> Iterator[Reply | None]:
    if isinstance(request, AskStatus):
        yield host.status()
        yield Done()
    elif isinstance(request, AskLogs):
        yield from _logs(request, host)
    elif isinstance(request, AskRestart):
        yield from _restart(request, host)
    elif isinstance(request, AskDrain):
        yield from _drain(request, host)
    elif isinstance(request, AskUndrain):
        yield from _undrain(request, host)
    elif isinstance(request, AskReload):
        yield from _reload(request, host)
    elif isinstance(request, AskAlerts | AskAlertTest | AskSilence):
        yield from _alerts(request, host)
    else:
        yield from _stop(request, host)


def _logs(request: AskLogs, host: Host) -> Iterator[Reply | None]:
    chosen = frozenset(_known(request.ids, host)) if request.ids else None
    levels = at_least(request.level)

    def wanted(record: Record) -> bool:
        return record.level in levels and (chosen is None or record.instance in chosen)

    last, follower = host.feed.follow(wanted, min(max(request.lines, 0), MOST_LINES))
    with follower:
        yield from map(Said, last)
        if request.follow:
            yield from _follow(follower, lambda: False)
    yield Done()


def _restart(request: AskRestart, host: Host) -> Iterator[Reply | None]:
    fleet = _own(host, "restart")
    ids = _known(request.ids, host) if request.ids else [report.id for report in fleet.status()]
    with _about(ids, host) as follower:
        orders = [fleet.restart(each) for each in ids]
        if request.wait:
            explain = _Impatience(orders, fleet, host.feed)
            yield from _follow(follower, lambda: explain() or _all_done(orders))
    yield _outcome(orders, (), host, f"restarted: {', '.join(ids)}") if request.wait else Done(_named("restart", ids))


def _drain(request: AskDrain, host: Host) -> Iterator[Reply | None]:
    fleet = _own(host, "drain")
    ids = _known(request.ids, host)
    with _about(ids, host) as follower:
        orders = [fleet.drain(each) for each in ids]
        if request.wait:
            yield from _follow(follower, lambda: _all_done(orders) and all(_is_empty(each, fleet) for each in ids))
    yield Done(f"drained: {', '.join(ids)}" if request.wait else _named("drain", ids))


def _undrain(request: AskUndrain, host: Host) -> Iterator[Reply | None]:
    fleet = _own(host, "undrain")
    ids = _known(request.ids, host)
    with _about(ids, host) as follower:
        orders = [fleet.undrain(each) for each in ids]
        if request.wait:
            yield from _follow(follower, lambda: _all_done(orders))
    yield (
        _outcome(orders, (), host, f"take requests again: {', '.join(ids)}")
        if request.wait
        else Done(_named("undrain", ids))
    )


def _reload(request: AskReload, host: Host) -> Iterator[Reply | None]:
    _, follower = host.feed.follow(_is_event)
    with follower:
        reloaded = host.reload()
        if request.wait:
            yield from _follow(follower, lambda: _all_done(reloaded.orders) and not _under_way(reloaded.fresh, host))
    message = reloaded.summary()
    yield _outcome(reloaded.orders, reloaded.fresh, host, message) if request.wait else Done(message)


def _stop(request: AskStop, host: Host) -> Iterator[Reply | None]:
    _, follower = host.feed.follow(_is_event)
    with follower:
        host.stop(now=request.now)
        if request.wait:
            yield from _follow(follower, lambda: False)
    yield Done("stopped" if request.wait else "the stop was asked for")


def _alerts(request: AskAlerts | AskAlertTest | AskSilence, host: Host) -> Iterator[Reply | None]:
    alerts = host.alerts
    if alerts is None:
        raise SettingError("alerts are switched off here (`watch` in [alerts])")
    if isinstance(request, AskAlerts):
        yield AlertStatus(rules=alerts.reports(), receivers=alerts.receivers())
        yield Done()
    elif isinstance(request, AskAlertTest):
        from concurrent.futures import ThreadPoolExecutor, wait  # here: a supervisor needs it for nothing else

        with ThreadPoolExecutor(1) as pool:  # receivers may take their time: say that we live in the meantime
            outcomes = pool.submit(alerts.test, request.rule)
            while not outcomes.done():
                wait([outcomes], TICK)
                yield None
        yield AlertTested(outcomes.result())
        yield Done()
    else:
        alerts.silence(request.rule, request.seconds)
        yield Done()


# -- parts of these -----------------------------------------------------------------------------------------------


def _follow(follower: Follower, done: Callable[[], bool]) -> Iterator[Reply | None]:
    """Records until it is done, or the fleet has ended."""
    over = False
    while not over:
        over = done() or follower.ended
        records, dropped = follower.take(0.0 if over else TICK)
        yield from map(Said, records)
        if dropped:
            yield Dropped(dropped)
        if not records:
            yield None


class _Impatience:
    """Says once of each instance that its restart waits for something that others have to do."""

    def __init__(self, orders: Sequence[Order], fleet: Fleet, feed: Feed) -> None:
        self._orders = orders
        self._fleet = fleet
        self._feed = feed
        self._told: set[str] = set()
        self._at = time.monotonic() + PATIENCE

    def __call__(self) -> bool:
        """Always False: nothing is done by that."""
        if time.monotonic() < self._at:
            return False
        states = {report.id: report.state for report in self._fleet.status()}
        for order in self._orders:
            if not order.done.done() and order.instance not in self._told and states.get(order.instance) in ROUTABLE:
                self._told.add(order.instance)
                least = self._fleet.settings.min_ready
                message = f"waits for its turn: one goes at a time, and {least} of the others must be ready (min_ready)"
                self._feed.publish(
                    Record(time=time.time(), level="info", event="waiting", message=message, instance=order.instance)
                )
        self._at = time.monotonic() + PATIENCE
        return False


def _is_event(record: Record) -> bool:
    return record.event != "server_log"


def _about(ids: Iterable[str], host: Host) -> Follower:
    chosen = frozenset(ids)
    return host.feed.follow(lambda record: _is_event(record) and record.instance in chosen)[1]


def _own(host: Host, what: str) -> Fleet:
    """The fleet, to do this with its instances.

    Raises:
        SettingError: there is none.
    """
    if host.fleet is None:
        raise SettingError(
            f"{what} is for servers that `serve` has started, but these are somebody else's (--upstream): only "
            "status, logs, reload and stop can be asked for here"
        )
    return host.fleet


def _known(ids: Iterable[str], host: Host) -> list[str]:
    """These instances, each once.

    Raises:
        SettingError: one does not exist, or none was named.
    """
    there = [report.id for report in host.status().instances]
    asked = list(dict.fromkeys(ids))
    for each in asked:
        if each not in there:
            raise SettingError(f"there is no instance {each!r}; there are: {', '.join(there) or 'none'}")
    if not asked:
        raise SettingError(f"say which instance; there are: {', '.join(there) or 'none'}")
    return asked


def _all_done(orders: Iterable[Order]) -> bool:
    return all(order.done.done() for order in orders)


def _is_empty(instance: str, fleet: Fleet) -> bool:
    """Whether nothing runs on it, nor waits in its line; a server that tells neither, is not waited for."""
    engine = fleet.engine(instance)
    if engine is None or not engine.alive:
        return True
    tells = engine.capabilities.metrics_endpoint or engine.capabilities.slots_endpoint
    return not tells or questions.load(engine) == 0


def _under_way(ids: Iterable[str], host: Host) -> bool:
    states = _states(host)
    return any(states.get(each, _GONE)[0] in _UNDER_WAY for each in ids)


def _states(host: Host) -> Mapping[str, tuple[str, str]]:
    return {report.id: (report.state, report.reason) for report in host.status().instances}


def _outcome(orders: Sequence[Order], fresh: Sequence[str], host: Host, message: str) -> Reply:
    """How it went, once it is over."""
    states = _states(host)
    problems = []
    for order in orders:
        well = order.kind == "stop" or _is_well(states.get(order.instance))
        if not order.done.done():
            problems.append(f"{order.instance}: the fleet ended before its turn came")
        elif well and not order.done.result():
            problems.append(f"{order.instance}: called off, or not ready again")
    for each in dict.fromkeys([*(order.instance for order in orders if order.kind != "stop"), *fresh]):
        if not _is_well(states.get(each)):
            state, reason = states.get(each, _GONE)
            problems.append(f"{each} is {state}: {reason}")
    return Refused("; ".join(problems)) if problems else Done(message)


def _is_well(state: tuple[str, str] | None) -> bool:
    """One that was drained by hand stays so over a restart."""
    return state is not None and (state[0] in ROUTABLE or state[0] == "draining")


def _named(what: str, ids: Sequence[str]) -> str:
    return f"{what} was asked for: {', '.join(ids)}"
