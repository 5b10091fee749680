"""Which settings to try next: successive halving, with newcomers that the measurements so far suggest. Pure.

Many candidates are measured briefly; the better half of them again and for longer, and so on. What they differ in is
mostly independent (threads do not care for the load mode), so after each round a model of main effects (the logarithm
of the score is a sum, with a term for each value of each dimension) names combinations that nobody has tried and that
should be better; those join the next round. Nothing is drawn but first rounds, and those from a seed; hunches come
before what is drawn, so that a short search has tried what usually pays.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import combinations, islice, product, zip_longest
from typing import Any, TypeAlias

from msgspec import Struct

Candidate: TypeAlias = tuple[Any, ...]
"""One value for each dimension, in their order."""

ROUNDS = 3
NEWCOMERS = 1 / 2
"""Share of a later round that nobody has tried."""
SHRINKAGE = 1.0
"""So many measurements of a mean effect stand against each value's own: a single good day makes no effect."""
SWEEPS = 20
PLAIN = 0.003
"""So much better must a value other than the default promise to be, for a newcomer to have it."""
MOST_COMBINATIONS = 50_000
_BROKEN = {1: 4, 2: 3}
"""So many failures, and no success, and a value, or two values together, are not tried again. One value needs more: two
that fail only together would else bring each other into disrepute."""


class Dimension(Struct, frozen=True):
    """A setting and the values that it may have, the default first."""

    name: str
    values: tuple[Any, ...]


class Trial(Struct, frozen=True):
    """What to measure next: `effort` is how many times as long as in the first round (0)."""

    candidate: Candidate
    round: int
    effort: int


class Plan(Struct, frozen=True):
    """Candidates and effort of each round."""

    rounds: tuple[tuple[int, int], ...]


def plan_for(seconds: float, start: float, lap: float, most: int) -> Plan:
    """As many candidates as the time allows.

    Args:
        seconds: for all of it. start: what each trial costs before anything is measured. lap: what an effort of 1
            costs. most: candidates that there are.
    """
    costs = [(start + lap * 2**number) / 2**number for number in range(ROUNDS)]
    first = max(1, min(most, int(seconds / max(sum(costs), 1e-9))))
    sizes = [(max(1, first >> number), 2**number) for number in range(ROUNDS)]
    # a later round of one candidate alone would compare it with nobody
    return Plan((sizes[0], *(pair for pair in sizes[1:] if pair[0] > 1)))


class Halving:
    """The search: `next` says what to measure, `tell` hears what came of it, `best` has the best so far at any time.

    Args:
        space: the dimensions. plan: how many to try, and how long. seed: of the first round.
        allowed: whether a combination makes sense; the one of all defaults, which is tried first, always does.
        hunches: combinations that experience names; up to half of those drawn besides the defaults give way to them.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        plan: Plan,
        *,
        seed: int,
        allowed: Callable[[Candidate], bool] = lambda candidate: True,
        hunches: Sequence[Candidate] = (),
    ) -> None:
        self.space = tuple(space)
        self.plan = plan
        self.failed: set[Candidate] = set()
        self._allowed = allowed
        self._scores: dict[Candidate, list[tuple[float, int]]] = {}
        self._failures: Counter[tuple[Any, ...]] = Counter()
        self._worked: set[tuple[Any, ...]] = set()
        self._round = 0
        self._chance = random.Random(seed)
        defaults = tuple(dimension.values[0] for dimension in self.space)
        count = plan.rounds[0][0] - 1
        named = [each for each in dict.fromkeys(hunches) if each != defaults and allowed(each)][: math.ceil(count / 2)]
        self._waiting = [defaults, *named, *self._drawn(count - len(named), {defaults, *named})]

    def again(self, plan: Plan) -> None:
        """Begin anew, with candidates that nobody has tried and that are promising by what is known; others are
        drawn where there are too few. What was measured still counts."""
        self.plan = plan
        self._round = 0
        count = plan.rounds[0][0]
        promising = self._fresh(count)
        known = {*self._scores, *self.failed, *promising}
        self._waiting = [*promising, *self._drawn(count - len(promising), known)]

    def next(self) -> Trial | None:
        """What to measure now; None: all is measured."""
        while True:
            while self._waiting:
                candidate = self._waiting.pop(0)
                if candidate not in self.failed and not self._broken(candidate):
                    return Trial(candidate, self._round, self.plan.rounds[self._round][1])
            if self._round + 1 >= len(self.plan.rounds):
                return None
            self._round += 1
            self._waiting = list(self._chosen(self.plan.rounds[self._round][0]))

    def tell(self, trial: Trial, score: float | None) -> None:
        """What came of it.

        Args:
            score: more is better, above 0; None: it failed, and is not tried again.
        """
        if score is None:
            self.failed.add(trial.candidate)
            self._scores.pop(trial.candidate, None)
            self._failures.update(_parts_of(trial.candidate))
        else:
            self._worked.update(_parts_of(trial.candidate))
            self._scores.setdefault(trial.candidate, []).append((math.log(score), trial.effort))

    def best(self, count: int) -> list[Candidate]:
        """The best of those measured, best first.

        Those that were measured for long come before those that were not: of many short measurements the highest is
        likely one that had luck.
        """
        longest = max((self._effort(candidate) for candidate in self._scores), default=0)
        known = [candidate for candidate in self._scores if self._effort(candidate) * 2 > longest]
        return sorted(known, key=self.score, reverse=True)[:count]

    def score(self, candidate: Candidate) -> float:
        """Its mean score as a logarithm, by effort."""
        scores = self._scores[candidate]
        return sum(score * effort for score, effort in scores) / sum(effort for _, effort in scores)

    def _effort(self, candidate: Candidate) -> int:
        return max(effort for _, effort in self._scores[candidate])

    def _drawn(self, count: int, seen: set[Candidate]) -> Iterator[Candidate]:
        """Combinations besides those seen, in which each value of each dimension is about equally frequent."""
        seen = set(seen)
        decks: list[list[Any]] = [[] for _ in self.space]
        for _ in range(20 * count):
            if count <= 0:
                return
            drawn = []
            for deck, dimension in zip(decks, self.space, strict=True):
                if not deck:
                    deck.extend(self._chance.sample(dimension.values, len(dimension.values)))
                drawn.append(deck.pop())
            candidate = tuple(drawn)
            if candidate not in seen and self._allowed(candidate):
                seen.add(candidate)
                count -= 1
                yield candidate

    def _chosen(self, count: int) -> Iterator[Candidate]:
        """Who goes on, and who joins."""
        ranked = sorted(self._scores, key=self.score, reverse=True)
        fresh = min(math.ceil(count * NEWCOMERS), count - 1)
        new = self._fresh(fresh)
        yield from ranked[: count - len(new)]
        yield from new

    def _fresh(self, count: int) -> list[Candidate]:
        """Combinations that nobody has tried: by turns the most promising of all, and of those that differ from the
        best in one value, since the best may owe its place to something that is no sum."""
        effects = self._effects()
        everything = islice(product(*(dimension.values for dimension in self.space)), MOST_COMBINATIONS)
        best = self.best(1)
        promising = islice(self._promising(everything, effects), count)
        near = islice(self._promising(self._neighbours(best[0]) if best else (), effects), count)
        turns = (one for pair in zip_longest(promising, near) for one in pair if one is not None)
        return list(islice(dict.fromkeys(turns), count))

    def _neighbours(self, candidate: Candidate) -> Iterator[Candidate]:
        for place, dimension in enumerate(self.space):
            for value in dimension.values:
                yield (*candidate[:place], value, *candidate[place + 1 :])

    def _promising(self, among: Iterable[Candidate], effects: Sequence[dict[Any, float]]) -> Iterator[Candidate]:
        """Those that nobody has tried, the most promising first."""

        def promise(candidate: Candidate) -> float:
            return sum(effects[place].get(value, -math.inf) for place, value in enumerate(candidate))

        for promised, candidate in sorted(((promise(one), one) for one in among), key=lambda pair: -pair[0]):
            if promised == -math.inf:
                return
            new = candidate not in self._scores and candidate not in self.failed and self._allowed(candidate)
            if new and not self._broken(candidate):
                yield candidate

    def _effects(self) -> list[dict[Any, float]]:
        """For each dimension the effect of each value that was measured, on the logarithm of the score."""
        measured = [(candidate, self.score(candidate)) for candidate in self._scores]
        effects: list[dict[Any, float]] = [
            {value: 0.0 for value in dimension.values if any(c[place] == value for c, _ in measured)}
            for place, dimension in enumerate(self.space)
        ]
        mean = sum(score for _, score in measured) / max(1, len(measured))
        for _ in range(SWEEPS):  # each dimension explains what the others leave over, in turn
            for place, known in enumerate(effects):
                for value in known:
                    rest = [
                        score - mean - sum(effects[other][c[other]] for other in range(len(effects)) if other != place)
                        for c, score in measured
                        if c[place] == value
                    ]
                    known[value] = sum(rest) / (len(rest) + SHRINKAGE)
        for dimension, known in zip(self.space, effects, strict=True):
            if dimension.values[0] in known:
                known[dimension.values[0]] += PLAIN
        return effects

    def _broken(self, candidate: Candidate) -> bool:
        """Whether it has a value, or two values together, that have failed several times and never worked."""
        if not self.failed:
            return False
        return any(
            self._failures[part] >= _BROKEN[len(part)] and part not in self._worked for part in _parts_of(candidate)
        )


def _parts_of(candidate: Candidate) -> Iterator[tuple[Any, ...]]:
    values = list(enumerate(candidate))
    yield from ((value,) for value in values)
    yield from combinations(values, 2)
