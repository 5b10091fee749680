"""Whole answers where a server cannot stream, over real sockets."""

from __future__ import annotations

from typing import Any

import pytest

from drivers import Driver
from llamastream.address import parse_address
from llamastream.client import StreamingClient
from llamastream.client.servers import Servers
from llamastream.client.whole import REMEMBERED, WholeOnly
from llamastream.errors import (
    LlamaStreamError,
    UnexpectedResponseError,
)
from llamastream.protocol.requests import chat_request
from llamastream.testing import Script, ServerDouble, http_answer
from scripts import MESSAGES, each_driver, failing

# -- the non-streaming fallback -------------------------------------------------------------------------------


WHOLE = http_answer(
    "200 OK",
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"all at once","reasoning_content":"hm"},'
    b'"finish_reason":"stop"}],"id":"x","usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}',
)
UNSUPPORTED = failing("501 Not Implemented", b'{"error":{"message":"streaming is not supported with this template"}}')


@each_driver
def test_a_server_that_answers_with_json_gives_the_answer_as_one_piece(driver: Driver) -> None:
    with ServerDouble(Script(WHOLE)) as server:
        result = driver.result(server.url, MESSAGES)
        assert (result.text, result.reasoning, result.finish_reason) == ("all at once", "hm", "stop")
        assert result.stats.streamed is False
        assert result.usage is not None
        assert result.usage.completion_tokens == 3
        assert driver.texts(server.url, MESSAGES) == ["all at once"]


@each_driver
def test_where_streaming_is_not_supported_the_same_call_asks_again_without(driver: Driver) -> None:
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server:
        result = driver.result(server.url, MESSAGES)
        assert (result.text, result.stats.streamed) == ("all at once", False)
        assert b'"stream":true' in server.requests[0]
        assert b'"stream":false' in server.requests[1]


def test_a_client_remembers_which_server_cannot_stream() -> None:
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server, StreamingClient(server.url) as client:
        for _ in range(3):
            assert client.chat(MESSAGES).text == "all at once"
        client.chat(MESSAGES, model="other")
        asked = [b'"stream":true' in request for request in server.requests]
        assert asked == [True, False, False, False, True], "once; another model may have another template"
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server, StreamingClient(server.url) as client:
        client.chat(MESSAGES)
        with pytest.raises(LlamaStreamError):
            StreamingClient(server.url, fallback="never").chat(MESSAGES)
        assert b'"stream":true' in server.requests[-1]


def test_what_is_remembered_ends_after_a_time_and_holds_for_one_kind_of_request() -> None:
    first, other = Servers([parse_address("http://a"), parse_address("http://b")], None).all
    chat, tools = chat_request(MESSAGES), chat_request(MESSAGES, extra={"tools": [{"type": "function"}]})
    memory = WholeOnly()
    assert not memory.applies(first, tools, 0.0)
    memory.refused(first, tools, 0.0)
    assert memory.applies(first, tools, REMEMBERED - 1)
    assert not memory.applies(first, tools, REMEMBERED)
    assert not memory.applies(first, chat, 1.0)
    assert not memory.applies(other, tools, 1.0)
    for number in range(1000):
        memory.refused(first, chat_request(MESSAGES, model=str(number)), 0.0)
    assert len(memory._until) <= 256


@each_driver
def test_the_fallback_can_be_forced_and_forbidden(driver: Driver) -> None:
    with ServerDouble(Script(WHOLE)) as server:
        assert driver.result(server.url, MESSAGES, {"fallback": "always"}).text == "all at once"
        assert b'"stream":false' in server.requests[0]
        with pytest.raises(UnexpectedResponseError, match="application/json"):
            driver.result(server.url, MESSAGES, {"fallback": "never"})
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server, pytest.raises(LlamaStreamError, match="not supported"):
        driver.result(server.url, MESSAGES, {"fallback": "never"})


@each_driver
def test_the_fallback_works_on_the_real_server(driver: Driver, engine: Any) -> None:
    options = {"fallback": "always", "temperature": 0.0}
    whole = driver.result(engine.url, MESSAGES, options, max_tokens=20)
    streamed = driver.result(engine.url, MESSAGES, {"temperature": 0.0}, max_tokens=20)
    assert (whole.text, whole.finish_reason) == (streamed.text, streamed.finish_reason)
    assert (whole.stats.streamed, streamed.stats.streamed) == (False, True)
    assert whole.stats.completion_tokens == streamed.stats.completion_tokens


@each_driver
def test_a_json_body_that_is_no_answer(driver: Driver) -> None:
    with ServerDouble(failing("200 OK", b'{"hello":"world"}')) as server:
        with pytest.raises(UnexpectedResponseError, match='instead of an answer: \'{"hello":"world"}\''):
            driver.result(server.url, MESSAGES)
        assert len(server.requests) == 1
