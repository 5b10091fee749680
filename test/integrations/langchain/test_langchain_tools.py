"""`ChatLlamaStream`: tools, their calls, and objects by a schema."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("langchain_core", reason="runs in `make test-all`, in an environment with LangChain")

from langchain_core.exceptions import ModelAPIError, OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.messages.tool import invalid_tool_call, tool_call
from toolanswers import answer, piece

from chaining import joined
from llamastream import Engine
from llamastream.errors import MalformedOutputError
from llamastream.integrations.langchain import ChatLlamaStream
from llamastream.integrations.langchain.messages import to_server
from llamastream.testing import ServerDouble

TOOLS = [
    {
        "name": name,
        "description": f"The {name} of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    }
    for name in ("get_weather", "get_time")
]


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
