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
    ],
)
def test_messages_that_cannot_be_right(messages: Any, says: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        chat_request(messages)
    assert says in str(caught.value)


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
