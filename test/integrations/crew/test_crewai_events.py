"""`LlamaServerLLM`: what CrewAI's event bus hears of it, and what comes back."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMCallType,
    LLMStreamChunkEvent,
    LLMThinkingChunkEvent,
)

from commandline import LONG, STORY
from crewwork import QUESTION, WEATHER, Ask, answers_asked, hearing, listening, model
from llamastream import Engine, StreamingClient, Timeouts
from llamastream.errors import ConnectionLostError, LlamaStreamError, RateLimitedError
from llamastream.testing import (
    ChaosProxy,
    NumberedServer,
    Reset,
    Script,
    ServerDouble,
    chunked,
    http_answer,
    sse_answer,
)
from ports import free_port


def test_each_piece_is_on_the_bus_before_the_next_is_generated(ask: Ask) -> None:
    with NumberedServer(tokens=5, gate=True) as server, hearing(LLMStreamChunkEvent) as heard:
        server.release(1)

        with listening(LLMStreamChunkEvent, lambda: server.release(1)):
            assert ask(model(server.url), "count") == "0 1 2 3 4 "
        assert heard.chunks == ["0 ", "1 ", "2 ", "3 ", "4 "]


def test_what_is_on_the_bus_is_what_the_server_generated(engine: Engine, ask: Ask) -> None:
    with hearing() as heard:
        assert ask(model(engine.url), STORY.question) == STORY.answer
        assert heard.text == STORY.answer
        assert len(heard.chunks) > 20
        assert heard.kinds[0] == "llm_call_started"
        assert heard.kinds[-1] == "llm_call_completed"
        assert len({event.call_id for event in heard.events}) == 1
        completed = heard.events[-1]
    with StreamingClient(engine.url) as client:
        result = client.chat([{"role": "user", "content": STORY.question}], temperature=0, max_tokens=1000)
    assert result.usage is not None
    assert completed.response == STORY.answer
    assert completed.finish_reason == "stop"
    assert completed.usage["prompt_tokens"] == result.usage.prompt_tokens
    assert completed.usage["completion_tokens"] == result.usage.completion_tokens


def test_a_model_that_does_not_stream_emits_no_pieces(engine: Engine, ask: Ask) -> None:
    with hearing() as heard:
        assert ask(model(engine.url, stream=False), STORY.question) == STORY.answer
        assert heard.kinds == ["llm_call_started", "llm_call_completed"]


def test_reasoning_is_a_thinking_event_and_no_part_of_the_answer(ask: Ask) -> None:
    with NumberedServer(tokens=2, reasoning_tokens=2) as server, hearing() as heard:
        assert ask(model(server.url), "count") == "0 1 "
        assert [event.chunk for event in heard.of(LLMThinkingChunkEvent)] == ["r0 ", "r1 "]
        assert heard.chunks == ["0 ", "1 "]


def test_a_tool_call_comes_in_pieces_and_as_a_whole(engine: Engine, ask: Ask) -> None:
    with hearing() as heard:
        calls = ask(model(engine.url), QUESTION, tools=[WEATHER])
        pieces = heard.of(LLMStreamChunkEvent)
        completed = heard.of(LLMCallCompletedEvent)
    assert [call["function"] for call in calls] == [{"name": "get_weather", "arguments": '{"city": "Paris"}'}]
    assert "".join(piece.chunk for piece in pieces) == '{"city": "Paris"}'
    assert all(piece.call_type is LLMCallType.TOOL_CALL for piece in pieces)
    assert {piece.tool_call.function.name for piece in pieces} == {"get_weather"}
    assert {piece.tool_call.id for piece in pieces} == {calls[0]["id"]}
    assert pieces[-1].tool_call.function.arguments == '{"city": "Paris"}'
    assert [event.call_type for event in completed] == [LLMCallType.TOOL_CALL]


def test_functions_that_are_given_are_called(engine: Engine, ask: Ask) -> None:
    functions = {"get_weather": lambda city: f"18 degrees in {city}"}
    assert ask(model(engine.url), QUESTION, tools=[WEATHER], available_functions=functions) == "18 degrees in Paris"


def test_a_malformed_call_reaches_no_function() -> None:
    def event(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"

    function = {"name": "get_weather", "arguments": '{"city": "Par'}
    delta = {"tool_calls": [{"index": 0, "id": "1", "type": "function", "function": function}]}
    script = Script(chunked([event(delta), event({}, "tool_calls"), b"data: [DONE]\n\n"]))
    called: list[Any] = []
    with ServerDouble(script) as server:
        llm = model(server.url)
        llm.call(QUESTION, tools=[WEATHER], available_functions={"get_weather": lambda **city: called.append(city)})
        assert llm.call(QUESTION, tools=[WEATHER])[0]["function"] == function
    assert called == []


def test_pieces_may_be_put_together(engine: Engine, ask: Ask) -> None:
    with hearing() as heard:
        assert ask(model(engine.url, coalesce=60), STORY.question) == STORY.answer
        assert heard.text == STORY.answer
        assert len(heard.chunks) == 2  # the first at once, the rest together


def test_what_was_held_back_is_on_the_bus_when_the_call_fails(ask: Ask) -> None:
    answer = sse_answer(["a", "b", "c", "d"])
    with ServerDouble(Script(answer, cut_at=answer.index(b'"d"'))) as server, hearing() as heard:
        with pytest.raises(ConnectionLostError):
            ask(model(server.url, coalesce=60, recovery="off"), "?")
        assert heard.chunks == ["a", "bc"]
        assert heard.kinds[-1] == "llm_call_failed"


# -- faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("retries", [0, 1])
def test_nothing_is_repeated_but_by_the_client(ask: Ask, retries: int) -> None:
    refused = http_answer(
        "429 Too Many Requests", b'{"error":{"message":"Too many requests","type":"rate_limit","code":429}}'
    )
    with ServerDouble(Script(refused)) as server, hearing() as heard:
        llm = model(server.url, max_retries=retries)
        with pytest.raises(RateLimitedError):
            ask(llm, "?")
        assert answers_asked(server) == 1 + retries
        assert heard.kinds == ["llm_call_started", "llm_call_failed"]


def test_an_error_in_the_middle_that_names_a_rate_limit_repeats_no_piece(ask: Ask) -> None:
    piece = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    error = b'data: {"error":{"message":"rate limit reached","type":"server_error","code":500}}\n\n'
    with ServerDouble(Script(chunked([piece, error]))) as server, hearing() as heard:
        with pytest.raises(LlamaStreamError, match="rate limit"):
            ask(model(server.url, recovery="off"), "?")
        assert answers_asked(server) == 1
        assert heard.chunks == ["a"]
        assert len(heard.of(LLMCallFailedEvent)) == 1


def test_a_break_in_the_middle_is_mended(engine: Engine, ask: Ask) -> None:
    with ChaosProxy(engine.url, Reset(after_events=5)) as proxy, hearing() as heard:
        assert ask(model(proxy.url), STORY.question) == STORY.answer
        assert heard.text == STORY.answer
        assert any(exchange.fired for exchange in proxy.log)


def test_a_dead_server_is_left_for_the_next(engine: Engine, ask: Ask) -> None:
    assert ask(model([f"http://127.0.0.1:{free_port()}", engine.url]), STORY.question) == STORY.answer


def test_cancelling_the_task_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    async def cancel() -> None:
        begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        with listening(LLMStreamChunkEvent, lambda: loop.call_soon_threadsafe(begun.set)):
            llm = model(engine.url, max_tokens=None, ignore_eos=True)
            task = asyncio.create_task(llm.acall(LONG.question))
            await begun.wait()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancel())
    slots_free()


def test_a_timeout_stands_for_each_step() -> None:
    for timeout in (0.1, Timeouts(first_byte=0.1)):
        with ServerDouble(Script(stall=True)) as server, pytest.raises(TimeoutError):
            model(server.url, timeout=timeout, max_retries=0).call("hi")
