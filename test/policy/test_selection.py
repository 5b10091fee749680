"""Which of several servers takes the next attempt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.policy.breaker import BreakerState
from llamastream.policy.selection import Candidate, choose

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
GOOD = Candidate(CLOSED)

CASES: dict[str, tuple[list[Candidate], int]] = {
    "a single one": ([GOOD], 0),
    "a single one that is down": ([Candidate(OPEN, 3, True, 50.0)], 0),
    "equals: the first": ([GOOD, GOOD, GOOD], 0),
    "the one with the fewest streams": ([Candidate(CLOSED, 2), Candidate(CLOSED, 1), Candidate(CLOSED, 1)], 1),
    "not the one that failed": ([Candidate(CLOSED, 0, True), Candidate(CLOSED, 9)], 1),
    "closed before half-open": ([Candidate(HALF_OPEN), Candidate(CLOSED, 9)], 1),
    "half-open before open": ([Candidate(OPEN, 0, False, 1.0), Candidate(HALF_OPEN, 9)], 1),
    "a closed one that failed before a half-open one": ([Candidate(HALF_OPEN), Candidate(CLOSED, 5, True)], 1),
    "all failed: the one with the fewest streams": ([Candidate(CLOSED, 1, True), Candidate(CLOSED, 0, True)], 1),
    "all open: the one for the shortest time": (
        [Candidate(OPEN, 0, False, 9.0), Candidate(OPEN, 5, False, 3.0), Candidate(OPEN, 0, False, 4.0)],
        1,
    ),
    "all open: not the one that failed": ([Candidate(OPEN, 0, True, 3.0), Candidate(OPEN, 0, False, 9.0)], 1),
    "an old time of one that is closed counts for nothing": (
        [Candidate(CLOSED, 1, False, 0.0), Candidate(CLOSED, 0, False, 99.0)],
        1,
    ),
}


@pytest.mark.parametrize(("candidates", "chosen"), CASES.values(), ids=CASES)
def test_the_choice(candidates: list[Candidate], chosen: int) -> None:
    assert choose(candidates) == chosen


candidate = st.builds(
    Candidate, st.sampled_from(BreakerState), st.integers(0, 5), st.booleans(), st.floats(0, 100, allow_nan=False)
)


@given(st.lists(candidate, min_size=1, max_size=8))
def test_nobody_is_better_than_the_one_that_is_chosen(candidates: list[Candidate]) -> None:
    chosen = candidates[choose(candidates)]
    closed = [each for each in candidates if each.breaker is CLOSED]
    if closed:
        assert chosen.breaker is CLOSED
        assert chosen.failed == all(each.failed for each in closed)
        assert chosen.in_flight == min(each.in_flight for each in closed if each.failed == chosen.failed)
    else:
        assert chosen.breaker is not OPEN or all(each.breaker is OPEN for each in candidates)
