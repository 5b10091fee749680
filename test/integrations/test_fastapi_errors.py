"""Streams as HTTP responses that fail: before the first byte, in the middle, and while silence is filled."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")


from commandline import STORY
from llamastream import AsyncStreamingClient, Engine, RetryPolicy, Timeouts
from llamastream.integrations.fastapi import ndjson_response, sse_response
from llamastream.testing import ChaosProxy, Reset, Script, ServerDouble, chunked, http_answer
from ports import free_port
from webwork import FORMS, KINDS, MESSAGES, asked, ndjson, served, sse

HEAD = chunked([], end=False)
IMPATIENT = RetryPolicy(max_retries=0, loading_patience=0)
LOADING = http_answer(
    "503 Service Unavailable", b'{"error":{"code":503,"message":"Loading model","type":"unavailable_error"}}'
)
WRONG = http_answer(
    "400 Bad Request", b'{"error":{"code":400,"message":"no such field at 10.0.0.7","type":"invalid_request_error"}}'
)
KEY = http_answer(
    "401 Unauthorized", b'{"error":{"code":401,"message":"Invalid API Key sk-hidden","type":"authentication_error"}}'
)


@FORMS
@pytest.mark.parametrize(
    ("answer", "status", "name", "retry_after"),
    [
        (LOADING, 503, "ModelLoadingError", "5"),
        (WRONG, 400, "BadRequestError", None),
        (KEY, 502, "AuthenticationError", None),
    ],
    ids=["loading", "bad request", "key"],
)
def test_an_error_before_the_first_byte_has_its_status(
    make: Any, read: Any, answer: bytes, status: int, name: str, retry_after: str | None
) -> None:
    with ServerDouble(Script(answer)) as server:
        client = AsyncStreamingClient(server.url, retry=IMPATIENT)
        with served(lambda: make(client.stream_chat(MESSAGES))) as port, asked(port) as response:
            assert response.status == status
            assert response.getheader("retry-after") == retry_after
            assert response.getheader("content-type") == "application/json"
            body = response.read()
    assert json.loads(body)["error"]["name"] == name
    assert b"hidden" not in body
    assert b"10.0.0.7" not in body


def test_an_error_has_the_headers_of_the_caller_but_those_of_the_body() -> None:
    own = {"X-Own": "1", "Content-Type": "text/plain", "Content-Length": "3", "Cache-Control": "max-age=60"}
    with ServerDouble(Script(WRONG)) as server:
        client = AsyncStreamingClient(server.url, retry=IMPATIENT)
        with served(lambda: sse_response(client.stream_chat(MESSAGES), headers=own)) as port, asked(port) as response:
            found = [(name.lower(), value) for name, value in response.getheaders()]
            assert response.status == 400
            assert json.loads(response.read())["error"]["name"] == "BadRequestError"
    assert ("x-own", "1") in found
    assert [value for name, value in found if name == "content-type"] == ["application/json"]
    assert [value for name, value in found if name == "cache-control"] == ["no-store"], "errors are not cached"
    assert "content-length" not in dict(found)


def test_a_server_that_cannot_be_reached_is_a_503_that_hides_its_address() -> None:
    port_of_nobody = free_port()
    client = AsyncStreamingClient(f"http://127.0.0.1:{port_of_nobody}", retry=IMPATIENT)
    with served(lambda: sse_response(client.stream_chat(MESSAGES))) as port, asked(port) as response:
        assert response.status == 503
        assert response.getheader("retry-after") == "5"
        assert str(port_of_nobody).encode() not in response.read()


def test_a_prefill_that_takes_too_long_is_a_504() -> None:
    with ServerDouble(Script(HEAD, stall=True)) as server:
        client = AsyncStreamingClient(server.url, retry=IMPATIENT, timeouts=Timeouts(prefill=0.2))
        with served(lambda: sse_response(client.stream_chat(MESSAGES))) as port, asked(port) as response:
            assert response.status == 504
            assert json.loads(response.read())["error"]["name"] == "PrefillTimeoutError"


@FORMS
@KINDS
def test_an_error_in_the_middle_is_the_last_event(engine: Engine, make: Any, read: Any, kind: Any) -> None:
    with ChaosProxy(engine.url, Reset(after_events=6)) as proxy:
        client = kind(proxy.url, recovery="off")
        with served(lambda: make(client.stream_chat(MESSAGES))) as port, asked(port) as response:
            assert response.status == 200
            events = list(read(response))
    assert [event["type"] for event in events[-2:]] == ["text", "error"]
    assert events[-1]["error"] == {
        "name": "ConnectionLostError",
        "message": "The answer broke off, or the model server gave none.",
        "status": 502,
        "retryable": True,
    }


def test_a_break_that_is_mended_is_not_seen_by_the_client(engine: Engine) -> None:
    with ChaosProxy(engine.url, Reset(after_events=6)) as proxy:
        client = AsyncStreamingClient(proxy.url, temperature=0)
        with served(lambda: ndjson_response(client.stream_chat(MESSAGES))) as port, asked(port) as response:
            events = list(ndjson(response))
    assert "".join(event["text"] for event in events if event["type"] == "text") == STORY.answer
    assert str(proxy.port) not in json.dumps(events)


def test_an_error_after_the_first_keep_alive_is_an_event() -> None:
    with ServerDouble(Script(HEAD, stall=True)) as server:
        client = AsyncStreamingClient(server.url, retry=IMPATIENT, timeouts=Timeouts(prefill=0.3))
        with (
            served(lambda: sse_response(client.stream_chat(MESSAGES), keep_alive=0.05)) as port,
            asked(port) as response,
        ):
            assert response.status == 200
            assert [event["type"] for event in sse(response)] == ["error"]


def test_what_cannot_be_sent_is_an_error_of_the_service() -> None:
    async def items() -> AsyncIterator[Any]:
        yield object()

    with served(lambda: ndjson_response(items())) as port, asked(port) as response:
        assert response.status == 500
