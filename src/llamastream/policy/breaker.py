"""A circuit breaker for one server: one that fails is left alone for a while, then tried with a single request.

Closed: requests go. Open: none goes until a time, which doubles with each failure in a row. Half-open: that time is
over, and one probe may go; what comes of it closes the breaker or opens it again. The pattern is that of M. Nygard,
«Release It!» (2007). All times are those of one monotonic clock, in seconds, given by the caller. Not thread-safe.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct


class BreakerState(Enum):
    """What a breaker allows."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    OPEN = "open"


class BreakerPolicy(Struct, frozen=True):
    """When a breaker opens, and for how long.

    Attributes:
        failures: so many in a row open it; a failure that is `certain` opens it at once.
        open_seconds: how long at first; twice as long each time, up to `max_open_seconds`.
    """

    failures: int = 3
    open_seconds: float = 1.0
    max_open_seconds: float = 30.0


DEFAULT_POLICY = BreakerPolicy()


class Breaker:
    """The breaker of one server."""

    __slots__ = ("_failures", "_openings", "_policy", "_probing_until", "open_until")

    def __init__(self, policy: BreakerPolicy = DEFAULT_POLICY) -> None:
        self._policy = policy
        self._failures = 0
        self._openings = 0
        self._probing_until = 0.0
        self.open_until: float | None = None

    def state(self, now: float) -> BreakerState:
        """What is allowed now."""
        if self.open_until is None:
            return BreakerState.CLOSED
        if now < self.open_until or now < self._probing_until:
            return BreakerState.OPEN
        return BreakerState.HALF_OPEN

    def probe(self, now: float, seconds: float) -> None:
        """A probe goes now; others wait for what comes of it, `seconds` at most."""
        self._probing_until = now + seconds

    def failed(self, now: float, *, certain: bool = False) -> None:
        """The server failed. `certain`: there is no doubt that it is down, or hangs."""
        self._failures += 1
        half_open = self.open_until is not None
        if half_open and now < (self.open_until or 0.0):
            return  # a request that was under way when it opened
        if certain or half_open or self._failures >= self._policy.failures:
            policy = self._policy
            self.open_until = now + min(policy.max_open_seconds, policy.open_seconds * 2.0 ** min(self._openings, 16))
            self._openings += 1
            self._probing_until = 0.0

    def succeeded(self) -> None:
        """The server answered as it should."""
        if self._failures or self.open_until is not None:
            self._failures = self._openings = 0
            self._probing_until = 0.0
            self.open_until = None
