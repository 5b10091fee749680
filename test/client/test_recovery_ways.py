"""The machine of a stream without any I/O: an answer is continued, repeated, or asked for in one piece."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from paper import CALL, FREE, HELD, TOOLS, Paper, Stage, chat
from wires import numbers

from llamastream.errors import (
    ConnectError,
    MidStreamError,
    StreamDivergedError,
)
from llamastream.protocol.requests import GenerationRequest, completion_request
from llamastream.types import (
    StreamEnd,
    ToolCallDelta,
    Usage,
)

# -- continued, repeated, in one piece ------------------------------------------------------------------------


def test_a_conversation_is_counted_with_its_template() -> None:
    stage = Stage(chat(max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(4)
    stage.finish()
    assert stage.asked == ["/apply-template", "/apply-template", "/tokenize"]
    assert stage.body["max_tokens"] == 3
    assert stage.text == numbers(0, 6)
    usage = [event for event in stage.events if isinstance(event, Usage)][-1]
    assert usage.completion_tokens == 6
    stage.check()


def test_a_completion_is_counted_by_its_text() -> None:
    stage = Stage(completion_request("Count: ", max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(3)
    stage.finish()
    assert stage.asked == ["/tokenize"]
    assert (stage.body["prompt"], stage.body["max_tokens"]) == ("Count: 0 1 2 ", 3)
    assert stage.text == numbers(0, 6)
    stage.check()


def test_questions_without_an_answer_leave_the_pieces_as_count() -> None:
    stage = Stage(chat(max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.silent = True
    stage.cut_after(4)
    stage.finish()
    assert stage.asked == ["/apply-template"], "a server that does not answer is not asked again"
    assert (stage.body["max_tokens"], stage.text) == (3, numbers(0, 6))
    stage.check()


def test_a_text_that_reached_its_limit_is_complete() -> None:
    stage = Stage(chat(max_tokens=3), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(4)
    stage.finish()
    assert (stage.kinds, stage.text) == (["first"], numbers(0, 3))
    end = stage.events[-1]
    assert isinstance(end, StreamEnd)
    assert end.finish_reason == "length"
    assert end.usage is not None
    assert end.usage.completion_tokens == 3
    assert [recovery.kind for recovery in end.stats.recoveries] == ["finish"]
    stage.check()


def test_a_server_that_refuses_to_continue_is_asked_for_a_repetition() -> None:
    stage = Stage(FREE, Paper(continues=False))
    stage.cut_after(4)
    stage.finish()
    assert stage.kinds == ["first", "continue", "replay"]
    assert stage.text == numbers(0, 8)
    assert stage.servers.all[0].continues is None, "one refusal says nothing of other answers"
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.error) == ("replay", True, "ConnectionLostError")
    stage.check()


def test_what_was_learned_is_known_to_the_next_stream() -> None:
    stage = Stage(FREE, Paper(continues=False))
    stage.servers.all[0].continues = False
    stage.cut_after(4)
    stage.finish()
    assert stage.kinds == ["first", "replay"]
    stage.check()


def test_an_error_inside_a_continued_stream_is_no_refusal() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    stage.feed(stage.attempt()[0])
    stage.session.fail(MidStreamError("out of memory", status=500), stage.now)
    stage.finish()
    assert stage.kinds == ["first", "continue", "continue"]
    assert stage.servers.all[0].continues is None
    stage.check()


def test_tool_calls_are_repeated_with_the_same_seed() -> None:
    stage = Stage(chat(tools=TOOLS), Paper(tool_call=True))
    stage.cut_after(5)
    stage.finish()
    assert stage.kinds == ["first", "replay"]
    seeds = [attempt.generation.request.body["seed"] for attempt in stage.sent]
    assert len(set(seeds)) == 1
    assert "".join(event.arguments for event in stage.events if isinstance(event, ToolCallDelta)) == CALL
    assert [event.id for event in stage.events if isinstance(event, ToolCallDelta) and event.id] == ["call_1"]
    stage.check()


@pytest.mark.parametrize(
    ("request_", "paper"),
    [
        (chat(tools=TOOLS), {"tool_call": True}),
        (FREE, {"continues": False}),
        (HELD, {"continues": False, "reattach": False}),
    ],
    ids=["a tool call", "the server cannot continue", "it could have been held"],
)
def test_a_repetition_that_differs_is_the_end(request_: GenerationRequest, paper: dict[str, Any]) -> None:
    stage = Stage(request_, Paper(diverge_at=1, **paper))
    stage.servers.all[0].continues = paper.get("continues")
    stage.cut_after(6)
    stage.finish()
    assert isinstance(stage.session.error, StreamDivergedError)
    assert stage.session.error.partial is not None
    assert len([kind for kind in stage.kinds if kind == "replay"]) == 1
    stage.check()


def test_a_structured_answer_that_differs_is_continued() -> None:
    stage = Stage(chat(response_format={"type": "json_object"}), Paper(diverge_at=1))
    stage.cut_after(6)
    stage.finish()
    assert (stage.kinds, stage.text) == (["first", "replay", "continue"], numbers(0, 8))
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.attempts) == ("continue", False, 2)
    stage.check()


@pytest.mark.parametrize("continues", [True, False])
def test_after_three_streams_in_vain_the_rest_comes_in_one_piece(continues: bool) -> None:
    stage = Stage(FREE, Paper(continues=continues))
    stage.servers.all[0].continues = continues
    stage.cut_after(4)
    for _ in range(3):
        stage.cut_after(1)
    stage.finish()
    way = "continue" if continues else "replay"
    assert stage.kinds == ["first", way, way, way, "non_streaming"]
    assert (stage.text, stage.body["stream"]) == (numbers(0, 8), False)
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.attempts) == ("non_streaming", not continues, 4)
    assert stage.session.stats().streamed is False
    stage.check()


def test_a_refused_continuation_in_one_piece_is_repeated_in_one_piece() -> None:
    stage = Stage(FREE, Paper())
    stage.cut_after(4)
    for _ in range(3):
        stage.cut_after(1)
    stage.papers[0].style = msgspec.structs.replace(stage.papers[0].style, continues=False)
    stage.finish()
    assert stage.kinds[-2:] == ["non_streaming", "non_streaming"]
    assert "continue_final_message" not in stage.body
    assert stage.text == numbers(0, 8)
    assert stage.session.stats().recoveries[0].verified is True
    stage.check()


def test_in_vain_counts_only_what_was_answered() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    for _ in range(5):
        stage.attempt()
        stage.session.fail(ConnectError("refused"), stage.now)
    stage.finish()
    assert stage.kinds == ["first"] + ["continue"] * 6
    stage.check()


def test_one_piece_may_be_forbidden() -> None:
    stage = Stage(FREE, fallback="never")
    stage.cut_after(4)
    for _ in range(5):
        stage.cut_after(1)
    stage.finish()
    assert stage.kinds == ["first"] + ["continue"] * 6
    assert stage.text == numbers(0, 8)
    stage.check()
