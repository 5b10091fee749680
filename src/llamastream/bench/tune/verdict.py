"""How much better one is than another, from measurements in pairs. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from msgspec import Struct

from llamastream.bench.statistics import percentile

LEVEL = 0.95
MOST_SHOWN = 10.0
"""Gain beyond which a figure says no more than that it is large."""
_STEPS = 400


class Gain(Struct, frozen=True):
    """A ratio less 1: 0.1 is 10 % more. low, high: its confidence interval; None where one pair says nothing of it."""

    value: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def clear(self) -> bool:
        """Whether it is more than chance."""
        return self.low is not None and self.low > 0

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return _percent(self.value)
        return f"{_percent(self.value)} ({_percent(self.low)} to {_percent(self.high)})"


def _percent(share: float) -> str:
    """In per cent; of two pairs that lie far apart, an end of the interval can be beyond all measure."""
    return "> +1000 %" if share > MOST_SHOWN else f"{share * 100:+.1f} %"


def gain_of(before: Sequence[float], after: Sequence[float], *, at_once: int = 1) -> Gain:
    """The middle ratio of pairs, `after` by `before`.

    Where there are enough pairs, by Hodges and Lehmann with the interval of Wilcoxon's signed-rank test, which a single
    pair that something disturbed does not move far; of fewer the mean, with Student's interval.

    Args:
        before, after: scores above 0; those of the same place were measured one after the other.
        at_once: of so many comparisons the best is chosen: all their intervals hold with 95 % together (Bonferroni).
    """
    ratios = [math.log(new / old) for old, new in zip(before, after, strict=True)]
    count = len(ratios)
    level = 1 - (1 - LEVEL) / at_once
    rank = signed_rank(count, level)
    if rank is not None:
        walsh = sorted((a + b) / 2 for place, a in enumerate(ratios) for b in ratios[place:])
        middle, low, high = (math.expm1(value) for value in (percentile(walsh, 0.5), walsh[rank], walsh[-1 - rank]))
        return Gain(middle, low, high, count)
    mean = sum(ratios) / count
    if count < 2:
        return Gain(math.expm1(mean), None, None, count)
    deviation = math.sqrt(sum((ratio - mean) ** 2 for ratio in ratios) / (count - 1))
    half = student_quantile((1 + level) / 2, count - 1) * deviation / math.sqrt(count)
    return Gain(math.expm1(mean), math.expm1(mean - half), math.expm1(mean + half), count)


def signed_rank(count: int, level: float) -> int | None:
    """How many of the sorted means of two values each lie outside the interval of that level on either side; None where
    so few values have no such interval."""
    ways = [1]  # of each sum of ranks, how many sets of ranks have it
    for rank in range(1, count + 1):
        longer = ways + [0] * rank
        for total, number in enumerate(ways):
            longer[total + rank] += number
        ways = longer
    tail, below, found = (1 - level) / 2 * 2**count, 0, None
    for total, number in enumerate(ways):
        below += number
        if below > tail:
            break
        found = total
    return found


def student_quantile(share: float, freedom: int) -> float:
    """The value that a variable of Student's distribution does not exceed with probability `share` (above 0.5)."""
    low, high = 0.0, 1.0
    while _student(high, freedom) < share:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _student(middle, freedom) < share else (low, middle)
    return (low + high) / 2


def _student(value: float, freedom: int) -> float:
    """The distribution function above 0: Simpson's rule over the angle, in which the density is a power of a cosine."""
    end = math.atan(value / math.sqrt(freedom))
    step = end / _STEPS
    inner = sum((4 if place % 2 else 2) * math.cos(place * step) ** (freedom - 1) for place in range(1, _STEPS))
    area = (1 + inner + math.cos(end) ** (freedom - 1)) * step / 3
    scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(math.pi)
    return 0.5 + scale * area
