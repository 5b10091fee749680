"""What the dashboard keeps: figures of the last minute, points of the last hours, lines; and bounds of all."""

from __future__ import annotations

from typing import Any

import pytest

from llamastream.events import InstanceChanged, InstanceWarning, RequestServed
from llamastream.observe.dashboard import Board, Facts
from llamastream.observe.dashboard.board import TROUBLES
from llamastream.observe.dashboard.recent import KEPT, Recent, quantile
from llamastream.observe.dashboard.rings import COARSE_POINTS, FINE_POINTS, History, Ring
from llamastream.observe.dashboard.tail import LONGEST, Line, Tail

CHAT = "/v1/chat/completions"


def served(status: int = 200, **fields: Any) -> RequestServed:
    chosen: dict[str, Any] = {"time": 1000.0, "request_id": "r-1", "method": "POST", "route": CHAT, "duration": 1.0}
    return RequestServed(status=status, **{**chosen, **fields})


def line(message: str, instance: str = "", event: str = "") -> Line:
    return Line(time=1.0, level="info", message=message, instance=instance, event=event)


# -- rings ------------------------------------------------------------------------------------------------------------


def test_a_ring_keeps_the_last_points_in_order() -> None:
    ring = Ring(("a", "b"), 3)
    assert ring.series() == {"time": [], "a": [], "b": []}
    for second in range(5):
        ring.add(second, {"a": second * 10, "b": None} if second != 3 else {})
    assert ring.series() == {"time": [2, 3, 4], "a": [20, None, 40], "b": [None, None, None]}


def test_the_coarse_ring_has_the_means_of_ten_seconds_of_what_is_known() -> None:
    history = History(("a", "b"))
    completed = [history.add(100 + second, {"a": second, "b": 4 if second == 2 else None}) for second in range(21)]
    assert [each for each in completed if each] == [
        {"time": 110, "a": 4.5, "b": 4},
        {"time": 120, "a": 14.5, "b": None},
    ]
    assert history.coarse.series() == {"time": [110, 120], "a": [4.5, 14.5], "b": [4, None]}


def test_history_does_not_grow() -> None:
    history = History(("a",))
    for second in range(10 * (COARSE_POINTS + 5)):
        history.add(second, {"a": 1})
    assert (len(history.fine), len(history.coarse)) == (FINE_POINTS, COARSE_POINTS)


# -- the last minute --------------------------------------------------------------------------------------------------


def test_figures_of_a_minute() -> None:
    recent = Recent()
    for number in range(100):
        recent.add(
            served(time_to_first_token=(number + 1) / 100, queue_wait=0.5, completion_tokens=2), 10 + number / 50
        )
    recent.add(served(503, finish_reason="error", prompt_tokens=8, cached_tokens=2), 12.5)
    found = recent.figures(12.9)
    assert (found.statuses, found.failed) == ({200: 100, 503: 1}, 1)
    assert (found.ttft_p50, found.ttft_p95, found.wait_p50) == (0.5, 0.95, 0.5)
    assert (found.prompt_tokens, found.cached_tokens) == (8, 2)
    assert found.last_second == (50, 0, 100)
    assert recent.figures(13.0).last_second == (1, 1, 0)
    assert recent.figures(70.5).statuses == {200: 50, 503: 1}
    gone = recent.figures(72.5)
    assert (gone.statuses, gone.ttft_p50, gone.last_second) == ({}, None, (0, 0, 0))


def test_times_of_a_busy_second_are_bounded_and_its_count_is_not() -> None:
    recent = Recent()
    for _ in range(3 * KEPT):
        recent.add(served(time_to_first_token=0.1, queue_wait=0.1), 5.0)
    (second,) = recent._seconds
    assert (len(second.times), len(second.waits)) == (KEPT, KEPT)
    assert recent.figures(5.5).statuses == {200: 3 * KEPT}


def test_a_clock_that_goes_back_loses_nothing() -> None:
    recent = Recent()
    recent.add(served(), 50.0)
    recent.add(served(), 40.0)
    assert recent.figures(50.0).statuses == {200: 2}


@pytest.mark.parametrize(("share", "expected"), [(0.5, 2), (0.95, 4), (0.0, 1), (0.25, 1), (0.26, 2)])
def test_quantiles(share: float, expected: float) -> None:
    assert quantile([1, 2, 3, 4], share) == expected
    assert quantile([], share) is None


# -- lines ------------------------------------------------------------------------------------------------------------


def test_a_reader_goes_on_where_it_stopped() -> None:
    tail = Tail(10)
    assert tail.since(0, 10) == ([], 0, 0)
    for number in range(4):
        tail.add(line(str(number), instance=str(number % 2)))
    lines, missing, last = tail.since(0, 10)
    assert ([each.message for each in lines], missing, last) == (["0", "1", "2", "3"], 0, 4)
    tail.add(line("4"))
    lines, missing, last = tail.since(last, 10)
    assert ([each.message for each in lines], missing, last) == (["4"], 0, 5)


def test_what_came_too_quickly_is_counted() -> None:
    tail = Tail(100)
    for number in range(50):
        tail.add(line(str(number)))
    lines, missing, _ = tail.since(10, 5)
    assert ([each.message for each in lines], missing) == (["45", "46", "47", "48", "49"], 35)


def test_a_chatty_server_hides_no_event_and_no_other_server() -> None:
    tail = Tail(20)
    tail.add(line("wedged", "a", "state"))
    tail.add(line("from b", "b", "server_log"))
    for number in range(1000):
        tail.add(line(str(number), "a", "server_log"))
    lines, missing, _ = tail.since(0, 400)
    assert [each.message for each in lines[:2]] == ["wedged", "from b"]
    assert (len(lines), missing) == (22, 980)


def test_a_line_is_bounded() -> None:
    tail = Tail(1)
    tail.add(line("x" * (2 * LONGEST)))
    assert len(tail.since(0, 1)[0][0].message) == LONGEST + 1


# -- all of it --------------------------------------------------------------------------------------------------------


def changed(before: Any, after: Any) -> InstanceChanged:
    return InstanceChanged(id="a", before=before, after=after, reason="why", time=5.0, generation=1)


def test_the_state_of_a_board() -> None:
    now = [100.0]
    board = Board(lambda: now[0])
    board(served(prompt_tokens=10, cached_tokens=4, completion_tokens=20, recoveries=("continue", "continue")))
    board(served(route="/dashboard/events"))
    board(served(404, route="other"))
    now[0] = 101.5
    instance = {
        "id": "a",
        "state": "ready",
        "slots": 4,
        "in_flight": 1,
        "tokens_per_second": 30.0,
        "rss_bytes": 1 << 20,
    }
    state = board.look(Facts(instances=[instance], waiting=2, active=3), point=True)
    assert state["totals"] == {
        "requests": 1, "failed": 0, "prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 20,
        "recoveries": {"continue": 2},
    }  # fmt: skip
    assert state["recent"].statuses == {200: 1}
    point = state["point"]
    assert (point["time"], point["tokens_per_second"], point["requests"], point["busy"], point["slots"]) == (
        101.5, 30.0, 1, 3, 4,
    )  # fmt: skip
    assert (point["memory"], point["waiting"], point["cached"]) == (1 << 20, 2, 40.0)
    assert board.history.fine.series()["tokens_per_second"] == [30.0]


def test_a_look_between_two_seconds_is_no_point() -> None:
    board = Board(lambda: 1.0)
    assert "point" not in board.look(Facts(), point=False)
    assert len(board.history.fine) == 0


def test_a_source_that_tells_no_times_is_watched() -> None:
    now = [1.0]
    board = Board(lambda: now[0])

    def since(state: str) -> Any:
        facts = Facts(instances=[{"id": "a", "state": state, "slots": 1, "in_flight": 0}])
        return board.look(facts, point=False)["instances"][0]["since"]

    assert since("ready") == 1.0
    now[0] = 2.0
    assert (since("ready"), since("failed")) == (1.0, 2.0)


@pytest.mark.parametrize(
    ("event", "level"),
    [
        (served(500, error="TransportError"), "error"),
        (served(finish_reason="error"), "error"),
        (served(429, finish_reason="refused", error="RateLimitedError"), None),
        (served(400, finish_reason="refused", error="BadRequestError"), None),
        (served(503, route="/health"), None),
        (served(504), None),
        (served(499, finish_reason="cancelled"), None),
        (changed("ready", "failed"), "error"),
        (changed("busy", "wedged"), "warning"),
        (changed("ready", "restarting"), "warning"),
        (changed("draining", "restarting"), None),
        (changed("loading", "ready"), None),
        (InstanceWarning(id="a", topic="memory", message="grows", time=1.0), "warning"),
    ],
)
def test_what_is_an_error(event: Any, level: str | None) -> None:
    board = Board()
    told: list[int] = []
    board.on_news = lambda: told.append(1)
    board(event)
    found = [each.level for each in board.troubles.since(0, 10)[0]]
    assert found == ([level] if level else [])
    assert len(told) == len(found)


def test_errors_are_bounded() -> None:
    board = Board()
    for _ in range(3 * TROUBLES):
        board(served(500, finish_reason="error"))
    assert len(board.troubles.since(0, 10_000)[0]) == TROUBLES
