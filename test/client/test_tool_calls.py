"""Tool calls that a server cannot stream, or that a model wrote badly: from a server double, byte for byte."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from toolanswers import WEATHER, answer, piece

from drivers import Driver
from faults import MESSAGES, each_driver
from llamastream.client import StreamingClient
from llamastream.errors import BadRequestError, LlamaStreamError, MalformedOutputError, ToolsUnsupportedError
from llamastream.events import ClientEvent, Hint
from llamastream.testing import Script, ServerDouble, http_answer
from llamastream.types import Result, TextDelta, ToolCallDelta

UNREADABLE = "The model produced output that does not match the expected peg-native format"
GOOD = answer(piece(name="get_weather", arguments='{"city": '), piece(arguments='"Paris"}'), finish_reason="tool_calls")


def refusal(message: str, status: str = "500 Internal Server Error") -> Script:
    body = {"error": {"code": int(status[:3]), "message": message, "type": "server_error"}}
    return Script(http_answer(status, msgspec.json.encode(body)))


def whole(message: dict[str, Any], finish_reason: str) -> Script:
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish_reason}
    return Script(http_answer("200 OK", msgspec.json.encode({"id": "x", "choices": [choice]})))


CALLED = whole(
    {
        "content": None,
        "tool_calls": [{"id": "1", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}],
    },
    "tool_calls",
)
NO_STREAM = refusal("Cannot use tools with stream")
NO_JINJA = refusal("tools param requires --jinja flag")


def failed(driver: Driver, server: ServerDouble, **body: Any) -> LlamaStreamError:
    """The error that a request with tools ends in, at once: nothing is sent again."""
    with pytest.raises(LlamaStreamError) as caught:
        driver.result(server.url, MESSAGES, tools=[WEATHER], **body)
    assert len(server.requests) == 1
    return caught.value


# -- servers that cannot --------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize(
    "said",
    [
        NO_STREAM,  # llama.cpp from January to May 2025
        refusal("Cannot use tools with stream", "400 Bad Request"),
        refusal("logprobs is not supported with tools + stream", "400 Bad Request"),  # to this day
    ],
)
def test_where_tools_cannot_be_streamed_the_call_comes_as_one_piece(driver: Driver, said: Script) -> None:
    with ServerDouble(said, CALLED) as server:
        result = driver.result(server.url, MESSAGES, tools=[WEATHER])
        asked = [msgspec.json.decode(request.partition(b"\r\n\r\n")[2]) for request in server.requests]
    (call,) = result.tool_calls
    assert (call.name, call.parsed_arguments(), result.finish_reason) == (
        "get_weather",
        {"city": "Paris"},
        "tool_calls",
    )
    assert result.stats.streamed is False
    assert [(body["stream"], body["tools"]) for body in asked] == [(True, [WEATHER]), (False, [WEATHER])]


def streams(server: ServerDouble) -> list[bool]:
    return [b'"stream":true' in request for request in server.requests]


def test_that_is_remembered_for_requests_with_tools_alone() -> None:
    text = whole({"content": "hi"}, "stop")
    with ServerDouble(NO_STREAM, CALLED, CALLED, text) as server, StreamingClient(server.url) as client:
        client.chat(MESSAGES, tools=[WEATHER])
        client.chat(MESSAGES, tools=[WEATHER])
        client.chat(MESSAGES)
        assert streams(server) == [True, False, False, True]


def test_log_probabilities_with_tools_do_not_keep_other_tool_calls_from_streaming() -> None:
    said = refusal("logprobs is not supported with tools + stream", "400 Bad Request")
    with ServerDouble(said, CALLED, GOOD) as server, StreamingClient(server.url) as client:
        assert client.chat(MESSAGES, tools=[WEATHER], logprobs=True).stats.streamed is False
        assert client.chat(MESSAGES, tools=[WEATHER]).stats.streamed is True
        assert streams(server) == [True, False, True]


@each_driver
@pytest.mark.parametrize("script", [NO_JINJA, refusal("tool_choice param requires --jinja flag")])
def test_a_server_without_jinja_says_what_to_do_at_once(driver: Driver, script: Script) -> None:
    with ServerDouble(script) as server:
        error = failed(driver, server)
    assert isinstance(error, ToolsUnsupportedError)
    assert "start the server with --jinja" in error.message


def test_an_old_server_without_jinja_too_after_the_fallback() -> None:
    with ServerDouble(NO_STREAM, NO_JINJA) as server, StreamingClient(server.url) as client:
        with pytest.raises(ToolsUnsupportedError):
            client.chat(MESSAGES, tools=[WEATHER])
        assert streams(server) == [True, False]


def test_of_several_servers_the_one_that_takes_tools_is_asked_and_the_other_stays_in_use() -> None:
    text = answer({"content": "hi"}, finish_reason="stop")
    with (
        ServerDouble(NO_JINJA, NO_JINJA, NO_JINJA, text) as plain,
        ServerDouble(GOOD) as able,
        StreamingClient([plain.url, able.url]) as client,
    ):
        for number in range(1, 4):
            assert client.chat(MESSAGES, tools=[WEATHER]).tool_calls
            assert (len(plain.requests), len(able.requests)) == (number, number)
        assert client.chat(MESSAGES).text == "hi"


# -- models that write what cannot be read ------------------------------------------------------------------


@each_driver
def test_output_that_the_server_cannot_read_is_an_error_and_is_not_generated_again(driver: Driver) -> None:
    with ServerDouble(answer(error=UNREADABLE)) as server:
        error = failed(driver, server)
    assert isinstance(error, MalformedOutputError)
    assert UNREADABLE in error.message
    assert error.partial == Result(
        finish_reason="error", stats=error.partial.stats if error.partial else Result().stats
    )


@each_driver
def test_the_error_has_what_came_before_and_the_stream_is_not_repeated(driver: Driver) -> None:
    script = answer({"content": "Let me see. "}, piece(name="get_weather", arguments='{"city'), error=UNREADABLE)
    with ServerDouble(script) as server:
        error = failed(driver, server)
    assert isinstance(error, MalformedOutputError)
    assert error.partial is not None
    assert error.partial.text == "Let me see. "
    assert [call.arguments for call in error.partial.tool_calls] == ['{"city']
    assert error.partial.tool_calls[0].malformed


def test_what_came_before_reaches_the_reader_before_the_error_does() -> None:
    script = answer({"content": "Let me see. "}, piece(name="get_weather", arguments="{"), error=UNREADABLE)
    with ServerDouble(script) as server, StreamingClient(server.url) as client:
        events = client.stream_chat(MESSAGES, tools=[WEATHER]).events()
        seen = [next(events) for _ in range(3)]
        with pytest.raises(MalformedOutputError):
            next(events)
    assert TextDelta("Let me see. ") in seen
    assert ToolCallDelta(0, "call0", "get_weather", "{") in seen


@each_driver
def test_nor_is_it_repeated_where_it_ends_the_repetition_of_a_broken_answer(driver: Driver) -> None:
    begun = piece(name="get_weather", arguments='{"city')
    cut = answer(begun, finish_reason="tool_calls").response
    cut = cut[: cut.index(b'"finish_reason":"tool_calls"')]
    with ServerDouble(Script(cut), answer(begun, error=UNREADABLE)) as server:
        with pytest.raises(MalformedOutputError) as caught:
            driver.result(server.url, MESSAGES, tools=[WEATHER])
        assert len(server.requests) == 2
    assert caught.value.partial is not None
    assert [call.arguments for call in caught.value.partial.tool_calls] == ['{"city']


@each_driver
def test_a_whole_answer_that_the_server_cannot_read_is_the_same_error(driver: Driver) -> None:
    with ServerDouble(refusal(UNREADABLE)) as server:
        assert isinstance(failed(driver, server), MalformedOutputError)


def test_a_models_output_is_not_held_against_its_server_nor_sent_to_the_next() -> None:
    with (
        ServerDouble(answer(error=UNREADABLE)) as first,
        ServerDouble(answer(error=UNREADABLE)) as second,
        StreamingClient([first.url, second.url]) as client,
    ):
        for number in range(1, 7):
            with pytest.raises(MalformedOutputError):
                client.chat(MESSAGES, tools=[WEATHER])
            assert (len(first.requests), len(second.requests)) == (number, 0)


@each_driver
def test_a_history_that_the_template_cannot_read_is_the_callers_mistake(driver: Driver) -> None:
    with ServerDouble(refusal("Failed to parse tool call arguments as JSON: ...")) as server:
        error = failed(driver, server)
    assert isinstance(error, BadRequestError)
    assert "Result.to_message()" in error.message


# -- answers that are none ------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("reason", ["stop", "tool_calls", "length"])
@pytest.mark.parametrize("deltas", [[], [{"content": ""}], [{"content": "\n"}]], ids=["nothing", "empty", "blank"])
def test_an_empty_answer_to_a_request_with_tools_is_an_error(
    driver: Driver, reason: str, deltas: list[dict[str, Any]]
) -> None:
    with ServerDouble(answer(*deltas, finish_reason=reason)) as server:
        error = failed(driver, server)
    assert isinstance(error, MalformedOutputError)
    assert error.partial is not None
    assert error.partial.finish_reason == reason


@each_driver
def test_so_is_one_that_came_as_one_piece(driver: Driver) -> None:
    with ServerDouble(whole({"content": ""}, "stop")) as server:
        assert isinstance(failed(driver, server), MalformedOutputError)


@each_driver
@pytest.mark.parametrize("body", [{}, {"tools": []}, {"tools": [WEATHER], "tool_choice": "none"}])
def test_without_tools_an_empty_answer_is_one(driver: Driver, body: dict[str, Any]) -> None:
    with ServerDouble(answer(finish_reason="stop")) as server:
        result = driver.result(server.url, MESSAGES, **body)
    assert (result.text, result.finish_reason) == ("", "stop")


@each_driver
def test_an_answer_that_lacks_only_its_end_mark_is_judged_alike(driver: Driver) -> None:
    empty = Script(answer(finish_reason="stop").response.replace(b"data: [DONE]\n\n", b": bye, bye!!\n\n"))
    with ServerDouble(empty) as server:
        assert isinstance(failed(driver, server), MalformedOutputError)


# -- calls that cannot be carried out -------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("reason", ["tool_calls", "length"])
def test_broken_arguments_arrive_as_they_were_written_and_are_marked(driver: Driver, reason: str) -> None:
    script = answer(piece(name="get_weather", arguments='{"city": '), piece(arguments='"Pa'), finish_reason=reason)
    heard: list[ClientEvent] = []
    with ServerDouble(script) as server:
        result = driver.result(server.url, MESSAGES, {"listeners": [heard.append]}, tools=[WEATHER])
    (call,) = result.tool_calls
    assert (call.arguments, result.finish_reason) == ('{"city": "Pa', reason)
    assert "not JSON" in (call.malformed or "")
    hints = [event for event in heard if isinstance(event, Hint)]
    assert [hint.topic for hint in hints] == ["malformed_tool_call"]
    assert ("allow more" in hints[0].message) == (reason == "length")


def test_a_tool_that_was_required_and_not_called_is_worth_a_hint() -> None:
    heard: list[ClientEvent] = []
    with ServerDouble(answer({"content": "hi"}, finish_reason="stop")) as server:
        StreamingClient(server.url, listeners=[heard.append]).chat(MESSAGES, tools=[WEATHER], tool_choice="required")
    assert [event.topic for event in heard if isinstance(event, Hint)] == ["tools_ignored"]
