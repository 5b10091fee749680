"""The clocks of a stream, and the looks at the server's slots that tell a long prefill from a dead one."""

from __future__ import annotations

from math import inf
from typing import Any

from llamastream.policy.clocks import Clocks, Phase
from llamastream.policy.stall import made_progress
from llamastream.types import Timeouts


class Watch(Clocks):
    """Clocks that look at `/slots` before they give a prefill up."""

    __slots__ = ("_look_at", "_seen")

    def __init__(self, timeouts: Timeouts, now: float) -> None:
        super().__init__(timeouts, now)
        self._look_at = inf
        self._seen: list[dict[str, Any]] | None = None

    @property
    def wait_until(self) -> float:
        """When something is to be done if nothing arrives; `math.inf`: never."""
        return min(self.deadline, self._look_at) if self._look_at != inf else self.deadline

    def begin(self, now: float) -> None:
        """An attempt begins."""
        self._look_at = inf
        self.enter(Phase.CONNECT, now)

    def prefill(self, now: float) -> None:
        """The header is there. The first look at the slots comes when half of the clock has run, the second at its end.

        Until then nothing is known of them, so that the first look is the one to compare with.
        """
        self.enter(Phase.PREFILL, now)
        if self.deadline != inf:
            self._look_at = now + (self.deadline - now) / 2

    def arrived(self, now: float) -> None:
        """Content is there: no look is needed any more."""
        self._look_at = inf
        self.content(now)

    def wants_slots(self, now: float) -> bool:
        """Whether `/slots` is to be asked now; `slots_seen` takes the answer."""
        due = now >= self._look_at or now >= self.deadline
        return self.phase is Phase.PREFILL and now < self.end and due

    def slots_seen(self, slots: list[dict[str, Any]] | None, now: float) -> bool:
        """Take what `/slots` answered (None: nothing useful); False if the time is up and there was no progress."""
        first, self._look_at = self._look_at != inf, inf
        if self.phase is not Phase.PREFILL:
            return True
        if now < self.deadline:
            self._seen = slots
            return True
        if first and slots is not None:
            # It came so late, for want of a CPU here or there, that nothing is known to compare with: this is it.
            self._seen = slots
            self.progress(now)
            return True
        if slots is None or self._seen is None or not made_progress(self._seen, slots):
            return False
        self._seen = slots
        self.progress(now)
        return True
