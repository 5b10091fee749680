"""When a server that ended is started again, when one that runs well is replaced by a fresh one, and in which order."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

from msgspec import Struct
from msgspec.structs import replace


class RestartPolicy(Struct, frozen=True, kw_only=True):
    """How a process that ended by itself is started again.

    Attributes:
        base_delay, max_delay: seconds before a start: `base_delay` after the first crash, doubled with each further
            one, `max_delay` at most.
        good_after: seconds of being ready after which a crash counts as the first again.
        crash_limit: so many crashes within `crash_window` seconds are a loop, and end the attempts; 0: never.
    """

    base_delay: float = 0.5
    max_delay: float = 30.0
    good_after: float = 60.0
    crash_limit: int = 10
    crash_window: float = 600.0


class CrashHistory(Struct, frozen=True, kw_only=True):
    """What is remembered of crashes: how many in a row, and the times (monotonic seconds) of those in the window."""

    in_a_row: int = 0
    times: tuple[float, ...] = ()


class Restart(Struct, frozen=True):
    """Start again in `delay` seconds."""

    delay: float


class GiveUp(Struct, frozen=True):
    """Do not start again by itself; `reason` says why."""

    reason: str


def crashed(
    history: CrashHistory, policy: RestartPolicy, now: float, *, good_for: float, final: bool = False
) -> tuple[CrashHistory, Restart | GiveUp]:
    """A process ended by itself, or did not come up: what to do, and what to remember of it.

    Args:
        now: monotonic seconds. good_for: how many seconds it had been ready, 0 if it never was.
        final: another start cannot end otherwise (no engine, a setting that is refused).
    """
    in_a_row = (0 if good_for >= policy.good_after else history.in_a_row) + 1
    kept = tuple(time for time in history.times if now - time < policy.crash_window)
    # no more is kept than decides: a server that crashes for ever does not make us grow
    times = (*kept, now)[-max(policy.crash_limit, 1) :]
    history = CrashHistory(in_a_row=in_a_row, times=times)
    if final:
        return history, GiveUp("it cannot start")
    if policy.crash_limit and len(times) >= policy.crash_limit:
        return history, GiveUp(f"it ended {len(times)} times within {now - times[0]:.0f} s")
    delay = policy.base_delay * 2.0 ** min(in_a_row - 1, 30)
    return history, Restart(min(delay, policy.max_delay))


class Schedule(Struct, frozen=True, kw_only=True):
    """When an instance that runs well is restarted all the same.

    Attributes:
        every: after so many seconds of running, None: not by age. at: at this local time of the day (`HH:MM`), None: at
            none. after_requests: after so many requests, None: not by their number.
    """

    every: float | None = None
    at: datetime.time | None = None
    after_requests: int | None = None


def due(schedule: Schedule, *, now: datetime.datetime, started: datetime.datetime, requests: int) -> str | None:
    """Why an instance that runs since `started` and has served `requests` is to be restarted now; None if it is not.

    `now` and `started` are both aware, in the local time zone.
    """
    age = (now - started).total_seconds()
    if schedule.every is not None and age >= schedule.every:
        return f"it has run for {age / 3600:.1f} h (restart_every)"
    if schedule.at is not None:
        today = now.replace(hour=schedule.at.hour, minute=schedule.at.minute, second=schedule.at.second, microsecond=0)
        last = today if today <= now else today - datetime.timedelta(days=1)
        if started < last:
            return f"it is {schedule.at:%H:%M} (restart_at)"
    if schedule.after_requests is not None and requests >= schedule.after_requests:
        return f"it has served {requests} requests (restart_after_requests)"
    return None


class Turn(Struct, frozen=True, kw_only=True):
    """An instance as the order of restarts sees it.

    Attributes:
        pool: what it is one of: `min_ready` holds in each pool. wants: it waits for a planned restart. away: it is out
            for one. ready: it takes requests. gone: for good (failed, stopped, leaving), so that it counts no more.
        holds: where its process listens, "" if there is none. moves_to: where its next process is to listen, "" if
            that is left open.
    """

    id: str
    pool: str = ""
    wants: bool = False
    away: bool = False
    ready: bool = True
    gone: bool = False
    holds: str = ""
    moves_to: str = ""


def next_turn(instances: Sequence[Turn], min_ready: int) -> str | None:
    """Which instance may be taken out for a planned restart now; None: none yet.

    One at a time, and only if `min_ready` others of its pool are ready then. A pool that is no larger than that lets
    one go when all others are ready: else it could never be restarted as planned.

    One that is to listen where another does, goes after that one. Where several wait for each other in a ring, the
    first goes all the same, and comes back when its new place is free.
    """
    living = [each for each in instances if not each.gone]
    if any(each.away for each in living):
        return None
    wanting = [each for each in living if each.wants]
    free = [each for each in wanting if not holder_of(each, instances)]
    in_a_ring = all((holder := holder_of(each, instances)) and holder.wants for each in wanting)
    for each in wanting if in_a_ring else free:
        others = [other for other in living if other is not each and other.pool == each.pool]
        if sum(other.ready for other in others) >= min(min_ready, len(others)):
            return each.id
    return None


def holder_of(each: Turn, instances: Sequence[Turn]) -> Turn | None:
    """The other one that still listens where this one is to listen next; None if nobody does."""
    for other in instances:
        if other.id != each.id and each.moves_to and other.holds == each.moves_to:
            return other
    return None


def forget_crashes(history: CrashHistory) -> CrashHistory:
    """Somebody has restarted it by hand: it begins anew."""
    return replace(history, in_a_row=0, times=())
