"""Counters and histograms: plain numbers under one lock, and no library."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Literal, TypeAlias

from msgspec import Struct

Kind: TypeAlias = Literal["counter", "gauge", "histogram", "info"]
Labels: TypeAlias = tuple[str, ...]


class Metric(Struct, frozen=True):
    """A declared metric.

    Attributes:
        name: with its unit, without the `_total` of counters. kind, help: as in Prometheus. labels: their names.
        unit: seconds, bytes, or "". buckets: upper bounds, for histograms. source: `requests` (counted when a request
            is over), `fleet` (of its events), or `scrape` (read when somebody asks).
    """

    name: str
    kind: Kind
    help: str
    labels: Labels = ()
    unit: str = ""
    buckets: tuple[float, ...] = ()
    source: Literal["requests", "fleet", "scrape"] = "requests"


class Sample(Struct, frozen=True):
    """A value of a metric at one moment."""

    name: str
    labels: Labels
    value: float


class Distribution:
    """A histogram: how many values up to each bound, and beyond the last; their sum."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int) -> None:
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def cumulative(self) -> list[tuple[str, int]]:
        """Bounds as text, the last "+Inf", each with how many values are not above it."""
        found, seen = [], 0
        for bound, count in zip((*map(_bound_text, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            found.append((bound, seen))
        return found


class Series:
    """The values of all counted metrics. Thread-safe."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = {metric.name: metric for metric in metrics}
        self._counters: dict[str, dict[Labels, float]] = {
            metric.name: {} if metric.labels else {(): 0.0}
            for metric in self._metrics.values()
            if metric.kind == "counter"
        }
        self._histograms: dict[str, dict[Labels, Distribution]] = {
            metric.name: {} for metric in self._metrics.values() if metric.kind == "histogram"
        }
        self._lock = threading.Lock()

    def count(self, name: str, labels: Labels = (), amount: float = 1) -> None:
        """Add to a counter."""
        assert len(labels) == len(self._metrics[name].labels), name
        with self._lock:
            values = self._counters[name]
            values[labels] = values.get(labels, 0.0) + amount

    def observe(self, name: str, values: Iterable[tuple[float, int]], labels: Labels = ()) -> None:
        """Add values, each with how often it came, to a histogram."""
        metric = self._metrics[name]
        assert len(labels) == len(metric.labels), name
        with self._lock:
            found = self._histograms[name].get(labels)
            if found is None:
                found = self._histograms[name][labels] = Distribution(metric.buckets)
            for value, times in values:
                found.add(value, times)

    def counters(self, name: str) -> list[tuple[Labels, float]]:
        """A counter's values."""
        with self._lock:
            return list(self._counters[name].items())

    def histograms(self, name: str) -> Iterator[tuple[Labels, list[tuple[str, int]], float]]:
        """A histogram's labels, cumulative counts and sums."""
        with self._lock:
            found = [(labels, each.cumulative(), each.total) for labels, each in self._histograms[name].items()]
        yield from found


def _bound_text(bound: float) -> str:
    return repr(float(bound))
