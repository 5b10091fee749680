"""The one timer of a stream in asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from time import monotonic

from llamastream.client.connection import LONGEST_WAIT


class Alarm:
    """Calls something at a time, by the monotonic clock, and never again until it is set anew.

    A stream has one for all its clocks: when it rings, the stream looks at them, and sets it anew if they have moved on
    meanwhile. So content that moves a deadline away costs nothing; only a deadline that comes nearer, as when one clock
    hands over to a shorter one, sets the alarm anew.

    Attributes:
        deadline: the one for which it was set; `math.inf`: there is none.
    """

    def __init__(self) -> None:
        self.deadline = inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None], deadline: float, earlier: float) -> None:
        """Call `ring` at `deadline`, or at `earlier`; not at all if both are `math.inf`."""
        self.stop()
        self.deadline = deadline
        at = min(deadline, earlier)
        if at != inf:
            self._timer = loop.call_later(min(LONGEST_WAIT, max(0.0, at - monotonic())), ring)

    def stop(self) -> None:
        """Do not ring any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
