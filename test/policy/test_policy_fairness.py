"""Who is next in line, and what a key may use."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.policy.allowance import Account, Allowance, Bucket, duration
from llamastream.policy.fairness import PRIORITIES, FairLine, LineFullError


def drain(line: FairLine[str], most: int = 10**6) -> list[str]:
    """Take the first one again and again."""
    gone: list[str] = []
    while len(line) and len(gone) < most:
        number, _ = next(line.order())
        gone.append(line.take(number))
    return gone


def test_one_key_is_served_in_the_order_of_arrival() -> None:
    line: FairLine[str] = FairLine(100)
    for each in range(10):
        line.push(str(each), "a")
    assert drain(line) == [str(each) for each in range(10)]


def test_a_single_request_waits_for_one_of_a_thousand() -> None:
    line: FairLine[str] = FairLine(2000)
    for each in range(1000):
        line.push(f"a{each}", "a")
    drain(line, 7)
    line.push("b", "b")
    assert drain(line, 1) == ["b"]


def test_keys_take_turns() -> None:
    line: FairLine[str] = FairLine(100)
    for key in "abc":
        for _ in range(10):
            line.push(key, key)
    gone = drain(line)
    assert all(set(gone[at : at + 3]) == {"a", "b", "c"} for at in range(0, 30, 3))


def test_weights_are_shares() -> None:
    line: FairLine[str] = FairLine(1000)
    for _ in range(100):
        line.push("a", "a", 3.0)
        line.push("b", "b", 1.0)
    shares = Counter(drain(line, 80))
    assert (shares["a"], shares["b"]) == (60, 20)


def test_idle_time_is_not_saved_up() -> None:
    line: FairLine[str] = FairLine(1000)
    for _ in range(50):
        line.push("a", "a")
    drain(line, 40)
    for _ in range(10):
        line.push("b", "b")  # it was away for 40 turns, and still only takes its turn
    assert Counter(drain(line, 10)) == {"a": 5, "b": 5}


def test_requests_that_left_are_not_counted_against_their_key() -> None:
    line: FairLine[str] = FairLine(2000)
    numbers = [line.push("a", "a")[0] for _ in range(1000)]
    for number in numbers:
        assert line.remove(number)
    assert not line.remove(numbers[0])
    for _ in range(3):
        line.push("b", "b")
        line.push("a", "a")
    assert Counter(drain(line, 4)) == {"a": 2, "b": 2}


def test_higher_priorities_go_first() -> None:
    line: FairLine[str] = FairLine(100)
    for priority in ("low", "normal", "high", "low", "high"):
        line.push(priority, "a", priority=priority)
    assert drain(line) == ["high", "high", "normal", "low", "low"]


def test_a_full_line_makes_room_at_the_end_of_the_longest() -> None:
    line: FairLine[str] = FairLine(4)
    for each in range(4):
        line.push(f"a{each}", "a")
    assert line.push("b0", "b")[1] == "a3"
    assert line.push("b1", "b")[1] == "a2"
    with pytest.raises(LineFullError) as caught:
        line.push("b2", "b")
    assert not caught.value.by_key
    with pytest.raises(LineFullError):
        line.push("a4", "a")
    assert line.push("c", "c", priority="high")[1] in ("a1", "b1")
    with pytest.raises(LineFullError):
        line.push("d", "d", priority="low")


def test_one_key_may_have_a_limit_of_its_own() -> None:
    line: FairLine[str] = FairLine(10, 2)
    line.push("a", "a")
    line.push("a", "a")
    with pytest.raises(LineFullError) as caught:
        line.push("a", "a")
    assert caught.value.by_key
    line.push("b", "b")


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from(PRIORITIES), st.integers(0, 5)), max_size=60))
def test_the_order_is_that_in_which_they_are_taken(steps: list[tuple[str, str, int]]) -> None:
    line: FairLine[int] = FairLine(20)
    here: dict[int, int] = {}
    for item, (key, priority, what) in enumerate(steps):
        if what == 0 and here:
            gone = random.Random(item).choice(sorted(here))
            line.remove(gone)
            del here[gone]
        elif what == 1 and here:
            number, first = next(line.order())
            assert line.take(number) == first == here.pop(number)
        else:
            try:
                number, lost = line.push(item, key, 1.0 + len(key), priority)  # type: ignore[arg-type]  # as above
            except LineFullError:
                continue
            here = {each: value for each, value in here.items() if value != lost}
            here[number] = item
    told = list(line.order())
    assert dict(told) == here
    assert len(line) == len(here) == sum(line.keys().values())
    assert [line.take(next(line.order())[0]) for _ in told] == [item for _, item in told]
    assert not line.keys()


# -- what a key may use -----------------------------------------------------------------------------------------------


def test_a_bucket_refills_evenly() -> None:
    bucket = Bucket(60, 0.0)
    for _ in range(60):
        assert bucket.wait(1, 0.0) == 0
        bucket.take(1, 0.0)
    assert bucket.wait(1, 0.0) == pytest.approx(1.0)
    assert bucket.wait(1, 1.0) == 0
    assert bucket.full_in(30.0) == pytest.approx(30.0)
    assert bucket.left(1000.0) == 60


def test_what_is_larger_than_the_limit_goes_when_all_of_it_is_there() -> None:
    account = Account(Allowance(tokens_per_minute=100), 0.0)
    assert account.begin(5000.0, 0.0) is None
    refusal = account.begin(1.0, 1.0)
    assert refusal is not None
    assert refusal.limit == "tokens_per_minute"
    account.end(5000.0, 50.0, 2.0)  # it was much less
    assert account.begin(1.0, 2.0) is None


def test_requests_at_once_are_counted_until_they_end() -> None:
    account = Account(Allowance(requests_at_once=2), 0.0)
    assert account.begin(1, 0.0) is None
    assert account.begin(1, 0.0) is None
    refusal = account.begin(1, 0.0)
    assert refusal is not None
    assert (refusal.limit, refusal.value) == ("requests_at_once", 2)
    account.end(1, None, 0.0)
    assert account.begin(1, 0.0) is None


def test_a_refused_request_costs_nothing() -> None:
    account = Account(Allowance(requests_per_minute=2, tokens_per_minute=10), 0.0)
    assert account.begin(10, 0.0) is None
    for _ in range(10):
        assert account.begin(10, 0.0) is not None
    assert dict(account.headers(0.0))["x-ratelimit-remaining-requests"] == "1"


def test_headers_say_what_is_left_as_openai_does() -> None:
    account = Account(Allowance(requests_per_minute=120, tokens_per_minute=6000), 0.0)
    account.begin(3000, 0.0)
    assert dict(account.headers(0.0)) == {
        "x-ratelimit-limit-requests": "120",
        "x-ratelimit-remaining-requests": "119",
        "x-ratelimit-reset-requests": "500ms",
        "x-ratelimit-limit-tokens": "6000",
        "x-ratelimit-remaining-tokens": "3000",
        "x-ratelimit-reset-tokens": "30s",
    }


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.0, "0ms"), (0.12, "120ms"), (1.0, "1s"), (360, "6m0s"), (3725, "1h2m5s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_a_changed_limit_holds_at_once() -> None:
    account = Account(Allowance(requests_per_minute=1), 0.0)
    account.begin(1, 0.0)
    assert account.begin(1, 0.0) is not None
    account.changed(Allowance(), 0.0)
    assert account.begin(1, 0.0) is None
    assert account.headers(0.0) == []
