"""The circuit breaker: when it opens, for how long, and what a probe makes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.policy.breaker import Breaker, BreakerPolicy, BreakerState

CLOSED, HALF_OPEN, OPEN = BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN
POLICY = BreakerPolicy(failures=3, open_seconds=1.0, max_open_seconds=6.0)


def opened(now: float = 100.0) -> Breaker:
    breaker = Breaker(POLICY)
    breaker.failed(now, certain=True)
    return breaker


def test_a_new_one_is_closed() -> None:
    assert Breaker().state(0.0) is CLOSED


def test_failures_in_a_row_open_it() -> None:
    breaker = Breaker(POLICY)
    states = []
    for _ in range(3):
        breaker.failed(100.0)
        states.append(breaker.state(100.0))
    assert states == [CLOSED, CLOSED, OPEN]


def test_a_success_in_between_begins_the_count_anew() -> None:
    breaker = Breaker(POLICY)
    for _ in range(10):
        breaker.failed(100.0)
        breaker.failed(100.0)
        breaker.succeeded()
    assert breaker.state(100.0) is CLOSED


def test_a_certain_failure_opens_it_at_once() -> None:
    assert opened().state(100.0) is OPEN


def test_it_is_half_open_when_its_time_is_over() -> None:
    breaker = opened()
    assert [breaker.state(now) for now in (100.99, 101.0, 1000.0)] == [OPEN, HALF_OPEN, HALF_OPEN]


def test_one_probe_goes_and_others_wait_for_it() -> None:
    breaker = opened()
    breaker.probe(101.0, 2.0)
    assert [breaker.state(now) for now in (101.0, 102.9, 103.0)] == [OPEN, OPEN, HALF_OPEN]


def test_a_good_probe_closes_it() -> None:
    breaker = opened()
    breaker.probe(101.0, 2.0)
    breaker.succeeded()
    assert breaker.state(101.0) is CLOSED
    assert breaker.open_until is None


@pytest.mark.parametrize("certain", [False, True])
def test_each_failed_probe_doubles_its_time_up_to_a_bound(certain: bool) -> None:
    breaker = opened()
    now, times = 101.0, []
    for _ in range(5):
        breaker.probe(now, 2.0)
        breaker.failed(now, certain=certain)
        assert breaker.open_until is not None
        times.append(breaker.open_until - now)
        now = breaker.open_until
        assert breaker.state(now) is HALF_OPEN, "the failed probe is not waited for any longer"
    assert times == [2.0, 4.0, 6.0, 6.0, 6.0]


def test_after_a_success_its_time_is_short_again() -> None:
    breaker = opened()
    breaker.failed(101.0)
    breaker.failed(103.0)
    breaker.succeeded()
    breaker.failed(200.0, certain=True)
    assert breaker.open_until == 201.0


def test_requests_that_were_under_way_when_it_opened_do_not_prolong_it() -> None:
    breaker = opened()
    for now in (100.0, 100.5, 100.99):
        breaker.failed(now, certain=True)
    assert breaker.open_until == 101.0
    breaker.failed(101.0)
    assert breaker.open_until == 103.0, "the next one is the second, not the fifth"


def test_a_late_failure_before_the_probe_counts_as_the_probe() -> None:
    breaker = opened()
    breaker.failed(101.5)
    assert breaker.open_until == 103.5


def test_a_server_may_be_down_for_a_year() -> None:
    breaker = Breaker()
    now = 0.0
    for _ in range(5000):
        breaker.failed(now, certain=True)
        assert breaker.open_until is not None
        assert 0 < breaker.open_until - now <= 30.0
        now = breaker.open_until


@given(st.lists(st.tuples(st.sampled_from(["fail", "certain", "good", "probe"]), st.floats(0, 40)), max_size=60))
def test_whatever_happens_it_lets_a_request_through_in_the_end(steps: list[tuple[str, float]]) -> None:
    breaker, now = Breaker(POLICY), 0.0
    for what, seconds in steps:
        now += seconds
        if what == "good":
            breaker.succeeded()
            assert breaker.state(now) is CLOSED
        elif what == "probe":
            breaker.probe(now, 2.0)
        else:
            breaker.failed(now, certain=what == "certain")
            if what == "certain":
                assert breaker.state(now) is not CLOSED
        assert breaker.state(now + POLICY.max_open_seconds) is not OPEN
