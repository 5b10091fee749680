"""The machine of a stream without any I/O: how often, how long, and on which of several servers it goes on."""

from __future__ import annotations

import pytest
from paper import FREE, HELD, Paper, Stage, chat, error
from wires import numbers

from llamastream.errors import (
    BadRequestError,
    ConnectError,
    ConnectionLostError,
    MidStreamError,
    TotalTimeoutError,
)
from llamastream.events import AttemptStarted
from llamastream.policy.breaker import BreakerState
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import (
    Health,
    RetryPolicy,
    Timeouts,
)

# -- bounds ---------------------------------------------------------------------------------------------------


def test_patience_ends_with_the_error_of_the_last_attempt_and_what_there_was() -> None:
    stage = Stage(FREE, retry=RetryPolicy(base_delay=0.25, recovery_patience=10.0))
    stage.cut_after(4)
    while not stage.session.ended:
        stage.attempt()
        stage.session.fail(ConnectError("refused"), stage.now)
    assert 10.0 < stage.now - 1000.0 < 13.0
    assert isinstance(stage.session.error, ConnectError)
    assert stage.session.error.partial is not None
    assert stage.session.error.partial.text == numbers(0, 3)
    stage.check()


def test_new_content_ends_the_count_of_the_patience() -> None:
    stage = Stage(FREE, retry=RetryPolicy(recovery_patience=10.0))
    for _ in range(6):
        stage.cut_after(2)
        stage.now += 8.0
    stage.finish()
    assert stage.text == numbers(0, 8)
    assert len(stage.session.stats().recoveries) == 6
    stage.check()


@pytest.mark.parametrize("breaks", [0, 1, 3])
def test_so_many_breaks_are_mended_and_no_more(breaks: int) -> None:
    stage = Stage(FREE, Paper(tokens=50), retry=RetryPolicy(max_recoveries=breaks))
    for _ in range(breaks + 1):
        assert not stage.session.ended
        stage.cut_after(3)
    assert isinstance(stage.session.error, ConnectionLostError)
    assert len(stage.session.stats().recoveries) == breaks
    stage.check()


@pytest.mark.parametrize("request_", [FREE, HELD])
def test_it_can_be_switched_off(request_: GenerationRequest) -> None:
    stage = Stage(request_, recovery="off")
    stage.cut_after(4)
    assert isinstance(stage.session.error, ConnectionLostError)
    assert stage.holdings.added == []
    stage.check()


def test_the_total_clock_is_the_last_word() -> None:
    stage = Stage(FREE, timeouts=Timeouts(total=5.0))
    stage.cut_after(4)
    stage.attempt()
    stage.now += 4.9
    stage.session.fail(ConnectError("refused"), stage.now)
    assert stage.session.ended, "the next attempt would begin after the end"
    stage.check()


def test_when_the_total_clock_runs_out_nothing_goes_on() -> None:
    stage = Stage(HELD, timeouts=Timeouts(total=5.0))
    stage.feed(*stage.attempt()[:5])
    stage.stall()
    assert isinstance(stage.session.error, TotalTimeoutError)
    stage.check()


def test_an_error_that_is_final_ends_it() -> None:
    stage = Stage(HELD)
    stage.feed(*stage.attempt()[:5])
    stage.session.fail(MidStreamError("bad grammar", status=400), stage.now)
    assert isinstance(stage.session.error, MidStreamError)
    stage.check()


def test_the_first_request_that_is_refused_is_not_repeated() -> None:
    stage = Stage(HELD)
    stage.attempt()
    stage.feed(error(400))
    assert isinstance(stage.session.error, BadRequestError)
    stage.check()


def test_all_was_there_but_the_end_marks() -> None:
    stage = Stage(chat(stream_options={"include_usage": False}))
    stage.cut_after(1 + 8 + 1)
    stage.finish()
    assert (stage.text, stage.kinds) == (numbers(0, 8), ["first"])
    assert [recovery.kind for recovery in stage.session.stats().recoveries] == ["finish"]
    stage.check()


# -- several servers ------------------------------------------------------------------------------------------


def test_a_frozen_server_is_left_at_once_and_its_generation_dropped() -> None:
    stage = Stage(HELD, Paper(), Paper())
    stage.feed(*stage.attempt()[:5])
    stage.stall()
    assert stage.session.next_attempt_at == stage.now
    one, two = stage.servers.all
    assert one.breaker.state(stage.now) is BreakerState.OPEN
    stage.finish()
    assert stage.kinds == ["first", "continue"]
    assert [attempt.generation.server for attempt in stage.sent] == [one, two]
    assert stage.text == numbers(0, 8)
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.from_server, recovery.server) == (one.url, two.url)
    assert [event.server for event in stage.of(AttemptStarted)] == [one.url, two.url]
    stage.check()


def test_a_cut_goes_back_to_the_server_that_holds_the_generation() -> None:
    stage = Stage(HELD, Paper(), Paper())
    stage.cut_after(4)
    stage.finish()
    assert [attempt.generation.server.index for attempt in stage.sent] == [0, 0]
    stage.check()


def test_without_an_id_a_cut_goes_on_elsewhere() -> None:
    stage = Stage(FREE, Paper(), Paper())
    stage.cut_after(4)
    stage.finish()
    assert [attempt.generation.server.index for attempt in stage.sent] == [0, 1]
    stage.check()


def test_all_servers_are_tried_before_one_is_tried_again() -> None:
    stage = Stage(FREE, Paper(), Paper(), Paper())
    stage.cut_after(4)
    assert stage.session.next_attempt_at == stage.now
    for _ in range(2):
        stage.attempt()
        stage.session.fail(ConnectError("refused"), stage.now)
    assert [attempt.generation.server.index for attempt in stage.sent] == [0, 1, 2]
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_a_server_that_was_not_asked_yet_is_asked_at_once() -> None:
    stage = Stage(FREE, Paper(), Paper(), Paper())
    stage.cut_after(4)
    stage.attempt()
    stage.session.fail(ConnectError("refused"), stage.now)
    assert stage.session.next_attempt_at == stage.now, "the third"
    stage.attempt()
    stage.session.fail(ConnectError("refused"), stage.now)
    assert stage.session.next_attempt_at is not None
    assert stage.session.next_attempt_at > stage.now, "all have been asked"
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


@pytest.mark.parametrize(("status", "kind"), [(503, "continue"), (429, "continue"), (502, "reattach")])
def test_what_a_server_refused_is_not_taken_up_there(status: int, kind: str) -> None:
    stage = Stage(HELD, Paper(), Paper())
    stage.feed(*stage.attempt()[:5])
    stage.stall()
    stage.attempt()
    stage.feed(error(status))
    stage.settle()
    assert stage.session.attempt.kind == kind, "who answers 502 has only lost sight of the server"
    assert "/v1/stream" not in stage.asked, "nobody needs to know whether it would hold one"
    stage.session.cancel(stage.now)
    stage.check()


def test_a_server_that_was_down_is_probed_before_it_is_used() -> None:
    stage = Stage(FREE, Paper(), Paper())
    one, two = stage.servers.all
    stage.servers.failed(one, stage.now, certain=True)
    stage.servers.failed(two, stage.now, certain=True)
    stage.now += 100.0
    stage.settle()
    assert stage.asked == ["/health"]
    stage.session.cancel(stage.now)
    stage.check()


def test_a_probe_that_fails_leaves_the_server_alone() -> None:
    stage = Stage(FREE, Paper(), Paper())
    one, two = stage.servers.all
    for server in (one, two):
        stage.servers.failed(server, stage.now, certain=True)
    stage.now += 100.0
    stage.settle(lambda errand: Health("ok") if errand.server is two else None)
    assert stage.asked == ["/health", "/health"]
    assert stage.session.server is two
    assert one.breaker.state(stage.now) is BreakerState.OPEN
    stage.session.cancel(stage.now)
    stage.check()
