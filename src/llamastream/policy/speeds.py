"""How quick servers are, learned from what they report. A median of the last few is what a single slow or wrong report
does not move. Not thread-safe."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque


class RunningMedian:
    """The median of the last values. `count`: how many there have been."""

    __slots__ = ("_order", "_sorted", "count", "value")

    def __init__(self, first: float, size: int = 15) -> None:
        """`first`: what it is before there are values."""
        self.value = first
        self.count = 0
        self._order: deque[float] = deque(maxlen=size)
        self._sorted: list[float] = []

    def add(self, value: float) -> None:
        """One more value."""
        if len(self._order) == self._order.maxlen:
            del self._sorted[bisect_left(self._sorted, self._order[0])]
        self._order.append(value)
        insort(self._sorted, value)
        self.count += 1
        middle = len(self._sorted) // 2
        self.value = (self._sorted[middle] + self._sorted[-middle - 1]) / 2


class Mean:
    """A running mean in which old values fade. `count`: how many there have been."""

    __slots__ = ("_share", "_trust", "count", "value")

    def __init__(self, share: float = 0.1, first: float = 0.0, trust: int = 0) -> None:
        """`share`: of the newest value. `first`: what it is before there are values, and counts as `trust` of them."""
        self.value = first
        self.count = 0
        self._trust = trust
        self._share = share

    def add(self, value: float) -> None:
        """One more value."""
        self.count += 1
        self.value += max(self._share, 1.0 / (self.count + self._trust)) * (value - self.value)


FIRST_SECONDS_PER_TOKEN = 0.002
FIRST_TOKENS_PER_CHARACTER = 0.3
FEWEST_TOKENS = 32
"""Prompts of which less was read say little of the speed: most of their time is something else."""


class Speeds:
    """What is learned of all servers together, and stands in for those that have not reported yet."""

    def __init__(self) -> None:
        self.prefill = RunningMedian(FIRST_SECONDS_PER_TOKEN, 31)
        self.tokens_per_character = RunningMedian(FIRST_TOKENS_PER_CHARACTER, 31)
        self.service = Mean()

    def prompt(self, characters: int, tokens: int) -> None:
        """A prompt of so many characters had so many tokens."""
        if characters >= 64 and tokens > 0:
            self.tokens_per_character.add(tokens / characters)
