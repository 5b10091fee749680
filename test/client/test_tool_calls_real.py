"""Tool calls on the real server: what it streams, what it cuts, and what it cannot."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from toolanswers import WEATHER

from drivers import Driver
from faults import each_driver
from llamastream.client import StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.engine.launch import Launch
from llamastream.errors import BadRequestError, MalformedOutputError, ToolsUnsupportedError
from llamastream.events import Hint
from llamastream.tools import ToolSupport
from llamastream.types import ToolCall, ToolCallDelta
from polling import wait_for

QUESTION: list[dict[str, Any]] = [{"role": "user", "content": "What is the weather in Paris?"}]
CALL: dict[str, Any] = {"tools": [WEATHER], "temperature": 0.0, "max_tokens": 100}
PARIS = '{"city": "Paris"}'


def begun(text: str) -> dict[str, Any]:
    """A request whose answer has begun with this text: so even a good model has written it."""
    messages = [*QUESTION, {"role": "assistant", "content": text}]
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


# -- what is streamed -----------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize(
    "choice", [{}, {"tool_choice": "required"}, {"tool_choice": "required", "parallel_tool_calls": True}], ids=str
)
def test_a_call_is_streamed_name_first_then_its_arguments_in_pieces(
    driver: Driver, engine: Engine, choice: dict[str, Any]
) -> None:
    events = driver.events(engine.url, QUESTION, **CALL, **choice)
    pieces = [event for event in events if isinstance(event, ToolCallDelta)]
    assert pieces[0].name == "get_weather"
    assert len([piece for piece in pieces if piece.arguments]) > 3
    assert "".join(piece.arguments for piece in pieces) == PARIS


@each_driver
def test_log_probabilities_of_a_call_come_as_one_piece_without_the_caller_noticing(
    driver: Driver, engine: Engine
) -> None:
    result = driver.result(engine.url, QUESTION, **CALL, logprobs=True)
    assert [call.arguments for call in result.tool_calls] == [PARIS]
    assert result.choices[0].logprobs
    assert result.stats.streamed is False


# -- what is cut ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokens_of_a_call(engine: Engine) -> int:
    result = StreamingClient(engine.url).chat(QUESTION, **CALL)
    assert result.usage is not None
    return result.usage.completion_tokens


def test_wherever_the_limit_cuts_a_call_the_answer_is_never_empty(engine: Engine, tokens_of_a_call: int) -> None:
    seen = []
    with StreamingClient(engine.url) as client:
        for limit in range(1, tokens_of_a_call + 1):
            stream = client.stream_chat(QUESTION, **{**CALL, "max_tokens": limit})
            try:
                result = stream.result()
            except MalformedOutputError as error:
                seen.append(f"{error.partial and error.partial.finish_reason}: {error.message[-30:]}")
                continue
            (call,) = result.tool_calls
            assert PARIS.startswith(call.arguments)
            assert (call.malformed is None) == (call.arguments == PARIS)
            seen.append(f"{result.finish_reason} {'malformed' if call.malformed else 'whole'}")
    assert list(dict.fromkeys(seen)) == [
        "length: allow more tokens (max_tokens)", "length malformed", "length whole", "tool_calls whole",
    ]  # fmt: skip


@each_driver
def test_a_stop_word_within_the_arguments_leaves_a_malformed_call(driver: Driver, engine: Engine) -> None:
    result = driver.result(engine.url, QUESTION, **CALL, stop=["city"])
    (call,) = result.tool_calls
    assert result.finish_reason == "tool_calls"
    assert call.arguments == '{"'
    assert call.malformed


@each_driver
def test_prewarming_with_tools_is_well_though_its_one_token_begins_a_call(driver: Driver, engine: Engine) -> None:
    stats = driver.call(engine.url, "prewarm", QUESTION, tools=[WEATHER])
    assert stats.completion_tokens == 1


# -- what cannot be read --------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize(
    "text",
    [
        '<tool_call>\n{"name": "nonsense", "argu',
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": Paris}}\n</tool_call>',
        '<tool_call>\n{"name": "get_weather", "arguments": {}}\n</tool_call>\nand <tool_call> again',
    ],
)
@pytest.mark.parametrize("fallback", ["auto", "always"])
def test_a_call_that_the_server_cannot_read_is_one_error(
    driver: Driver, engine: Engine, text: str, fallback: str
) -> None:
    request = begun(text)
    with pytest.raises(MalformedOutputError, match="does not match the expected") as caught:
        driver.result(engine.url, request.pop("messages"), {"fallback": fallback}, **CALL, **request)
    assert caught.value.partial is not None
    assert caught.value.partial.stats.failed_attempts == ()
    assert caught.value.status == 500


def test_what_the_model_wrote_is_in_the_log_of_the_engine(engine: Engine) -> None:
    request = begun('<tool_call>\n{"name": "nonsense", "argu')
    with pytest.raises(MalformedOutputError):
        StreamingClient(engine.url).chat(request.pop("messages"), **CALL, **request)
    wait_for(lambda: any("unparsed" in record.message for record in engine.logs))
    assert any('{"name": "nonsense"' in record.message for record in engine.logs)


def test_a_conversation_with_a_malformed_call_goes_on(engine: Engine) -> None:
    with StreamingClient(engine.url) as client:
        broken = client.chat(QUESTION, **CALL, stop=["city"])
        call: ToolCall = broken.tool_calls[0]
        told = {"role": "tool", "tool_call_id": call.id, "content": f"error: {call.malformed}"}
        raw = {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        with pytest.raises(BadRequestError, match=r"Result.to_message"):
            client.chat([*QUESTION, {"role": "assistant", "content": "", "tool_calls": [raw]}, told], **CALL)
        assert client.chat([*QUESTION, broken.to_message(), told], **CALL).text


# -- servers that cannot --------------------------------------------------------------------------------------


def another(engine: Engine, *arguments: str) -> Launch:
    """One more server of the same kind, with these arguments."""
    kind: Any = engine.kind
    return launch(EngineOptions(kind=kind, threads=1, parallel=1, extra_args=arguments))


@pytest.fixture(scope="module")
def no_jinja(engine: Engine) -> Iterator[Engine]:
    with another(engine, "--no-jinja") as running:
        yield running


@pytest.fixture(scope="module")
def no_tools(engine: Engine) -> Iterator[Engine]:
    """A server with a template that does not know tools."""
    with another(engine, "--chat-template", "chatml") as running:
        yield running


@each_driver
def test_a_server_that_can_says_so(driver: Driver, engine: Engine) -> None:
    assert engine.capabilities.tools == ToolSupport(accepted=True, rendered=True, streamed=True, parallel=True)
    assert driver.call(engine.url, "tool_support") == engine.capabilities.tools


@each_driver
def test_a_server_without_jinja_says_so_and_refuses(driver: Driver, no_jinja: Engine) -> None:
    support = driver.call(no_jinja.url, "tool_support")
    assert support == no_jinja.capabilities.tools
    assert (support.accepted, support.streamed) == (False, False)
    assert support.reason == "tools param requires --jinja flag"
    assert no_jinja.capabilities.chat_template_caps["supports_tools"], "which is why /props is not enough"
    with pytest.raises(ToolsUnsupportedError, match="start the server with --jinja"):
        driver.result(no_jinja.url, QUESTION, **CALL)
    assert driver.result(no_jinja.url, QUESTION, max_tokens=5).text


@each_driver
def test_a_template_without_tools_says_so_and_the_answer_is_text(driver: Driver, no_tools: Engine) -> None:
    support = driver.call(no_tools.url, "tool_support")
    assert support == no_tools.capabilities.tools
    assert (support.accepted, support.rendered, support.parallel) == (True, False, False)
    heard: list[Any] = []
    result = driver.result(no_tools.url, QUESTION, {"listeners": [heard.append]}, **CALL, tool_choice="required")
    assert (result.tool_calls, result.finish_reason) == ((), "stop")
    assert result.text
    assert [event.topic for event in heard if isinstance(event, Hint)] == ["tools_ignored"]
