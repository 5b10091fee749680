"""Percentiles and their confidence intervals. Pure."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

from msgspec import Struct

LEVEL = 0.95
RESAMPLES = 200
_STEPS = 64
"""Buckets of gaps to an octave: an interval's end is known within 1.6 %."""


class Estimate(Struct, frozen=True):
    """A value with its 95 % confidence interval; an end is None where there are too few values to know it."""

    value: float
    low: float | None = None
    high: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float:
    """The value that a share (0 to 1) of the sorted values does not exceed, linear between two."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def estimate_percentile(values: Sequence[float], share: float) -> Estimate:
    """A percentile of independent values. The interval rests on their order alone: on how many of them lie below the
    true percentile, which is binomial."""
    ordered = sorted(values)
    count = len(ordered)
    low, high = percentile_ranks(count, share)
    return Estimate(
        percentile(ordered, share),
        None if low is None else ordered[low],
        None if high is None else ordered[high],
    )


def percentile_ranks(count: int, share: float, level: float = LEVEL) -> tuple[int | None, int | None]:
    """Places, from 0, in `count` sorted values, between which the true percentile lies with probability `level`."""
    tail = (1.0 - level) / 2
    low: int | None = None
    below = 0.0
    high: int | None = None
    for number in range(count):
        below += _binomial(count, number, share)
        # `number` values or fewer lie below the percentile with probability `below`
        if below <= tail:
            low = number
        if high is None and below >= 1.0 - tail:
            high = number
    return low, high


def _binomial(count: int, number: int, share: float) -> float:
    if share in (0.0, 1.0):
        return float(number == count * share)
    log = math.lgamma(count + 1) - math.lgamma(number + 1) - math.lgamma(count - number + 1)
    return math.exp(log + number * math.log(share) + (count - number) * math.log1p(-share))


def estimate_pooled(groups: Sequence[Sequence[float]], shares: Sequence[float], seed: int) -> list[Estimate]:
    """Percentiles of all values together. Values of one group (the gaps of one stream) depend on each other, so the
    intervals come from drawing whole groups anew (bootstrap, with a fixed seed)."""
    ordered = sorted(value for group in groups for value in group)
    if not ordered:
        return []
    counted = [Counter(map(_bucket, group)) for group in groups if group]
    chance = random.Random(seed)
    drawn: list[list[float]] = [[] for _ in shares]
    for _ in range(RESAMPLES if len(counted) > 1 else 0):
        total: Counter[int] = Counter()
        for counts in chance.choices(counted, k=len(counted)):
            total.update(counts)
        for place, share in enumerate(shares):
            drawn[place].append(_bucket_percentile(total, share))
    found = []
    for place, share in enumerate(shares):
        value = percentile(ordered, share)
        if not drawn[place]:
            found.append(Estimate(value))
            continue
        ends = sorted(drawn[place])
        low, high = percentile(ends, (1 - LEVEL) / 2), percentile(ends, (1 + LEVEL) / 2)
        found.append(Estimate(value, min(low, value), max(high, value)))
    return found


def _bucket(seconds: float) -> int:
    return round(math.log2(max(seconds, 1e-9)) * _STEPS)


def _bucket_percentile(counts: Counter[int], share: float) -> float:
    wanted, seen = share * sum(counts.values()), 0
    bucket = 0
    for bucket in sorted(counts):
        seen += counts[bucket]
        if seen >= wanted:
            break
    return float(2.0 ** (bucket / _STEPS))


def median(values: Sequence[float]) -> float:
    """The middle of the values."""
    return percentile(sorted(values), 0.5)
