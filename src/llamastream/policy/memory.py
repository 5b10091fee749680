"""When a server's memory says that it should be replaced: a limit, and growth that will reach it.

Growth is estimated from the slopes between all pairs of samples, as the Theil-Sen estimator does (H. Theil 1950,
P. K. Sen 1968). Instead of their median, the lower quartile counts, and the least of it for the whole window and for
both its halves: noise is no growth, nor is a step, as when a long context is first used.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Sequence
from typing import Literal

from msgspec import Struct

SAMPLES = 60
"""So many samples at most stand for the window."""


class MemoryPolicy(Struct, frozen=True, kw_only=True):
    """What is too much.

    Attributes:
        limit: bytes of private memory and swap; None: no limit. allowance: instead of `limit`: bytes that it may have
            beyond what it had at the first look, when it was ready; None: no such limit. slope_limit: bytes per second
            of steady growth; None: none. window: seconds that growth is judged by. min_samples, min_seconds: evidence
            without which there is no talk of growth. lead: seconds that a replacement takes: growth that reaches the
            limit within them is too much. warn_share: share of the limit (of the allowance) from which on there is a
            warning.
    """

    limit: int | None = None
    allowance: int | None = None
    slope_limit: float | None = None
    window: float = 600.0
    min_samples: int = 10
    min_seconds: float = 60.0
    lead: float = 120.0
    warn_share: float = 0.8


class MemoryVerdict(Struct, frozen=True):
    """`ok`, `warning`, or `restart`, and why. `slope`: bytes per second of steady growth, None without evidence."""

    level: Literal["ok", "warning", "restart"]
    reason: str = ""
    slope: float | None = None


class MemoryWatch:
    """The memory of one process over time. Not thread-safe."""

    def __init__(self, policy: MemoryPolicy) -> None:
        self._policy = policy
        self._samples: deque[tuple[float, int]] = deque()
        self._last = MemoryVerdict("ok")
        self._limit = policy.limit
        self._warn_at = None if policy.limit is None else policy.limit * policy.warn_share

    def observe(self, now: float, size: int) -> MemoryVerdict:
        """Take a sample (monotonic seconds, bytes) and judge."""
        policy, samples = self._policy, self._samples
        if policy.allowance is not None and self._limit is None and size > 0:
            self._limit = size + policy.allowance
            self._warn_at = size + policy.allowance * policy.warn_share
        # Looks come far more often than growth can be told: what falls into the same part of the window is one sample.
        if not samples or now - samples[-1][0] >= policy.window / SAMPLES:
            samples.append((now, size))
            while now - samples[0][0] > policy.window:
                samples.popleft()
            slope = self._slope()
        else:
            slope = self._last.slope
        self._last = self._judge(size, slope)
        return self._last

    def _slope(self) -> float | None:
        samples = self._samples
        if len(samples) < self._policy.min_samples or samples[-1][0] - samples[0][0] < self._policy.min_seconds:
            return None
        every = list(samples)
        half = len(every) // 2
        # What grows steadily grows in both halves; a step stands in one of them.
        return min(sure_slope(every), sure_slope(every[:half]), sure_slope(every[half:]))

    def _judge(self, size: int, slope: float | None) -> MemoryVerdict:
        policy, limit = self._policy, self._limit
        if limit is not None:
            if size >= limit:
                return MemoryVerdict("restart", f"{_mib(size)} of memory, the limit is {_mib(limit or 0)}", slope)
            left = (limit - size) / slope if slope is not None and slope > 0 else None
            if left is not None and left <= policy.lead:
                return MemoryVerdict(
                    "restart",
                    f"{_mib(size)} of memory, growing by {_mib(slope or 0)} a second: "
                    f"the limit of {_mib(limit or 0)} is {left:.0f} s away",
                    slope,
                )
        if policy.slope_limit is not None and slope is not None and slope > policy.slope_limit:
            return MemoryVerdict(
                "restart",
                f"memory grows by {_mib(slope * 3600)} an hour, {_mib(policy.slope_limit * 3600)} are allowed",
                slope,
            )
        if self._warn_at is not None and size >= self._warn_at:
            return MemoryVerdict("warning", f"{_mib(size)} of memory, the limit is {_mib(limit or 0)}", slope)
        return MemoryVerdict("ok", "", slope)


def sure_slope(samples: Sequence[tuple[float, float]]) -> float:
    """The lower quartile of the slopes between all pairs of (time, value), of which there are two at least."""
    slopes = [
        (later - earlier) / (end - begin)
        for index, (begin, earlier) in enumerate(samples)
        for end, later in samples[index + 1 :]
    ]
    return statistics.quantiles(slopes, n=4)[0]


def _mib(size: float) -> str:
    return f"{size / 2**20:,.1f} MiB"
