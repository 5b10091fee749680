"""Who goes next: never more requests at work than there are slots, the others in line, first come first served."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from math import ceil
from time import monotonic

from llamastream.errors import RateLimitedError, UnavailableError

LONGEST_RETRY_AFTER = 120
SMOOTHING = 0.1
"""Share of the newest service time in the running mean."""


class Admission:
    """The line before the slots of one pool of servers. Belongs to one event loop.

    Attributes:
        limit, timeout: see `__init__`. active: requests at work. admitted, refused: counts since the start.
    """

    def __init__(self, slots: Callable[[], int], *, limit: int, timeout: float) -> None:
        """`slots`: how many there are now. `limit`: requests in line at most. `timeout`: seconds there at most."""
        self._slots = slots
        self.limit = limit
        self.timeout = timeout
        self._line: deque[asyncio.Future[None]] = deque()
        self._service_time = 0.0
        self.active = 0
        self.admitted = 0
        self.refused = 0

    @property
    def waiting(self) -> int:
        """Requests in line."""
        return len(self._line)

    async def enter(self) -> float:
        """Wait for a slot; the seconds that took. `leave` is to be called afterwards.

        Raises:
            RateLimitedError: the line is full.
            UnavailableError: no slot within the time.
        """
        if not self._line and self.active < self._slots():
            self._admit()
            return 0.0
        if len(self._line) >= self.limit:
            self.refused += 1
            error = RateLimitedError(
                f"all slots are taken and {len(self._line)} requests wait for one, which is the limit (queue_limit)",
                status=429,
            )
            error.retry_after = self.retry_after()
            raise error
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(turn)
        began = monotonic()
        try:
            async with asyncio.timeout(self.timeout):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self.active -= 1  # the turn came in the same moment: it is somebody else's now
            else:
                self._line.remove(turn)
            self.look()
            if isinstance(error, TimeoutError):
                self.refused += 1
                late = UnavailableError(f"no slot was free within {self.timeout:g} s (queue_timeout)", status=503)
                late.retry_after = self.retry_after()
                raise late from None
            raise
        return monotonic() - began

    def leave(self, seconds: float) -> None:
        """A request is over, after so many seconds at work."""
        self.active -= 1
        mean = self._service_time
        self._service_time = seconds if not mean else mean + SMOOTHING * (seconds - mean)
        self.look()

    def look(self) -> None:
        """A slot may be free: let in who may go."""
        slots = self._slots()
        while self._line and self.active < slots:
            turn = self._line.popleft()
            if not turn.done():  # else it is about to leave the line
                turn.set_result(None)
                self._admit()

    def retry_after(self) -> int:
        """Seconds until a request that comes now would be at work, by what requests take here."""
        rounds = (len(self._line) + 1) / max(1, self._slots())
        return max(1, min(LONGEST_RETRY_AFTER, ceil(rounds * self._service_time)))

    def _admit(self) -> None:
        self.active += 1
        self.admitted += 1
