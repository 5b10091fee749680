"""`LlamaServerLLM`: what it asks the server, and what is counted."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("crewai", reason="runs in `make test-all`, in an environment with CrewAI")

from crewai.hooks import register_after_llm_call_hook, register_before_llm_call_hook
from crewai.hooks.llm_hooks import clear_all_llm_call_hooks
from crewai.llms.base_llm import call_stop_override
from crewai.utilities.exceptions.context_window_exceeding_exception import LLMContextLengthExceededError
from pydantic import BaseModel

from commandline import STORY
from crewwork import QUESTION, WEATHER, Ask, asked, hearing, model
from llamastream import Engine, StreamingClient
from llamastream.errors import ContextSizeError
from llamastream.integrations.crewai import LlamaServerLLM
from llamastream.integrations.crewai.failures import IncompleteAnswerError
from llamastream.integrations.crewai.messages import to_server
from llamastream.testing import NumberedServer


class Animal(BaseModel):
    name: str
    legs: int


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
