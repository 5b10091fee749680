"""The machine of a stream without any I/O: bytes, failures and times in; attempts, questions and events out. Here: a
generation is taken up again, a stream is left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from paper import FREE, HELD, TOOLS, Paper, Stage, chat
from wires import numbers

from llamastream.errors import (
    ConnectError,
    ConnectionLostError,
    ContentIdleTimeoutError,
    FirstByteTimeoutError,
    LlamaStreamError,
)
from llamastream.events import StreamBroke, StreamRecovered
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import (
    Timeouts,
)

# -- taken up again -------------------------------------------------------------------------------------------


def test_a_held_generation_is_taken_up_at_the_byte_where_it_was_left() -> None:
    stage = Stage(HELD)
    pieces = stage.attempt()
    stage.feed(*pieces[:4], pieces[4][:-20])
    stage.cut()
    assert stage.session.next_attempt_at == stage.now, "the first attempt goes at once"
    stage.finish()
    assert (stage.text, stage.kinds, stage.asked) == (numbers(0, 8), ["first", "reattach"], [])
    stage.check()
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.text_at_break, recovery.attempts) == ("reattach", True, 4, 1)
    assert (recovery.error, recovery.server, recovery.from_server) == ("ConnectionLostError", "http://s0", "http://s0")


def test_the_offset_counts_the_body_of_all_connections() -> None:
    stage = Stage(HELD)
    pieces = stage.attempt()
    offset = 0
    for cut in (3, 2, 4):
        stage.feed(*pieces[:cut], pieces[cut][:10])
        offset += sum(len(piece) - piece.index(b"\r\n") - 4 for piece in pieces[1:cut])
        stage.cut()
        assert stage.session.attempt.generation.offset == offset
        pieces = stage.attempt()
        assert stage.session.attempt.generation.reattach_path.endswith(f"&from={offset}")
    stage.feed(*pieces)
    assert stage.kinds == ["first", "reattach", "reattach", "reattach"]
    assert stage.text == numbers(0, 8)
    stage.check()


def test_nothing_is_held_where_it_would_not_end_by_itself() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    stage.finish()
    assert (stage.text, stage.kinds, stage.holdings.added) == (numbers(0, 8), ["first", "continue"], [])
    stage.check()


def test_an_id_that_the_server_forgot_is_a_reason_to_continue() -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    stage.papers[0].bodies.clear()
    stage.finish()
    assert stage.kinds == ["first", "reattach", "continue"]
    assert stage.text == numbers(0, 8)
    assert (stage.body["max_tokens"], stage.body["messages"][-1]["content"]) == (97, numbers(0, 3))
    assert len(stage.holdings.added) == 2
    stage.check()


def test_the_events_of_a_way_back_that_takes_two_attempts() -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    stage.papers[0].bodies.clear()
    stage.finish()
    assert [type(event).__name__ for event in stage.heard] == [
        "RequestStarted",
        "AttemptStarted",
        "FirstToken",
        "StreamBroke",
        "AttemptStarted",
        "RetryScheduled",
        "AttemptStarted",
        "StreamRecovered",
        "RequestEnded",
    ]
    assert [event.kind for event in stage.of(StreamBroke)] == ["reattach"]
    assert isinstance(stage.of(StreamBroke)[0].error, ConnectionLostError)
    (recovered,) = stage.of(StreamRecovered)
    assert (recovered.recovery.kind, recovered.recovery.attempts) == ("continue", 2)
    assert recovered.recovery.verified is False
    stage.check()


def test_a_server_that_does_not_know_ids_is_asked_whether_it_does() -> None:
    stage = Stage(HELD, Paper(reattach=False))
    stage.cut_after(4)
    stage.finish()
    assert stage.kinds == ["first", "reattach", "continue"]
    assert stage.asked[0] == "/v1/stream"
    assert stage.servers.all[0].reattach is False
    assert [attempt.generation.conversation_id is None for attempt in stage.sent] == [False, False, True]
    stage.check()


@pytest.mark.parametrize("error_class", [ConnectionLostError, ContentIdleTimeoutError])
def test_re_attaching_is_tried_twice_at_most_without_new_content(error_class: type[LlamaStreamError]) -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    while stage.kinds[-1] != "continue":
        stage.attempt()
        stage.session.fail(error_class("again"), stage.now)
        assert len(stage.kinds) < 6
    assert stage.kinds == ["first", "reattach", "reattach", "continue"]
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_a_server_that_went_down_has_lost_what_it_held() -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    stage.attempt()
    stage.session.fail(ConnectError("refused"), stage.now)
    stage.finish()
    assert stage.kinds == ["first", "reattach", "continue"]
    stage.check()


def test_a_silent_server_has_five_seconds_to_give_the_rest() -> None:
    stage = Stage(HELD, timeouts=Timeouts(first_byte=300.0))
    stage.cut_after(4)
    stage.attempt()
    assert stage.session.deadline == stage.now + 5.0
    stage.stall()
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_so_it_has_where_the_first_byte_may_take_for_ever() -> None:
    stage = Stage(HELD, timeouts=Timeouts(first_byte=None))
    stage.cut_after(4)
    stage.attempt()
    stage.stall()
    assert not stage.session.ended
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_the_message_of_a_silent_server_names_the_time_that_it_had() -> None:
    stage = Stage(HELD, timeouts=Timeouts(first_byte=300.0), recovery="reattach")
    stage.cut_after(4)
    for _ in range(4):
        if not stage.session.ended:
            stage.attempt()
            stage.stall()
    assert isinstance(stage.session.error, FirstByteTimeoutError)
    assert "within 5 s" in stage.session.error.message
    stage.check()


def test_pieces_that_came_the_short_way_are_counted_once_whoever_asks() -> None:
    stage = Stage(FREE)
    first, *others = stage.attempt()
    stage.feed(first, *others[:3])
    stage.session.exchange.rest()  # as when a slow reader has the connection paused
    stage.feed(others[3])
    stage.session.exchange.count()
    stage.feed(*others[4:])
    stats = stage.session.stats()
    assert (stage.text, stats.chunks, stats.completion_tokens) == (numbers(0, 8), 8, 8)
    stage.check()


# -- leaving --------------------------------------------------------------------------------------------------


def steps(request: GenerationRequest, *papers: Paper) -> Iterator[Stage]:
    """The same eventful stream, given away at each of its steps."""
    for last in range(200):
        stage = Stage(request, *(Paper(reattach=paper.reattach, tool_call=paper.style.tool_call) for paper in papers))
        count = 0

        def enough() -> bool:
            nonlocal count
            count += 1
            return count > last  # noqa: B023

        for cut in (5, 2, 1, 3, 99):
            session = stage.session
            if enough() or session.ended:
                break
            stage.now = max(stage.now, session.next_attempt_at or 0.0)
            session.prepare(stage.now)
            while not session.ended and (errand := session.errand) is not None and not enough():
                session.errand_done(stage.papers[errand.server.index].tell(errand), stage.now)
            stage.events += session.take_events()
            if session.ended or session.errand is not None or enough():
                break
            session.begin(stage.now, reused_connection=False)
            stage.sent.append(session.attempt)
            if enough():
                break
            session.connected(stage.now)
            pieces = stage.papers[session.server.index].answer(session.attempt)[:cut]
            while pieces and not enough():
                stage.feed(pieces.pop(0))
            if pieces or session.ended or enough():
                break
            stage.cut()
        if stage.session.ended:
            return
        yield stage


@pytest.mark.parametrize(
    ("request_", "paper"),
    [
        (HELD, Paper()),
        (HELD, Paper(reattach=False)),
        (FREE, Paper()),
        (chat(tools=TOOLS, max_tokens=99), Paper(tool_call=True)),
    ],
    ids=["held", "not held", "without a limit", "a tool call"],
)
def test_leaving_at_any_step_leaves_nothing_behind(request_: GenerationRequest, paper: Paper) -> None:
    stages = list(steps(request_, paper, paper))
    assert len(stages) > 10
    for stage in stages:
        stage.session.cancel(stage.now)
        assert stage.session.finish_reason == "cancelled"
        stage.session.cancel(stage.now)
        stage.check()
        assert stage.session.result().text == stage.text


def test_answers_to_questions_that_come_after_the_end_do_nothing() -> None:
    stage = Stage(chat(max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(4)
    stage.session.prepare(stage.now)
    errand = stage.session.errand
    assert errand is not None
    stage.session.cancel(stage.now)
    assert stage.session.errand is None
    stage.session.errand_done(stage.papers[0].tell(errand), stage.now)
    assert stage.session.errand is None
    stage.check()


def test_what_arrives_late_from_an_attempt_that_is_over_is_not_taken() -> None:
    stage = Stage(FREE)
    pieces = stage.attempt()
    stage.feed(*pieces[:5])
    stage.stall()
    stage.feed(*pieces[5:])
    assert stage.text == numbers(0, 3)
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_no_connection_of_the_pool_is_no_answer_in_vain() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    for _ in range(4):
        stage.settle()
        stage.session.fail(ConnectError("all connections are in use"), stage.now)
    stage.finish()
    assert stage.kinds == ["first", "continue"]
    stage.check()
