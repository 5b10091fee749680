"""The last minutes finely and the last hours coarsely, in memory that does not grow."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from math import isnan, nan

FINE_SECONDS, FINE_POINTS = 1, 600
"""A point each second for ten minutes."""
COARSE_SECONDS, COARSE_POINTS = 10, 2160
"""A point each ten seconds for six hours."""


class Ring:
    """The last points of several series, each point at a number of seconds since the epoch. A value that was not known
    is None."""

    def __init__(self, names: Sequence[str], points: int) -> None:
        self._names = tuple(names)
        self._points = points
        self._times = array("d", [0.0]) * points
        self._values = {name: array("d", [nan]) * points for name in names}
        self._next = 0
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, time: float, values: Mapping[str, float | None]) -> None:
        """A point; names that are missing are not known."""
        at = self._next
        self._times[at] = time
        for name in self._names:
            value = values.get(name)
            self._values[name][at] = nan if value is None else value
        self._next = (at + 1) % self._points
        self._count = min(self._count + 1, self._points)

    def series(self) -> dict[str, list[float | None]]:
        """All points, the oldest first: `time`, and a list for each name."""
        order = [(self._next - self._count + offset) % self._points for offset in range(self._count)]
        found: dict[str, list[float | None]] = {"time": [round(self._times[at], 1) for at in order]}
        for name in self._names:
            values = self._values[name]
            found[name] = [None if isnan(values[at]) else round(values[at], 4) for at in order]
        return found


class History:
    """Two rings: each point goes to the fine one, and the means of ten seconds to the coarse one."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self.fine = Ring(names, FINE_POINTS)
        self.coarse = Ring(names, COARSE_POINTS)
        self._span: int | None = None
        self._gathered: list[Mapping[str, float | None]] = []

    def add(self, time: float, values: Mapping[str, float | None]) -> dict[str, float | None] | None:
        """A point; what comes back is the coarse one that it completed, with its `time`."""
        self.fine.add(time, values)
        span = int(time // COARSE_SECONDS)
        completed = None
        if self._span is not None and span != self._span:
            completed = self._mean()
            at = (self._span + 1) * COARSE_SECONDS
            self.coarse.add(at, completed)
            completed["time"] = at
            self._gathered = []
        self._span = span
        self._gathered.append(values)
        return completed

    def _mean(self) -> dict[str, float | None]:
        found: dict[str, float | None] = {}
        for name in self.names:
            known = [value for each in self._gathered if (value := each.get(name)) is not None]
            found[name] = sum(known) / len(known) if known else None
        return found
