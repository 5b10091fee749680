"""What `recovery=` and the retry policy allow, on a real server."""

from __future__ import annotations

import pytest

from llamastream.engine import Engine
from llamastream.errors import ConnectionLostError, LlamaStreamError
from llamastream.testing import Reset
from llamastream.types import RetryPolicy
from recovering import Whole
from tools.faults.asking import Ask, How, chat, structured, tool_call
from tools.faults.breaking import cut

CHAT = chat("Hello!")
LIMITED = chat("Hello!", max_tokens=300)
BOTH: list[How] = ["sync", "asyncio"]


@pytest.mark.parametrize("how", BOTH)
@pytest.mark.parametrize("ask", [CHAT, LIMITED], ids=["chat", "limited"])
def test_without_recovery_the_error_has_the_part(engine: Engine, whole: Whole, ask: Ask, how: How) -> None:
    for events in (2, 10, 50):
        got = cut(engine.url, ask, whole(ask), Reset(after_events=events), how=how, recovery="off")
        assert isinstance(got, ConnectionLostError)
        assert got.partial is not None
        assert got.partial.finish_reason == "error"
        assert got.partial.stats.chunks == events - 1
        assert got.partial.stats.recoveries == ()


@pytest.mark.parametrize("how", BOTH)
def test_without_recovery_only_end_marks_may_be_missing(engine: Engine, whole: Whole, how: How) -> None:
    got = cut(engine.url, CHAT, whole(CHAT), Reset(after_events=53), how=how, recovery="off", counted=False)
    assert not isinstance(got, LlamaStreamError), got
    assert got.kinds == ["finish"]


@pytest.mark.parametrize("how", BOTH)
def test_only_taking_up_the_same_generation(engine: Engine, whole: Whole, how: How) -> None:
    got = cut(engine.url, LIMITED, whole(LIMITED), Reset(after_events=10), how=how, recovery="reattach")
    assert not isinstance(got, LlamaStreamError), got
    assert got.kinds == ["reattach"]
    for ask in (CHAT, structured("Hello!")):
        error = cut(engine.url, ask, whole(ask), Reset(after_events=10), how=how, recovery="reattach")
        assert isinstance(error, ConnectionLostError)
    error = cut(
        engine.url, LIMITED, whole(LIMITED), Reset(after_events=10), how=how, reattach=False, recovery="reattach"
    )
    assert isinstance(error, ConnectionLostError)


@pytest.mark.parametrize("how", BOTH)
def test_so_many_breaks_and_no_more(engine: Engine, whole: Whole, how: How) -> None:
    faults = [Reset(after_events=6)] * 4
    retry = RetryPolicy(max_recoveries=3)
    for ask in (CHAT, LIMITED):
        error = cut(engine.url, ask, whole(ask), *faults, how=how, retry=retry)
        assert isinstance(error, ConnectionLostError)
        assert error.partial is not None
        assert len(error.partial.stats.recoveries) == 3


@pytest.mark.parametrize("how", BOTH)
def test_a_tool_call_is_the_same_call(engine: Engine, whole: Whole, how: How) -> None:
    ask = tool_call()
    expected = whole(ask)
    assert expected.result.finish_reason == "tool_calls"
    for events in (3, 200):
        got = cut(engine.url, ask, expected, Reset(after_events=events), how=how, counted=False)
        assert not isinstance(got, LlamaStreamError), got
        assert got.kinds == ["replay"]
        assert got.result.tool_calls[0].parsed_arguments() == expected.result.tool_calls[0].parsed_arguments()
