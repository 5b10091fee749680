"""Which slot of a server a request is put into, where all of the server's requests come from here.

llama-server chooses a slot by itself if it is not told one, and takes the one whose prompt has the most in common with
the new one: often that of another conversation with the same system prompt, which is lost by that. So it is told
(`id_slot`). It must never be told one that works, since it would make the request wait for that one, whatever else is
free: a slot is free here only if its last request is known to be over on the server. Where that is not certain (the
client left, the connection broke, a request went out without a slot) `/slots` is asked, and until then the server
chooses. Not thread-safe; times are those of one monotonic clock in seconds.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf
from typing import Literal

from llamastream.policy.prefixes import Prompt

QUEUED = 5.0
"""Seconds after which the server has forgotten a request that was given up before its first token: it may have stood in
the server's own line, where `/slots` does not show it."""


class _Slot:
    """`ends`: characters up to the end of each part of the prompt that it holds. `session`: of its conversation.
    `used`: when, in requests."""

    __slots__ = ("chain", "ends", "session", "state", "used")

    def __init__(self) -> None:
        self.state: Literal["unknown", "free", "taken"] = "unknown"
        self.chain: tuple[int, ...] = ()
        self.ends: tuple[int, ...] = ()
        self.session = 0
        self.used = 0


class Slots:
    """The slots of one process of a server.

    Attributes:
        unsure: some may be free of which that is not known: `/slots` is to be asked.
    """

    def __init__(self, count: int, before: Slots | None = None) -> None:
        """`before`: those of the process before, the contents of which came back in this one."""
        self._slots = [_Slot() for _ in range(max(1, count))]
        self._at: dict[int, int] = {}  # hash of all that a slot holds: its number
        self._requests = 0
        self._unplaced: set[Seat] = set()  # at work in slots that the server chose, without a first token
        self._queued_until = -inf
        for number, old in enumerate((before._slots if before is not None else [])[: len(self._slots)]):  # noqa: SLF001
            self._hold(number, Prompt(old.chain, old.ends, old.session))
            self._slots[number].used = old.used
        self._requests = max((each.used for each in self._slots), default=0)

    def __len__(self) -> int:
        return len(self._slots)

    @property
    def unsure(self) -> bool:
        return any(each.state == "unknown" for each in self._slots)

    def holds(self, part: int) -> bool:
        """Whether a free slot holds the prompt that ends with this part, and nothing else."""
        number = self._at.get(part)
        return number is not None and self._slots[number].state == "free"

    def begin(self, prompt: Prompt, *, placed: bool) -> Seat:
        """A request begins. `placed`: its slot can be chosen; if none is known to be free, the server chooses."""
        self._requests += 1
        number = self._best(prompt, ("free",)) if placed else None
        seat = Seat(self, number)
        if number is not None:
            self._slots[number].state = "taken"
            self._hold(number, prompt)
            return seat
        self._unplaced.add(seat)
        likely = self._best(prompt, ("free", "unknown"))
        for each in self._slots:
            if each.state == "free":
                each.state = "unknown"
        if likely is not None:
            self._hold(likely, prompt)
        return seat

    def _best(self, prompt: Prompt, states: Collection[str]) -> int | None:
        """The slot of the same conversation, else that in which the least is lost, which counts the more, the later it
        was used. A common system prompt alone is no reason to take the slot of another conversation: once read, each
        slot has it."""
        able = [number for number, each in enumerate(self._slots) if each.state in states]
        able.sort(key=lambda number: (self._slots[number].used, -number))  # of empty ones the server takes the last
        best, best_value = None, (-inf, -inf)
        for rank, number in enumerate(able):
            each = self._slots[number]
            same = _common(each.chain, prompt.chain)
            gained = each.ends[same - 1] if same else 0
            lost = (each.ends[-1] if each.ends else 0) - gained
            own = same and (same == len(each.chain) or (each.session == prompt.session and gained > lost))
            value = (gained, 0.0) if own else (-lost * (rank + 1) / (len(able) + 1), gained)
            if value > best_value:
                best, best_value = number, value
        return best

    def _hold(self, number: int, prompt: Prompt) -> None:
        slot = self._slots[number]
        if slot.chain and self._at.get(slot.chain[-1]) == number:
            del self._at[slot.chain[-1]]
        slot.chain, slot.ends, slot.session, slot.used = prompt.chain, prompt.ends, prompt.session, self._requests
        if prompt.chain:
            self._at[prompt.chain[-1]] = number

    def doubt(self) -> None:
        """Others may have used the server: nothing is known to be free."""
        for each in self._slots:
            if each.state == "free":
                each.state = "unknown"

    def may_look(self, now: float) -> bool:
        """Whether what `/slots` says from now on, can be trusted."""
        return not self._unplaced and now >= self._queued_until

    def looked(self, idle: Collection[int], now: float) -> None:
        """These were idle, as `/slots` says, which was asked when `may_look` allowed it."""
        if self.may_look(now):
            for number, each in enumerate(self._slots):
                if each.state == "unknown" and number in idle:
                    each.state = "free"

    def _launched(self, seat: Seat) -> None:
        self._unplaced.discard(seat)

    def _over(self, seat: Seat, *, complete: bool, now: float) -> None:
        self._unplaced.discard(seat)
        if not (complete or seat.launched):
            self._queued_until = now + QUEUED
        if seat.slot is not None:
            self._slots[seat.slot].state = "free" if complete else "unknown"


class Seat:
    """The place of one request.

    Attributes:
        slot: that it is to be put into; None: the server chooses. launched: the server works on it.
    """

    __slots__ = ("_slots", "launched", "slot")

    def __init__(self, slots: Slots, slot: int | None) -> None:
        self._slots = slots
        self.slot = slot
        self.launched = False

    def read(self) -> None:
        """Its first token is there."""
        self.launched = True
        self._slots._launched(self)  # noqa: SLF001 - the two are one

    def leave(self, *, complete: bool, now: float) -> None:
        """It is over. `complete`: the server said so."""
        self._slots._over(self, complete=complete, now=now)  # noqa: SLF001 - as above


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many parts are the same. Each hash covers all parts before it."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high) >> 1
        if one[middle] == other[middle]:
            low = middle + 1
        else:
            high = middle
    return low
