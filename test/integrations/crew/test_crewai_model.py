"""`LlamaServerLLM`: what it asks the server, what CrewAI's event bus hears, and what comes back."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from crewai import LLM
from crewai.events.types.llm_events import (
    LLMCallCompletedEvent,
    LLMCallFailedEvent,
    LLMCallType,
    LLMStreamChunkEvent,
    LLMThinkingChunkEvent,
)
from crewai.hooks import register_after_llm_call_hook, register_before_llm_call_hook
from crewai.hooks.llm_hooks import clear_all_llm_call_hooks
from crewai.llms.base_llm import call_stop_override
from crewai.utilities.exceptions.context_window_exceeding_exception import LLMContextLengthExceededError
from pydantic import BaseModel

from commandline import LONG, STORY
from crewwork import answers_asked, asked, hearing, listening
from llamastream import Engine, RetryPolicy, StreamingClient, Timeouts
from llamastream.errors import ConnectionLostError, ContextSizeError, LlamaStreamError, RateLimitedError, SettingError
from llamastream.integrations.crewai import LlamaServerLLM, create_llm
from llamastream.integrations.crewai.failures import IncompleteAnswerError
from llamastream.integrations.crewai.messages import to_server
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

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
QUESTION = "What is the weather in Paris?"
Ask = Callable[..., Any]
Closing = Callable[[Any], Any]


class Animal(BaseModel):
    name: str
    legs: int


def blocking(llm: LlamaServerLLM, *arguments: Any, **more: Any) -> Any:
    return llm.call(*arguments, **more)


def asynchronous(llm: LlamaServerLLM, *arguments: Any, **more: Any) -> Any:
    return asyncio.run(llm.acall(*arguments, **more))


@pytest.fixture(params=[blocking, asynchronous])
def ask(request: pytest.FixtureRequest) -> Ask:
    """`call`, and `acall`."""
    function: Ask = request.param
    return function


def model(url: str | list[str], **more: Any) -> LlamaServerLLM:
    return LlamaServerLLM(base_url=url, **{"temperature": 0, "max_tokens": 1000, **more})


# -- on the event bus ---------------------------------------------------------------------------------------


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


# -- what is asked for --------------------------------------------------------------------------------------


def test_stop_words_reach_the_server(engine: Engine, ask: Ask) -> None:
    assert ask(model(engine.url, stop=[" 4"]), "Count to ten.") == "1, 2, 3,"
    llm = model(engine.url)
    with call_stop_override(llm, [" 3"]):  # what CrewAI's agents do
        assert ask(llm, "Count to ten.") == "1, 2,"


def test_an_object_is_generated_by_its_schema(engine: Engine, ask: Ask) -> None:
    with hearing() as heard:
        animal = ask(model(engine.url), "Give me a JSON object.", response_model=Animal)
        assert isinstance(animal, Animal)
        assert Animal.model_validate_json(heard.text) == animal


def test_an_object_that_is_cut_off_says_so(engine: Engine, ask: Ask) -> None:
    with pytest.raises(IncompleteAnswerError, match="to be a Animal, and ended after 3 tokens because of max_tokens"):
        ask(model(engine.url, max_tokens=3), "Give me a JSON object.", response_model=Animal)


def test_the_request_has_what_was_set_also_later() -> None:
    with NumberedServer(tokens=1) as server:
        llm = model(server.url, model="openai/small", top_p=0.5, seed=7, frequency_penalty=0.1, top_k=20, min_p=0.1)
        llm.temperature = 0.25
        llm.call("count")
        body = asked(server)[-1].body
    expected = {"model": "small", "temperature": 0.25, "top_p": 0.5, "seed": 7, "frequency_penalty": 0.1, "top_k": 20}
    assert {name: body[name] for name in expected} == expected
    assert (body["min_p"], body["max_tokens"]) == (0.1, 1000)
    assert body["messages"] == [{"role": "user", "content": "count"}]


def test_without_a_name_of_the_model_none_is_sent() -> None:
    with NumberedServer(tokens=1) as server:
        LlamaServerLLM(base_url=server.url).call("count")
        assert "model" not in asked(server)[-1].body


def test_messages_are_sent_without_what_crewai_keeps_in_them() -> None:
    function = {"name": "get_weather", "arguments": '{"city": "Paris"}'}
    calls = [{"id": "1", "type": "function", "function": function}]
    messages = [
        {"role": "system", "content": "Be brief.", "cache_breakpoint": True, "files": {}},
        {"role": "assistant", "content": None, "tool_calls": calls, "raw_tool_call_parts": [1]},
        {"role": "tool", "content": "18", "tool_call_id": "1", "name": "get_weather"},
    ]
    with NumberedServer(tokens=1) as server:
        LlamaServerLLM(base_url=server.url).call(messages)
        sent = asked(server)[-1].body["messages"]
    assert sent == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "", "tool_calls": calls},
        {"role": "tool", "content": "18", "tool_call_id": "1", "name": "get_weather"},
    ]


def test_arguments_of_a_call_that_are_no_text_are_written_as_json() -> None:
    calls = [{"id": "1", "function": {"name": "look", "arguments": {"where": "Zürich", "deep": True}}}]
    (written,) = to_server([{"role": "assistant", "content": None, "tool_calls": calls}])
    assert written["tool_calls"][0]["function"]["arguments"] == '{"where": "Zürich", "deep": true}'


def test_a_malformed_call_in_the_history_does_not_stop_the_conversation(engine: Engine, ask: Ask) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Par'}}]
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "the arguments are no JSON", "tool_call_id": "1", "name": "get_weather"},
    ]
    llm = model(engine.url)
    assert llm.get_input_tokens_count(messages, [WEATHER]) > 0
    assert ask(llm, messages, tools=[WEATHER])


def test_hooks_of_crewai_are_asked(engine: Engine, ask: Ask) -> None:
    def before(context: Any) -> None:
        context.messages[-1]["content"] = "Count to ten."

    register_before_llm_call_hook(before)
    register_after_llm_call_hook(lambda context: f"{context.response} and so on")
    try:
        assert ask(model(engine.url, stop=[" 3"]), "?") == "1, 2, and so on"
    finally:
        clear_all_llm_call_hooks()


def test_a_hook_may_forbid_a_call(ask: Ask) -> None:
    register_before_llm_call_hook(lambda context: False)
    try:
        with NumberedServer(tokens=1) as server, hearing() as heard:
            with pytest.raises(ValueError, match="blocked"):
                ask(model(server.url), "?")
            assert server.requests == []
            assert heard.kinds == ["llm_call_started", "llm_call_failed"]
    finally:
        clear_all_llm_call_hooks()


# -- context and counts -------------------------------------------------------------------------------------


def test_the_context_is_the_one_of_the_server(engine: Engine) -> None:
    assert model(engine.url).get_context_window_size() == engine.capabilities.n_ctx == 8192


@pytest.mark.parametrize("tools", [None, [WEATHER]])
def test_tokens_are_counted_by_the_server(engine: Engine, tools: Any) -> None:
    llm = model(engine.url)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]
    counted = llm.get_input_tokens_count(messages, tools)
    llm.call(messages, tools=tools)
    assert counted == llm.get_token_usage_summary().prompt_tokens
    with StreamingClient(engine.url) as client:
        assert llm.get_input_tokens_count("Zürich in summer") == len(client.tokenize("Zürich in summer"))


def test_a_prompt_must_leave_room_for_the_answer(engine: Engine) -> None:
    llm = model(engine.url, max_tokens=1000)

    def prompt(words: int) -> list[dict[str, str]]:
        return [{"role": "user", "content": "word " * words}]

    shorter = llm.get_input_tokens_count(prompt(100))
    each = (llm.get_input_tokens_count(prompt(200)) - shorter) // 100
    fits = 100 + (8192 - 1000 - shorter) // each
    assert llm.get_input_tokens_count(prompt(fits)) in range(8192 - 1000 - each, 8192 - 1000 + 1)
    assert not llm.is_context_window_overflowing_threshold(prompt(fits))
    assert llm.is_context_window_overflowing_threshold(prompt(fits + 1))


def test_a_long_conversation_is_summarised_in_pieces_that_fit(engine: Engine) -> None:
    llm = model(engine.url, max_tokens=50)
    messages = [{"role": "user", "content": "word " * 5000} for _ in range(4)]
    llm.summarize_messages(messages, callbacks=[], verbose=False)
    assert len(messages) == 1
    assert llm.get_input_tokens_count(messages) < 1000
    assert llm.get_token_usage_summary().successful_requests >= 3
    assert llm.get_context_window_size() == 8192


def test_a_prompt_that_is_too_long_is_an_error_that_crewai_knows(engine: Engine, ask: Ask) -> None:
    with pytest.raises(ContextSizeError, match="context length exceeded") as caught:
        ask(model(engine.url), "word " * 20000)
    assert isinstance(caught.value, LLMContextLengthExceededError)
    assert (caught.value.n_ctx, caught.value.status) == (8192, 400)


def test_usage_is_counted_over_all_calls(engine: Engine, ask: Ask) -> None:
    llm = model(engine.url)
    ask(llm, STORY.question)
    once = llm.get_token_usage_summary()
    ask(llm, STORY.question)
    twice = llm.get_token_usage_summary()
    assert (once.successful_requests, twice.successful_requests) == (1, 2)
    assert once.prompt_tokens > 0
    assert twice.prompt_tokens == 2 * once.prompt_tokens
    assert twice.completion_tokens == 2 * once.completion_tokens
    assert twice.cached_prompt_tokens > 0


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


# -- how it is made -----------------------------------------------------------------------------------------


def test_the_settings_of_a_project_make_both_kinds_of_models(engine: Engine, closing: Closing) -> None:
    settings = SimpleNamespace(llm_base_url=engine.url, llm_model="demo", llm_temperature=0.0, llm_max_tokens=5)
    streaming = create_llm(settings, max_tokens=3)
    assert isinstance(streaming, LlamaServerLLM)
    assert (streaming.model, streaming.temperature, streaming.max_tokens) == ("demo", 0.0, 3)
    plain = closing(create_llm(settings, streaming=False))
    assert not isinstance(plain, LlamaServerLLM)
    assert (plain.model, plain.temperature, plain.max_tokens) == ("demo", 0.0, 5)
    with hearing() as heard:
        texts = [llm.call("Count to ten.") for llm in (streaming, plain)]
        assert heard.text == texts[0]
    assert all(text and "1, 2, 3, 4".startswith(text) for text in texts)


def test_without_a_settings_object_the_environment_decides(
    engine: Engine, closing: Closing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASTREAM_BASE_URL", engine.url)
    monkeypatch.setenv("LLAMASTREAM_TEMPERATURE", "0")
    llm = create_llm()
    assert (llm.base_url, llm.temperature) == (engine.url, 0)
    assert llm.call("Hello!") == closing(create_llm(streaming=False)).call("Hello!")


def test_a_plain_model_takes_the_arguments_of_a_streaming_one(closing: Closing) -> None:
    arguments: dict[str, Any] = {
        "recovery": "off",
        "coalesce": 0.1,
        "function_calling": False,
        "fallback": "auto",
        "listeners": [],
        "retry": RetryPolicy(),
        "timeout": Timeouts(total=30),
        "headers": {"X-Asked-By": "test"},
        "top_k": 5,
        "seed": 3,
    }
    content = {"role": "assistant", "content": "ok"}
    whole = {"id": "x", "object": "chat.completion", "created": 1, "model": "m"}
    body = json.dumps({**whole, "choices": [{"index": 0, "message": content, "finish_reason": "stop"}]}).encode()
    with ServerDouble(Script(http_answer("200 OK", body))) as server:
        plain = closing(create_llm({"llm_base_url": server.url}, streaming=False, **arguments))
        assert plain.call("hi") == "ok"
        head, _, sent = server.requests[0].partition(b"\r\n\r\n")
    fields = json.loads(sent)
    assert (fields["top_k"], fields["seed"]) == (5, 3)
    assert fields.keys() == {"messages", "model", "top_k", "seed"}
    assert b"x-asked-by: test" in head.lower()
    assert plain.timeout == 30


def test_an_object_without_settings_is_refused() -> None:
    with pytest.raises(SettingError, match="SimpleNamespace has none of the settings llm_base_url"):
        create_llm(SimpleNamespace(base_url="http://localhost:8080"))


def test_a_wrong_setting_is_named_when_the_model_is_made() -> None:
    with pytest.raises(ValueError, match="base_url 'ftp://x' from the argument has the scheme 'ftp'") as caught:
        LlamaServerLLM(base_url="ftp://x", api_key="hidden-key")
    assert "hidden" not in str(caught.value)
    with pytest.raises(ValueError, match="n=2 is not allowed: CrewAI takes one answer"):
        LlamaServerLLM(base_url="http://127.0.0.1:1", n=2)


def test_keys_are_sent_and_not_shown() -> None:
    with NumberedServer(tokens=1) as server:
        llm = LlamaServerLLM(base_url=server.url, api_key="hidden-key", headers={"X-Team": "hidden-header"})
        llm.call("count")
        sent = asked(server)[-1].headers
    assert (sent["authorization"], sent["x-team"]) == ("Bearer hidden-key", "hidden-header")
    assert "hidden" not in repr(llm) + str(llm.model_dump()) + llm.model_dump_json() + json.dumps(llm.to_config_dict())


def test_crewai_can_make_a_model_of_its_own_after_a_pause(engine: Engine, closing: Closing) -> None:
    config = model([engine.url, "http://127.0.0.1:1"], model="demo", stop=[" 3"]).to_config_dict()
    assert config == {"model": "openai/demo", "base_url": f"{engine.url}/v1", "temperature": 0, "stop": [" 3"]}
    assert str(closing(LLM(**config, api_key="none")).call("Count to ten.")).startswith("1, 2,")


@pytest.mark.parametrize("wrong", [1.5, float("nan"), float("inf")])
def test_max_tokens_is_a_whole_number(wrong: float) -> None:
    with pytest.raises(ValueError, match=f"max_tokens={wrong} is not allowed; allowed: a whole number"):
        model("http://127.0.0.1:1", max_tokens=wrong)
    llm = model("http://127.0.0.1:1", max_tokens=20.0)
    assert llm.max_tokens == 20
    llm.max_tokens = wrong
    with pytest.raises(ValueError, match=f"max_tokens={wrong} is not allowed; allowed: a whole number"):
        llm.call("hi")


# -- changes and copies -------------------------------------------------------------------------------------


def test_a_changed_attribute_holds_from_the_next_call_on(ask: Ask) -> None:
    with NumberedServer(tokens=2) as first, NumberedServer(tokens=3) as second:
        llm = model(first.url)
        assert ask(llm, "count") == "0 1 "
        changed = llm.model_copy(update={"base_url": second.url})
        assert (ask(changed, "count"), ask(llm, "count")) == ("0 1 2 ", "0 1 ")
        llm.base_url = second.url
        assert ask(llm, "count") == "0 1 2 "
    llm.base_url = "ftp://x"
    with pytest.raises(SettingError, match="base_url 'ftp://x'"):
        ask(llm, "count")


def test_the_context_is_that_of_the_server_that_is_asked_now(engine: Engine) -> None:
    props = http_answer("200 OK", b'{"default_generation_settings":{"n_ctx":77}}')
    with ServerDouble(Script(props)) as server:
        llm = model(server.url)
        assert llm.get_context_window_size() == 77
    llm.base_url = engine.url
    assert llm.get_context_window_size() == model(engine.url).get_context_window_size() != 77


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda llm: pickle.loads(pickle.dumps(llm))])
def test_a_model_can_be_copied_and_pickled(engine: Engine, copied: Callable[[Any], Any]) -> None:
    llm = model(engine.url, api_key="hidden-key", timeout=Timeouts(total=60), top_k=1)
    assert llm.call(STORY.question) == STORY.answer  # its connections are open
    other = copied(llm)
    assert other.call(STORY.question) == STORY.answer
    assert other._client is not llm._client
    assert (other.api_key, other.additional_params) == ("hidden-key", {"top_k": 1})
    assert "hidden" not in repr(other)
