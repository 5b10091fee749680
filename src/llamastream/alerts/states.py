"""One thing under one rule: well, bad for too short a time, bad, or well again for too short a time."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from llamastream.alerts.rules import Rule

Phase: TypeAlias = Literal["well", "pending", "firing", "clearing"]


class Condition(Struct, frozen=True, kw_only=True):
    """How it is.

    Attributes:
        phase: `pending`: bad, but not for long enough; `clearing`: well again, but not for long enough.
        since: when it came to this phase. bad_since: when it became bad, or None. value: the last reading that was bad,
            or the last at all while it is well. detail: what was said of it. Times are in monotonic seconds.
    """

    phase: Phase = "well"
    since: float = 0.0
    bad_since: float | None = None
    value: float | None = None
    detail: str = ""


def judge(rule: Rule, before: Condition, value: float | None, now: float, detail: str = "") -> Condition:
    """What becomes of a condition with a reading.

    Args:
        value: None: there is no evidence, which is as good as being well. detail: words that explain it.
    """
    bad = value is not None and rule.threshold is not None and rule.is_bad(value)
    well = value is None or rule.threshold is None or rule.is_well(value)
    if bad:
        known = replace(before, value=value, detail=detail)
        if before.phase == "firing":
            return known
        if before.phase == "clearing":
            return replace(known, phase="firing", since=now)
        since = now if before.phase == "well" else before.since
        if now - since >= rule.hold:
            return replace(known, phase="firing", since=now, bad_since=since)
        return replace(known, phase="pending", since=since, bad_since=since)
    if before.phase == "pending":
        return Condition(since=now, value=value)
    if before.phase == "firing" and well:
        before = replace(before, phase="clearing", since=now)
    if before.phase == "clearing":
        if not well:  # between the two thresholds: it is not well yet
            return replace(before, phase="firing", since=now)
        if now - before.since >= rule.clear_hold:
            return Condition(since=now, value=value)
        return before
    return before if before.phase == "firing" else replace(before, value=value)
