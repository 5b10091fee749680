"""When an ended server is started again, when one that runs is replaced, and whose turn it is."""

from __future__ import annotations

import datetime

import pytest

from llamastream.policy.restarts import (
    CrashHistory,
    GiveUp,
    Restart,
    RestartPolicy,
    Schedule,
    Turn,
    crashed,
    due,
    forget_crashes,
    next_turn,
)

POLICY = RestartPolicy(base_delay=1.0, max_delay=8.0, good_after=60.0, crash_limit=5, crash_window=100.0)


def delays(policy: RestartPolicy, times: list[float], good_for: float = 0.0) -> list[float | str]:
    history, found = CrashHistory(), []
    for now in times:
        history, sequel = crashed(history, policy, now, good_for=good_for)
        found.append(sequel.delay if isinstance(sequel, Restart) else sequel.reason)
    return found


def test_delays_double_up_to_a_limit() -> None:
    assert delays(POLICY, [0, 200, 400, 600, 800, 1000]) == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]


def test_good_behaviour_begins_anew() -> None:
    assert delays(POLICY, [0, 200, 400], good_for=60.0) == [1.0, 1.0, 1.0]
    assert delays(POLICY, [0, 200, 400], good_for=59.9) == [1.0, 2.0, 4.0]


def test_a_crash_loop_ends_with_its_reason() -> None:
    assert delays(POLICY, [0, 10, 20, 30, 40])[-1] == "it ended 5 times within 40 s"
    assert all(isinstance(each, float) for each in delays(POLICY, [0, 26, 52, 78, 104]))


def test_without_a_limit_it_goes_on_for_ever_and_keeps_little() -> None:
    policy = RestartPolicy(base_delay=0.1, crash_limit=0)
    history = CrashHistory()
    for number in range(1000):
        history, sequel = crashed(history, policy, float(number), good_for=0)
        assert isinstance(sequel, Restart)
    assert len(history.times) == 1


def test_what_cannot_start_is_not_tried_again() -> None:
    _, sequel = crashed(CrashHistory(), POLICY, 0.0, good_for=0, final=True)
    assert sequel == GiveUp("it cannot start")


def test_a_start_by_hand_forgets_the_crashes() -> None:
    history, _ = crashed(CrashHistory(), POLICY, 0.0, good_for=0)
    assert forget_crashes(history) == CrashHistory()


NOW = datetime.datetime(2026, 3, 4, 5, 0, tzinfo=datetime.UTC)


def hours(number: float) -> datetime.datetime:
    return NOW - datetime.timedelta(hours=number)


@pytest.mark.parametrize(
    ("schedule", "started", "requests", "why"),
    [
        (Schedule(), hours(10_000), 10**9, None),
        (Schedule(every=3600.0), hours(0.9), 0, None),
        (Schedule(every=3600.0), hours(1), 0, "it has run for 1.0 h (restart_every)"),
        (Schedule(at=datetime.time(4, 30)), hours(1), 0, "it is 04:30 (restart_at)"),
        (Schedule(at=datetime.time(4, 30)), hours(0.25), 0, None),
        (Schedule(at=datetime.time(5, 30)), hours(1), 0, None),
        (Schedule(at=datetime.time(5, 30)), hours(24), 0, "it is 05:30 (restart_at)"),
        (Schedule(after_requests=100), hours(1), 99, None),
        (Schedule(after_requests=100), hours(1), 100, "it has served 100 requests (restart_after_requests)"),
    ],
)
def test_schedules(schedule: Schedule, started: datetime.datetime, requests: int, why: str | None) -> None:
    assert due(schedule, now=NOW, started=started, requests=requests) == why


@pytest.mark.parametrize(
    ("turns", "min_ready", "first"),
    [
        ([Turn(id="a"), Turn(id="b")], 1, None),
        ([Turn(id="a", wants=True), Turn(id="b", wants=True)], 1, "a"),
        ([Turn(id="a", wants=True, away=True, ready=False), Turn(id="b", wants=True)], 1, None),
        # one crashed: enough others are there for one that wants to go
        ([Turn(id="a", ready=False), Turn(id="b", wants=True), Turn(id="c")], 1, "b"),
        ([Turn(id="a", ready=False), Turn(id="b", wants=True), Turn(id="c")], 2, None),
        ([Turn(id="a", ready=False), Turn(id="b", wants=True)], 1, None),
        # what has failed for good is waited for no more
        ([Turn(id="a", ready=False, gone=True), Turn(id="b", wants=True), Turn(id="c")], 1, "b"),
        # a fleet no larger than `min_ready` can still be restarted, one by one
        ([Turn(id="a", wants=True)], 1, "a"),
        ([Turn(id="a", wants=True), Turn(id="b")], 5, "a"),
        ([Turn(id="a", wants=True), Turn(id="b", ready=False)], 5, None),
        # instances of other models do not count
        ([Turn(id="a", pool="x", wants=True), Turn(id="b", pool="x", ready=False), Turn(id="c", pool="y")], 1, None),
        ([Turn(id="a", pool="x", wants=True), Turn(id="b", pool="y", ready=False)], 1, "a"),
        # one that is not ready itself may go
        ([Turn(id="a", wants=True, ready=False), Turn(id="b")], 1, "a"),
    ],
)
def test_turns(turns: list[Turn], min_ready: int, first: str | None) -> None:
    assert next_turn(turns, min_ready) == first


def test_nobody_goes_where_another_still_is() -> None:
    a = Turn(id="a", pool="a", wants=True, holds="1", moves_to="2")
    b = Turn(id="b", pool="b", wants=True, holds="2", moves_to="3")
    assert next_turn([a, b], 1) == "b"
    leaving = Turn(id="b", pool="b", gone=True, holds="2")
    assert next_turn([a, leaving], 1) is None
    assert next_turn([a, Turn(id="b", pool="b", gone=True)], 1) == "a"


def test_a_ring_is_opened_by_the_first_but_not_below_what_has_to_be_ready() -> None:
    a = Turn(id="a", pool="a", wants=True, holds="1", moves_to="2")
    b = Turn(id="b", pool="b", wants=True, holds="2", moves_to="1")
    assert next_turn([a, b], 1) == "a"
    unready = Turn(id="a2", pool="a", ready=False, holds="3", moves_to="3")
    assert next_turn([a, b, unready], 1) == "b"
