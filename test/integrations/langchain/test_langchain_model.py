"""`ChatLlamaStream`: what LangChain's standard tests do not look at."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="runs in `make test-all`, in an environment with LangChain")

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelConnectionError,
    ModelInvalidRequestError,
    OutputParserException,
)
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from pydantic import SecretStr
from toolanswers import answer, piece

from commandline import LONG, STORY
from llamastream import Engine, StreamingClient, Timeouts
from llamastream.errors import (
    ConnectError,
    ContextSizeError,
    InvalidRequestError,
    MalformedOutputError,
    ModelLoadingError,
    SettingError,
)
from llamastream.integrations.langchain import ChatLlamaStream
from llamastream.integrations.langchain.messages import to_server
from llamastream.testing import ChaosProxy, NumberedServer, Reset, Script, ServerDouble, http_answer, sse_answer
from ports import free_port

TOOLS = [
    {
        "name": name,
        "description": f"The {name} of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    for name in ("get_weather", "get_time")
]


class Tokens(BaseCallbackHandler):
    def __init__(self) -> None:
        self.tokens: list[str] = []

    def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
        self.tokens.append(token)


def joined(chunks: Sequence[Any]) -> AIMessageChunk:
    full: AIMessageChunk = chunks[0]
    for chunk in chunks[1:]:
        full = full + chunk
    return full


# -- streaming ----------------------------------------------------------------------------------------------


def test_each_piece_is_handed_on_before_the_next_is_generated() -> None:
    with NumberedServer(tokens=5, gate=True) as server:
        server.release(1)
        texts = []
        for chunk in ChatLlamaStream(base_url=server.url).stream("count"):
            texts.append(chunk.text)
            server.release(1)
    assert texts == ["0 ", "1 ", "2 ", "3 ", "4 ", ""]


async def test_each_piece_is_handed_on_before_the_next_is_generated_in_asyncio() -> None:
    with NumberedServer(tokens=5, gate=True) as server:
        server.release(1)
        texts = []
        chain = ChatPromptTemplate.from_template("{it}") | ChatLlamaStream(base_url=server.url) | StrOutputParser()
        async for text in chain.astream({"it": "count"}):
            texts.append(text)
            server.release(1)
    assert "".join(texts) == "0 1 2 3 4 "
    assert len(texts) >= 5


def test_invoke_and_stream_give_the_same_answer(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0)
    invoked, streamed = model.invoke(STORY.question), joined(list(model.stream(STORY.question)))
    assert invoked.text == streamed.text == STORY.answer
    assert invoked.response_metadata["finish_reason"] == streamed.response_metadata["finish_reason"] == "stop"
    assert invoked.usage_metadata is not None
    assert streamed.usage_metadata is not None
    assert invoked.usage_metadata["output_tokens"] == streamed.usage_metadata["output_tokens"]


def test_a_callback_hears_each_token_once(engine: Engine) -> None:
    variants: list[dict[str, Any]] = [{}, {"streaming": True}]
    for options in variants:
        heard = Tokens()
        model = ChatLlamaStream(base_url=engine.url, temperature=0, **options)
        if options:
            model.invoke(STORY.question, config={"callbacks": [heard]})
        else:
            list(model.stream(STORY.question, config={"callbacks": [heard]}))
        assert "".join(heard.tokens) == STORY.answer
        assert len(heard.tokens) > 20


def test_stop_words_reach_the_server(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0)
    assert model.invoke("Count to ten.", stop=[" 4"]).text == "1, 2, 3,"
    assert ChatLlamaStream(base_url=engine.url, temperature=0, stop=[" 3"]).invoke("Count to ten.").text == "1, 2,"


def test_leaving_a_stream_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    chunks = ChatLlamaStream(base_url=engine.url, temperature=0).stream(LONG.question, ignore_eos=True)
    next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    slots_free()


async def test_cancelling_the_task_frees_the_slot(engine: Engine, slots_free: Callable[[], float]) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in ChatLlamaStream(base_url=engine.url).astream(LONG.question, ignore_eos=True):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await asyncio.to_thread(slots_free)


def test_reasoning_is_kept_apart_and_is_a_content_block() -> None:
    with NumberedServer(tokens=2, reasoning_tokens=2) as server:
        model = ChatLlamaStream(base_url=server.url)
        for message in (model.invoke("count"), joined(list(model.stream("count")))):
            assert message.text == "0 1 "
            assert message.additional_kwargs["reasoning_content"] == "r0 r1 "
            assert [block["type"] for block in message.content_blocks] == ["reasoning", "text"]


# -- tools --------------------------------------------------------------------------------------------------


def test_a_tool_that_is_named_is_the_one_that_is_called(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0, max_tokens=200)
    for choice in ("get_time", {"type": "function", "function": {"name": "get_time"}}):
        called = model.bind_tools(TOOLS, tool_choice=choice).invoke("What is the weather in Paris?")
        assert [call["name"] for call in called.tool_calls] == ["get_time"]
        assert list(called.tool_calls[0]["args"]) == ["city"]


def test_a_tool_choice_that_names_no_tool_is_refused() -> None:
    with pytest.raises(ValueError, match="tool_choice='nonsense' names no tool; allowed: .* get_weather, get_time"):
        ChatLlamaStream(base_url="http://127.0.0.1:1").bind_tools(TOOLS, tool_choice="nonsense")


def test_a_tool_choice_of_no_known_form_is_refused() -> None:
    wrong: Any = 5
    with pytest.raises(ValueError, match="tool_choice=5 is not allowed; allowed: auto, none, any, required, a bool"):
        ChatLlamaStream(base_url="http://127.0.0.1:1").bind_tools(TOOLS, tool_choice=wrong)


def test_a_streamed_tool_call_is_the_same_as_an_invoked_one(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0).bind_tools(TOOLS)
    question = "What is the weather in Paris?"
    invoked, streamed = model.invoke(question), joined(list(model.stream(question)))
    calls = [[(call["name"], call["args"]) for call in message.tool_calls] for message in (invoked, streamed)]
    assert calls == [[("get_weather", {"city": "Paris"})]] * 2
    assert streamed.response_metadata["finish_reason"] == "tool_calls"


def test_parallel_calls_and_malformed_ones_are_told_apart() -> None:
    script = answer(
        piece(name="get_weather", arguments='{"city": "Zü'),
        piece(arguments='rich"}'),
        piece(name="get_time", arguments='{"city": none at all', index=1),
        finish_reason="tool_calls",
    )
    with ServerDouble(script) as server:
        model = ChatLlamaStream(base_url=server.url).bind_tools(TOOLS, parallel_tool_calls=True)
        message = model.invoke("?")
        assert [(c["id"], c["args"]) for c in message.tool_calls] == [("call0", {"city": "Zürich"})]
        assert [(c["id"], c["args"]) for c in message.invalid_tool_calls] == [("call1", '{"city": none at all')]
        streamed = joined(list(model.stream("?")))
        assert [(c["id"], c["args"]) for c in streamed.tool_calls] == [("call0", {"city": "Zürich"})]
        ((identity, arguments),) = [(c["id"], c["args"]) for c in streamed.invalid_tool_calls]
        assert identity == "call1"
        assert arguments is not None
        assert arguments.startswith('{"city": none at all')
        assert "malformed" in arguments
        assert b'"parallel_tool_calls":true' in server.requests[0]


@pytest.mark.parametrize(
    "arguments",
    [
        '{"path": "/home',
        "{",
        '{"',
        '{"a": [1, 2',
        '{"a": "b\\',
        '{"a": {"b": [{"c": "',
        "nonsense",
        "[1, 2]",
        "null",
        "{}}",
    ],
)
@pytest.mark.parametrize("name", ["look", None])
def test_what_was_cut_is_never_completed_into_a_call_that_an_agent_would_carry_out(
    arguments: str, name: str | None
) -> None:
    with ServerDouble(answer(piece(name=name, arguments=arguments), finish_reason="length")) as server:
        model = ChatLlamaStream(base_url=server.url).bind_tools(TOOLS)
        messages = [model.invoke("?"), joined(list(model.stream("?"))), model.invoke("?", stream=True)]
    for message in messages:
        assert message.tool_calls == []
        assert len(message.invalid_tool_calls) == 1
        assert str(message.invalid_tool_calls[0]["args"]).startswith(arguments)
    assert messages[0].invalid_tool_calls[0]["error"]


def test_output_that_the_server_cannot_read_is_an_error_of_both_worlds() -> None:
    unreadable = "The model produced output that does not match the expected peg-native format"
    with ServerDouble(answer({"content": "Let me see."}, error=unreadable)) as server:
        model = ChatLlamaStream(base_url=server.url).bind_tools(TOOLS)
        for call in (lambda: model.invoke("?"), lambda: list(model.stream("?"))):
            with pytest.raises(MalformedOutputError, match="does not match") as caught:
                call()
            assert isinstance(caught.value, ModelAPIError)
            assert caught.value.partial is not None
            assert caught.value.partial.text == "Let me see."
        assert len(server.requests) == 2


def test_a_call_that_max_tokens_cut_is_invalid_in_both_ways(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0, max_tokens=22).bind_tools(TOOLS, tool_choice="any")
    question = "What is the weather in Paris?"
    for message in (model.invoke(question), joined(list(model.stream(question)))):
        assert (message.response_metadata["finish_reason"], message.tool_calls) == ("length", [])
        assert len(message.invalid_tool_calls) == 1


def test_a_round_with_a_tool_ends_in_an_answer(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0).bind_tools(TOOLS)
    question = HumanMessage("What is the weather in Paris?")
    asked = model.invoke([question])
    told = ToolMessage("18 degrees", tool_call_id=asked.tool_calls[0]["id"])
    assert model.invoke([question, asked, told]).text


def test_a_conversation_is_written_as_the_server_wants_it() -> None:
    messages = [
        SystemMessage("Be brief."),
        HumanMessage([{"type": "text", "text": "What"}, {"type": "text", "text": "is it?"}]),
        AIMessage(
            [{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "Let me see."}],
            tool_calls=[tool_call(name="look", args={"where": "Zürich"}, id="1")],
            invalid_tool_calls=[invalid_tool_call(name="look", args='{"whe', id="2", error="not JSON")],
        ),
        ToolMessage("nothing", tool_call_id="1", name="look"),
        AIMessage("Nothing.", additional_kwargs={"reasoning_content": "so"}),
    ]
    written = to_server(messages)
    assert [message["role"] for message in written] == ["system", "user", "assistant", "tool", "assistant"]
    assert written[1]["content"] == "What\nis it?"
    assert written[2]["content"] == "Let me see."
    assert written[2]["reasoning_content"] == "hm"
    arguments = [call["function"]["arguments"] for call in written[2]["tool_calls"]]
    assert [json.loads(text) for text in arguments] == [{"where": "Zürich"}, '{"whe']
    assert written[3] == {"role": "tool", "name": "look", "tool_call_id": "1", "content": "nothing"}
    assert written[4]["reasoning_content"] == "so"


def test_json_mode_asks_for_an_object_and_the_schema_is_checked_here(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0, max_tokens=200)
    schema = {"title": "Pet", "type": "object", "properties": {"name": {"type": "string"}}}
    found = model.with_structured_output(schema, method="json_mode", include_raw=True).invoke("Give me a JSON object.")
    assert isinstance(found["parsed"], dict)
    assert found["parsing_error"] is None
    assert json.loads(found["raw"].text) == found["parsed"]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_an_object_that_max_tokens_cut_off_is_an_error(engine: Engine, method: Any) -> None:
    model = ChatLlamaStream(base_url=engine.url, temperature=0, max_tokens=4)
    schema = {
        "title": "Pet",
        "description": "A pet",
        "type": "object",
        "properties": {"name": {"type": "string"}, "colour": {"type": "string"}},
        "required": ["name", "colour"],
    }
    question = "Describe a pet as JSON."
    plain = model.with_structured_output(schema, method=method)
    for call in (
        lambda: plain.invoke(question),
        lambda: list(plain.stream(question)),
        lambda: asyncio.run(plain.ainvoke(question)),
    ):
        with pytest.raises(OutputParserException, match="cut off after 4 tokens because of max_tokens"):
            call()
    found = model.with_structured_output(schema, method=method, include_raw=True).invoke(question)
    assert found["raw"].response_metadata["finish_reason"] == "length"
    assert found["parsed"] is None
    assert "cut off after 4 tokens" in str(found["parsing_error"])


# -- what is passed on --------------------------------------------------------------------------------------


def test_arguments_that_are_not_ours_go_into_the_request() -> None:
    with ServerDouble(Script(sse_answer(["ok"]))) as server:
        extra: dict[str, Any] = {"top_k": 20, "seed": 1}
        model = ChatLlamaStream(base_url=server.url, extra_body={"min_p": 0.1}, **extra)
        model.invoke("hi", seed=2)
        body = json.loads(server.requests[0].partition(b"\r\n\r\n")[2])
    assert (body["top_k"], body["seed"], body["min_p"]) == (20, 2, 0.1)


def test_a_dead_server_is_left_for_the_next(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=[f"http://127.0.0.1:{free_port()}", engine.url], temperature=0)
    assert model.invoke(STORY.question).text == STORY.answer


def test_a_break_in_the_middle_is_mended_unless_recovery_is_off(engine: Engine) -> None:
    with ChaosProxy(engine.url, Reset(after_events=5)) as proxy:
        whole = joined(list(ChatLlamaStream(base_url=proxy.url, temperature=0).stream(STORY.question)))
    assert whole.text == STORY.answer
    assert whole.response_metadata["stats"]["recoveries"] == 1
    with ChaosProxy(engine.url, Reset(after_events=5)) as proxy, pytest.raises(ModelConnectionError) as caught:
        list(ChatLlamaStream(base_url=proxy.url, recovery="off").stream(STORY.question))
    assert caught.value.partial.text  # type: ignore[attr-defined]


def test_a_timeout_stands_for_each_step() -> None:
    for timeout in (0.1, Timeouts(first_byte=0.1)):
        with ServerDouble(Script(stall=True)) as server, pytest.raises(TimeoutError):
            ChatLlamaStream(base_url=server.url, timeout=timeout, max_retries=0).invoke("hi")


def test_max_retries_leaves_the_patience_of_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMASTREAM_LOADING_PATIENCE", "0.01")
    loading = Script(http_answer("503 Service Unavailable", b'{"error":{"message":"Loading model"}}'), repeat=True)
    with ServerDouble(loading) as server, pytest.raises(ModelLoadingError):
        ChatLlamaStream(base_url=server.url, max_retries=0).invoke("hi")


def test_the_settings_of_a_project_make_a_model(engine: Engine) -> None:
    settings = SimpleNamespace(llm_base_url=engine.url, llm_model="demo", llm_temperature=0.0, llm_max_tokens=5)
    model = ChatLlamaStream.from_settings(settings, max_tokens=3)
    assert (model.model, model.temperature, model.max_tokens) == ("demo", 0.0, 3)
    assert model.invoke("hi").response_metadata["finish_reason"] == "length"


def test_a_wrong_setting_is_named_when_the_model_is_made() -> None:
    with pytest.raises(ValueError, match="base_url 'ftp://x' from the argument has the scheme 'ftp'") as caught:
        ChatLlamaStream(base_url="ftp://x", api_key=SecretStr("hidden-key"))
    assert "hidden" not in str(caught.value)


def test_keys_are_not_shown() -> None:
    model = ChatLlamaStream(
        base_url="http://127.0.0.1:1", api_key=SecretStr("hidden-key"), headers={"X": "hidden-header"}
    )
    assert "hidden" not in repr(model) + str(model.model_dump()) + str(model._identifying_params)


# -- changes and copies -------------------------------------------------------------------------------------


def test_a_changed_attribute_holds_from_the_next_call_on(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=f"http://127.0.0.1:{free_port()}", temperature=0, max_tokens=3, max_retries=0)
    model.base_url = engine.url
    assert tokens(model) == 3
    model.max_tokens = 5
    assert tokens(model) == 5
    changed = model.model_copy(update={"max_tokens": 7})
    assert (tokens(changed), tokens(model)) == (7, 5)
    assert asyncio.run(changed.ainvoke(LONG.question)).usage_metadata["output_tokens"] == 7  # type: ignore[index]  # told
    model.base_url = "ftp://x"
    with pytest.raises(SettingError, match="base_url 'ftp://x'"):
        model.invoke("hi")


def tokens(model: ChatLlamaStream) -> int:
    usage = model.invoke(LONG.question).usage_metadata
    assert usage is not None
    return usage["output_tokens"]


def test_what_is_not_changed_keeps_its_clients(engine: Engine) -> None:
    model = ChatLlamaStream(base_url=engine.url, max_tokens=1)
    client = model._client
    model.invoke("hi")
    assert model._client is client
    assert model.model_copy()._client is client


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_model_can_be_copied_and_pickled(engine: Engine, copied: Callable[[Any], Any]) -> None:
    model = ChatLlamaStream(
        base_url=engine.url, api_key=SecretStr("hidden-key"), temperature=0, timeout=Timeouts(total=60), max_tokens=3
    )
    assert tokens(model) == 3  # its connections are open
    other = copied(model)
    assert other.model_dump() == model.model_dump()
    assert tokens(other) == 3
    assert other._client is not model._client
    assert other.api_key.get_secret_value() == "hidden-key"
    assert "hidden" not in repr(other)


# -- errors and counts --------------------------------------------------------------------------------------


def test_an_error_is_ours_and_langchains_at_once(engine: Engine) -> None:
    too_long = "What is a token? " * 3000
    with pytest.raises(ContextOverflowError) as overflow:
        ChatLlamaStream(base_url=engine.url).invoke(too_long)
    assert isinstance(overflow.value, ContextSizeError)
    assert not vars(type(overflow.value))["is_retryable"]
    with pytest.raises(ModelConnectionError) as refused:
        list(ChatLlamaStream(base_url=f"http://127.0.0.1:{free_port()}", max_retries=0).stream("hi"))
    assert isinstance(refused.value, ConnectError)
    assert vars(type(refused.value))["is_retryable"]
    with pytest.raises(ModelInvalidRequestError) as invalid:
        ChatLlamaStream(base_url=engine.url).invoke("hi", max_tokens=0)
    assert isinstance(invalid.value, InvalidRequestError)


def test_tokens_are_counted_by_the_server(engine: Engine, client: StreamingClient) -> None:
    model = ChatLlamaStream(base_url=engine.url, max_tokens=1)
    assert model.get_num_tokens("Hello there") == len(client.tokenize("Hello there"))
    messages = [SystemMessage("Be brief."), HumanMessage("Hello there")]
    usage = model.invoke(messages).usage_metadata
    assert usage is not None
    assert model.get_num_tokens_from_messages(messages) == usage["input_tokens"]
