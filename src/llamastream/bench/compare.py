"""Whether a server has become slower: a measurement against a baseline. Pure.

What is compared is the fast tenth of the requests: the time that a tenth of them did not exceed. Whatever else happens
on a machine slows down some requests, now more of them and now fewer; a server that has become slower, slows down the
fast ones as well. How far repeats lie apart shows what chance does. A measure counts as worse if its ratio is beyond
the threshold *and* would hardly come about if both runs were the same: a permutation test over the repeats, in which
the largest difference of any measure counts, since many measures give chance many opportunities (Westfall and Young's
correction, which knows that measures rise and fall together).
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import chain, combinations
from typing import Literal, TypeAlias

from msgspec import Struct

from llamastream.bench.report import KEPT, LoadResult, Report, count
from llamastream.bench.settings import THRESHOLD
from llamastream.bench.statistics import percentile
from llamastream.errors import BenchError

FAST = 0.1
"""The share of requests that is compared."""

ALPHA = 0.05
DRAWN = 1000
"""So many ways to divide the repeats are all tried; of more, so many are drawn."""

RESAMPLES = 400

SEED = 20260101

Verdict = Literal["worse", "better", "same"]


Repeats: TypeAlias = Sequence[Sequence[float]]
"""For each repeat, the values of its requests; no value is 0."""


class Finding(Struct, frozen=True):
    """One measure of one load.

    Attributes:
        before, now: seconds that the fast tenth of requests did not exceed. slowdown: their ratio less 1: 0.1 is 10 %
            slower. low, high: its 95 % confidence interval. p: the probability of such a difference, either way,
            between equal runs, corrected for the number of measures.
    """

    load: str
    measure: str
    before: float
    now: float
    slowdown: float
    low: float
    high: float
    p: float
    verdict: Verdict

    @property
    def change(self) -> str:
        """`+10.2 % (+7.9 to +12.0)`."""
        return f"{self.slowdown:+.1%} ({self.low:+.1%} to {self.high:+.1%})".replace("%", " %")


class Comparison(Struct, frozen=True):
    """All findings. `notes`: what a reader should know, as that the machines differ."""

    findings: tuple[Finding, ...]
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Finding, ...]:
        """What has become worse."""
        return tuple(finding for finding in self.findings if finding.verdict == "worse")

    @property
    def summary(self) -> str:
        """In a line."""
        worse = self.regressions
        if worse:
            most = max(worse, key=lambda finding: finding.slowdown)
            return (
                f"slower: {len(worse)} of {len(self.findings)} measures, at most by {most.slowdown:.1%} "
                f"({most.measure.replace('_', ' ')} with {most.load})"
            ).replace("%", " %")
        better = sum(finding.verdict == "better" for finding in self.findings)
        return f"not slower: of {len(self.findings)} measures {better} are better, the others as before"


def compare(before: Report, now: Report, *, threshold: float = THRESHOLD, alpha: float = ALPHA) -> Comparison:
    """Judge a measurement.

    Args:
        threshold: smaller slowdowns do not matter. alpha: probability of any false alarm between equal runs.

    Raises:
        BenchError: they are not measurements of the same.
    """
    check_comparable(before, now)
    pairs = list(_pairs(before.loads, now.loads))
    if not pairs:
        raise BenchError("the baseline and this measurement have no measure in common; make the baseline anew")
    probabilities = permutation_test([(old, new) for _, _, old, new in pairs])
    findings = []
    for (load, measure, old, new), p in zip(pairs, probabilities, strict=True):
        then, here = fast_tenth(old), fast_tenth(new)
        low, high = ratio_interval(old, new)
        verdict: Verdict = "same"
        if p <= alpha and abs(math.log(here / then)) >= math.log1p(threshold):
            verdict = "worse" if here > then else "better"
        findings.append(Finding(load, measure, then, here, here / then - 1, low, high, p, verdict))
    return Comparison(tuple(findings), tuple(_notes(before, now, alpha)))


def check_comparable(before: Report, now: Report) -> None:
    """Raises:
    BenchError: other requests were sent then, which says nothing about speed; the message names what differs.
    """
    unlike = [
        f"{name} was {before.settings.get(name)!r} and is {value!r}"
        for name, value in now.settings.items()
        if name not in _MAY_DIFFER and before.settings.get(name) != value
    ]
    if unlike:
        raise BenchError(
            f"the baseline measured something else: {'; '.join(unlike)}; measure the same, or make it anew"
        )


_MAY_DIFFER = frozenset({"repeats", "warm_up", "requests", "seconds", "concurrency", "rate", "seed", "model_name"})
"""Settings that change how much is measured, and not what. Loads are compared where both runs have them."""


def _pairs(before: Sequence[LoadResult], now: Sequence[LoadResult]) -> Iterator[tuple[str, str, Repeats, Repeats]]:
    old_of = {result.load: result for result in before}
    for result in now:
        if (old := old_of.get(result.load)) is None:
            continue
        for measure in KEPT:
            then, new = old.per_repeat.get(measure, []), result.per_repeat.get(measure, [])
            if any(then) and any(new):
                yield result.label, measure, then, new


def fast_tenth(repeats: Repeats) -> float:
    """The time that a tenth of the requests of all repeats together did not exceed."""
    ordered = sorted(chain.from_iterable(repeats))
    return ordered[_place(len(ordered))]


def _place(count: int) -> int:
    """Where in so many sorted values the fast tenth ends."""
    return math.ceil(count * FAST) - 1


def ratio_interval(old: Repeats, new: Repeats) -> tuple[float, float]:
    """The 95 % confidence interval of the slowdown: repeats are drawn anew (bootstrap, fixed seed)."""
    chance = random.Random(SEED)
    before, after = [repeat for repeat in old if repeat], [repeat for repeat in new if repeat]
    drawn = sorted(
        fast_tenth(chance.choices(after, k=len(after))) / fast_tenth(chance.choices(before, k=len(before)))
        for _ in range(RESAMPLES)
    )
    middle = fast_tenth(new) / fast_tenth(old)
    return min(percentile(drawn, 0.025), middle) - 1, max(percentile(drawn, 0.975), middle) - 1


def permutation_test(pairs: Sequence[tuple[Repeats, Repeats]]) -> list[float]:
    """For each measure (its repeats in both runs) the probability that, if the runs were the same, any measure would
    differ as much, either way: the share of the ways to divide all repeats into two runs in which one does.

    Repeats of the same number belong together, whatever the measure: they were taken at the same time.
    """
    if not pairs:
        return []
    old_count = max(len(old) for old, _ in pairs)
    new_count = max(len(new) for _, new in pairs)
    pools = [_Pool([*_filled(old, old_count), *_filled(new, new_count)]) for old, new in pairs]
    everything = range(old_count + new_count)
    as_it_was = everything[old_count:]
    divisions: list[Sequence[int]]
    if math.comb(len(everything), new_count) <= DRAWN:
        divisions = list(combinations(everything, new_count))
    else:
        chance = random.Random(SEED)
        divisions = [as_it_was, *(chance.sample(everything, new_count) for _ in range(DRAWN))]
    apart = [[pool.apart(chosen) for chosen in divisions] for pool in pools]
    seen = [pool.apart(as_it_was) for pool in pools]
    # each measure in units of what chance does to it, so that those that scatter much do not drown the others
    scales = [math.sqrt(sum(far * far for far in fars) / len(fars)) or 1.0 for fars in apart]
    largest = [max(far / scale for far, scale in zip(fars, scales, strict=True)) for fars in zip(*apart, strict=True)]
    return [
        sum(far >= own / scale * (1 - 1e-9) for far in largest) / len(largest)
        for own, scale in zip(seen, scales, strict=True)
    ]


def _filled(repeats: Repeats, count: int) -> list[Sequence[float]]:
    return [*repeats, *([()] * (count - len(repeats)))]


class _Pool:
    """The values of all repeats of both runs, sorted once: so a thousand divisions cost little more than one."""

    def __init__(self, repeats: Repeats) -> None:
        self._counts = [len(repeat) for repeat in repeats]
        self._ordered = sorted((value, number) for number, repeat in enumerate(repeats) for value in repeat)

    def apart(self, chosen: Sequence[int]) -> float:
        """How far apart the fast tenths of the chosen repeats and of the others are (the logarithm of their ratio); 0
        where one side has no values."""
        one = set(chosen)
        here = sum(self._counts[number] for number in one)
        rest = len(self._ordered) - here
        if not here or not rest:
            return 0.0
        left = [_place(rest), _place(here)]  # how many values of each side come before the one that is looked for
        found: list[float] = []
        for value, number in self._ordered:
            side = number in one
            if left[side] == 0:
                found.append(value)
                if len(found) == 2:
                    break
            left[side] -= 1
        return abs(math.log(found[0] / found[1]))


def _notes(before: Report, now: Report, alpha: float) -> Iterator[str]:
    for name in ("cpu", "cores", "memory", "system"):
        then, here = getattr(before.machine, name), getattr(now.machine, name)
        if then != here:
            yield f"another machine: {name} was {then}, and is {here}"
    for name in ("model", "build", "slots", "settings"):
        then, here = getattr(before.server, name), getattr(now.server, name)
        if then != here:
            yield f"another server: {name} was {then or 'not known'}, and is {here or 'not known'}"
    failed = sum(result.failed for result in now.loads)
    if failed:
        yield f"{count(failed, 'failed request')}: in no figure of speed"
    repeats = min(len(values) for run in (before, now) for result in run.loads for values in result.per_repeat.values())
    if 2 / math.comb(2 * repeats, repeats) > alpha:
        yield f"with {count(repeats, 'repeat')} no difference can be certain; use more --repeats"
