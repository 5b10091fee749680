"""The five clocks of a stream, as one decision: until when may we wait now, and what is it called when we may not."""

from __future__ import annotations

from enum import Enum
from math import inf

from llamastream.errors import (
    ConnectTimeoutError,
    ContentIdleTimeoutError,
    FirstByteTimeoutError,
    PrefillTimeoutError,
    StreamTimeoutError,
    TotalTimeoutError,
)
from llamastream.types import Timeouts


class Phase(Enum):
    """What a stream waits for."""

    CONNECT = "connect"
    FIRST_BYTE = "first_byte"
    PREFILL = "prefill"
    CONTENT = "content_idle"


_ERRORS: dict[Phase, tuple[type[StreamTimeoutError], str]] = {
    Phase.CONNECT: (ConnectTimeoutError, "no connection"),
    Phase.FIRST_BYTE: (
        FirstByteTimeoutError,
        "no response header (llama-server sends none while a request waits for a free slot)",
    ),
    Phase.PREFILL: (PrefillTimeoutError, "no first token after the response header"),
    Phase.CONTENT: (ContentIdleTimeoutError, "no new content (keep-alive pings do not count)"),
}


class Clocks:
    """Which clock runs, and when it runs out. Times are those of one monotonic clock, in seconds, given by the caller.

    Attributes:
        phase: what is waited for.
        content_at: when content last came, once it does: whoever is in a hurry sets only this.
        end: when the total clock runs out, or `math.inf`.
    """

    __slots__ = ("_deadline", "_idle", "_limit", "_timeouts", "content_at", "end", "phase")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        self._timeouts = timeouts
        self.end = inf if timeouts.total is None else now + timeouts.total
        self._idle = inf if timeouts.content_idle is None else timeouts.content_idle
        self.phase = Phase.CONNECT
        self._deadline = inf
        self.enter(Phase.CONNECT, now)

    def enter(self, phase: Phase, now: float, at_most: float = inf) -> None:
        """Begin to wait for something else, `at_most` seconds even if the clock would allow more."""
        self.phase = phase
        self.content_at = now
        limit: float | None = getattr(self._timeouts, phase.value)
        self._limit = at_most if limit is None else min(limit, at_most)
        self._deadline = min(self.end, now + self._limit)

    @property
    def deadline(self) -> float:
        """When the running clock (or the total one) runs out; `math.inf` if neither is set."""
        return min(self.end, self.content_at + self._idle) if self.phase is Phase.CONTENT else self._deadline

    def content(self, now: float) -> None:
        """Content arrived: the content-idle clock starts anew."""
        self.phase = Phase.CONTENT
        self.content_at = now

    def restart(self, now: float) -> None:
        """Whatever runs starts anew; the total clock does not."""
        if self.phase is Phase.CONTENT:
            self.content(now)
        else:
            self.enter(self.phase, now)

    def progress(self, now: float) -> None:
        """Prefill made progress: the prefill clock starts anew."""
        if self.phase is not Phase.CONTENT:
            self.enter(Phase.PREFILL, now)

    def expired(self, now: float, url: str) -> StreamTimeoutError | None:
        """The error to raise if the time is up at `now`, else None."""
        if now < self.deadline:
            return None
        if now >= self.end:
            return TotalTimeoutError(
                f"{url}: the whole request took longer than {self._timeouts.total:g} s (Timeouts.total)"
            )
        kind, what = _ERRORS[self.phase]
        limit = self._idle if self.phase is Phase.CONTENT else self._limit
        setting = f" (Timeouts.{self.phase.value})" if limit == getattr(self._timeouts, self.phase.value) else ""
        return kind(f"{url}: {what} within {limit:g} s{setting}")
