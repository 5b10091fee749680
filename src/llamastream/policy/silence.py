"""For how long a server said nothing before header and content came in one read: with nothing between them, somebody
on the way may have held both back (see `policy.buffering`)."""

from __future__ import annotations

from math import inf

from llamastream.policy.buffering import SILENCE

LATE = 0.25
"""Seconds that an event loop may be late, so that what it reads in one go is still believed to have come in one go."""


class Silence:
    """The silence after one request. Times are those of one monotonic clock, in seconds, given by the caller.

    `reads_block`: bytes are read as they come. An event loop may be late, and then all of them come at once: so whoever
    reads in one says by `awake`, again and again, that it is not.
    """

    __slots__ = ("_awake_at", "_awake_due", "_reads_block", "_since")

    def __init__(self, *, reads_block: bool) -> None:
        self._reads_block = reads_block
        self._since = self._awake_at = self._awake_due = inf

    def begin(self, now: float) -> None:
        """The request goes out."""
        self._since = self._awake_at = self._awake_due = now

    def reader_came(self, now: float) -> None:
        """Nobody read until now."""
        self._since = max(self._since, now)

    def awake(self, now: float, *, waits_for_header: bool) -> float:
        """The event loop runs. Returns when it should say so again: `math.inf` if that is of no use."""
        if now > self._awake_due + LATE:
            self._since = now  # something may have come meanwhile, and is only waiting to be read
        self._awake_at = now
        self._awake_due = max(self._since + SILENCE - LATE, now + LATE) if waits_for_header else inf
        return self._awake_due

    def until(self, now: float) -> float:
        """How long it was, in seconds; 0 where an event loop did not listen all the time."""
        return now - self._since if self._reads_block or now - self._awake_at < 2 * LATE else 0.0
