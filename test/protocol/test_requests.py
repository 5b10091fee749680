"""Requests: what is written, and what is refused before anything is sent."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest

from llamastream.errors import InvalidRequestError
from llamastream.protocol.requests import chat_request, completion_request

MESSAGES = [{"role": "user", "content": "hi"}]


def test_the_body_has_what_was_given_and_nothing_else() -> None:
    request = chat_request(MESSAGES, temperature=0, max_tokens=5, extra={"seed": 1, "n": 2})
    assert msgspec.json.decode(request.encoded()) == {
        "messages": MESSAGES, "temperature": 0, "max_tokens": 5, "seed": 1, "n": 2,
        "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    assert (request.path, request.choices) == ("/v1/chat/completions", 2)


def test_a_callers_own_stream_options_win() -> None:
    request = chat_request(MESSAGES, extra={"stream_options": {"include_usage": False}, "temperature": 1.5})
    assert request.body["stream_options"] == {"include_usage": False}
    assert request.body["temperature"] == 1.5


@pytest.mark.parametrize("prompt", ["text", [1, 2, 3], (1, 2)])
def test_prompts_are_text_or_token_ids(prompt: Any) -> None:
    assert completion_request(prompt).body["prompt"] in ("text", [1, 2, 3], [1, 2])


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ("hello", "messages must be a list"),
        ({"role": "user"}, "messages must be a list"),
        (None, "messages must be a list"),
        ([], "empty"),
        (["hello"], "messages[0] must be a dict"),
        ([{"content": "x"}], "no 'role'"),
        ([*MESSAGES, {"role": "user", "content": 5}], "messages[1]['content']"),
        (iter(MESSAGES), "messages must be a list"),
        ([{"role": "user"}], "messages[0]['content'] is missing, but a message of role 'user' needs a str or a list"),
        ([{"role": "system", "content": None}, *MESSAGES], "messages[0]['content'] is None, but a message of role"),
        ([{"role": "developer"}, *MESSAGES], "role 'developer' needs"),
        ([*MESSAGES, {"role": "tool", "tool_call_id": "1"}], "messages[1]['content'] is missing"),
        ([{"role": "critic"}], 'give its text, or "" if it is meant to be empty'),
        ([*MESSAGES, {"role": "assistant"}], "messages[1] of role 'assistant' has neither 'content' nor 'tool_calls'"),
    ],
)
def test_messages_that_cannot_be_right(messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat_request(messages)
    assert says in str(caught.value)


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        {"role": "developer", "content": "Be brief."},
        {"role": "critic", "content": None},
        {"role": "assistant", "content": None},
        {"role": "assistant", "tool_calls": [CALL]},
        {"role": "assistant", "reasoning_content": "let me think"},
        {"role": "tool", "content": "", "tool_call_id": "1"},
    ],
)
def test_messages_that_a_server_may_take_are_let_through(message: dict[str, Any]) -> None:
    assert chat_request([*MESSAGES, message]).body["messages"] == [*MESSAGES, message]


@pytest.mark.parametrize(
    "extra",
    [
        {"tools": None, "tool_choice": None, "stop": None, "response_format": None},
        {"tools": [], "stop": []},
        {"tools": [TOOL], "tool_choice": "required"},
        {"tools": (TOOL,), "tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"stop": "\n"},
        {"stop": ["a", "b"], "response_format": {"type": "json_object"}},
    ],
)
def test_tools_stops_and_formats_are_let_through(extra: dict[str, Any]) -> None:
    assert chat_request(MESSAGES, extra=extra).body.items() >= extra.items()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"temperature": math.nan}, "temperature must be a number from 0 upwards, not nan"),
        ({"temperature": math.inf}, "not inf"),
        ({"temperature": -0.1}, "not -0.1"),
        ({"temperature": "hot"}, "temperature must be a number"),
        ({"temperature": True}, "temperature must be a number"),
        ({"max_tokens": -5}, "max_tokens must be a whole number from 1 upwards, not -5; leave it out for no limit"),
        ({"max_tokens": 0}, "not 0"),
        ({"max_tokens": 1.5}, "max_tokens must be a whole number"),
        ({"model": 7}, "model must be a str"),
        ({"extra": {"n": 0}}, "n must be a whole number from 1 to 128"),
        ({"extra": {"top_p": math.nan}}, "top_p is nan, which JSON cannot express"),
        ({"extra": {"logit_bias": [[1, math.inf]]}}, "logit_bias[0][1] is inf"),
        ({"extra": {"stream": False}}, "use chat() or complete()"),
        ({"extra": {"tools": TOOL}}, "tools must be a list of dicts, not dict"),
        ({"extra": {"tools": [TOOL, "f"]}}, "tools[1] must be a dict with 'type' and 'function', not str ('f')"),
        ({"extra": {"tool_choice": True}}, "tool_choice must be a str (auto, none or required) or a dict"),
        ({"extra": {"stop": 5}}, "stop must be a str or a list of str, not int (5)"),
        ({"extra": {"stop": ["a", None]}}, "stop[1] must be a str, not NoneType (None)"),
        ({"extra": {"response_format": "json_object"}}, 'for any JSON object: {"type": "json_object"}'),
    ],
)
def test_values_that_cannot_be_right(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat_request(MESSAGES, **arguments)
    assert says in str(caught.value)


@pytest.mark.parametrize("prompt", [None, 5, [1, "x"], [True], {"a": 1}])
def test_prompts_that_cannot_be_right(prompt: Any) -> None:
    with pytest.raises(InvalidRequestError, match="prompt must be a str or a list of token ids"):
        completion_request(prompt)


@pytest.mark.parametrize("value", [object(), {1, 2, object()}, "\ud800"])
def test_what_json_cannot_express_is_refused(value: Any) -> None:
    with pytest.raises(InvalidRequestError, match="cannot be written as JSON"):
        chat_request(MESSAGES, extra={"x": value}).encoded()
