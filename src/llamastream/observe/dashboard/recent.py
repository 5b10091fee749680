"""The requests of the last minute, second by second."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from math import ceil

from msgspec import Struct

from llamastream.events import RequestServed

WINDOW = 60
"""Seconds."""
KEPT = 500
"""Times that are kept of each second: the quantiles of a busier one are those of its first requests."""


class _Second:
    """What was over in one second."""

    __slots__ = ("at", "cached", "failed", "prompts", "statuses", "times", "tokens", "waits")

    def __init__(self, at: int) -> None:
        self.at = at
        self.statuses: Counter[int] = Counter()
        self.failed = 0
        self.tokens = 0
        self.prompts = 0
        self.cached = 0
        self.times: list[float] = []
        self.waits: list[float] = []


class RecentFigures(Struct, frozen=True, kw_only=True):
    """The last minute. Times are in seconds, None where there was no such request.

    Attributes:
        statuses: requests by HTTP status. failed: those at which the service failed, a broken stream among
            them; not what it refused.
        last_second: requests, failed ones and generated tokens in the last whole second. prompt_tokens, cached_tokens:
            of the prompts of the minute, and those of them that the prompt cache saved.
        ttft_p50, ttft_p95: from the beginning of a request to its first content. wait_p50, wait_p95: in line.
    """

    statuses: dict[int, int]
    failed: int
    last_second: tuple[int, int, int]
    prompt_tokens: int
    cached_tokens: int
    ttft_p50: float | None
    ttft_p95: float | None
    wait_p50: float | None
    wait_p95: float | None


class Recent:
    """Counts requests that are over. `now` is in seconds of any steady clock."""

    def __init__(self) -> None:
        self._seconds: deque[_Second] = deque()

    def add(self, event: RequestServed, now: float) -> None:
        """One more."""
        at = int(now)
        if not self._seconds or self._seconds[-1].at < at:
            self._seconds.append(_Second(at))
            self._forget(at)
        second = self._seconds[-1]
        second.statuses[event.status] += 1
        second.failed += event.failed
        second.tokens += event.completion_tokens or 0
        second.prompts += event.prompt_tokens or 0
        second.cached += event.cached_tokens or 0
        if event.time_to_first_token is not None and len(second.times) < KEPT:
            second.times.append(event.time_to_first_token)
        if event.queue_wait is not None and len(second.waits) < KEPT:
            second.waits.append(event.queue_wait)

    def figures(self, now: float) -> RecentFigures:
        """The minute before `now`."""
        at = int(now)
        self._forget(at)
        statuses: Counter[int] = Counter()
        for second in self._seconds:
            statuses.update(second.statuses)
        times = sorted(value for second in self._seconds for value in second.times)
        waits = sorted(value for second in self._seconds for value in second.waits)
        last = next((second for second in reversed(self._seconds) if second.at == at - 1), _Second(at - 1))
        return RecentFigures(
            statuses=dict(sorted(statuses.items())),
            failed=sum(second.failed for second in self._seconds),
            last_second=(last.statuses.total(), last.failed, last.tokens),
            prompt_tokens=sum(second.prompts for second in self._seconds),
            cached_tokens=sum(second.cached for second in self._seconds),
            ttft_p50=quantile(times, 0.5),
            ttft_p95=quantile(times, 0.95),
            wait_p50=quantile(waits, 0.5),
            wait_p95=quantile(waits, 0.95),
        )

    def _forget(self, at: int) -> None:
        while self._seconds and self._seconds[0].at <= at - WINDOW:
            self._seconds.popleft()


def quantile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest value that so large a share does not exceed; None of nothing."""
    return ordered[max(0, ceil(share * len(ordered)) - 1)] if ordered else None
