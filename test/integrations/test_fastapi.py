"""Streams as HTTP responses: a real uvicorn, a real llama-server, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware

from commandline import STORY
from llamastream import AsyncStreamingClient, Engine, StreamingClient
from llamastream.errors import SettingError
from llamastream.integrations.fastapi import ndjson_response, sse_response
from llamastream.testing import NumberedServer, Script, ServerDouble
from polling import wait_for
from webwork import FORMS, KINDS, LONG_MESSAGES, MESSAGES, PassThrough, asked, ndjson, served, sse


@FORMS
@KINDS
def test_an_answer_arrives_whole_with_its_end(engine: Engine, make: Any, read: Any, kind: Any) -> None:
    client = kind(engine.url)
    with served(lambda: make(client.stream_chat(MESSAGES, temperature=0))) as port, asked(port) as response:
        events = list(read(response))
    assert events[0] == {"type": "start"}
    assert "".join(event["text"] for event in events if event["type"] == "text") == STORY.answer
    assert events[-1]["type"] == "end"
    assert events[-1]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] == events[-1]["stats"]["completion_tokens"] > 20


@pytest.mark.parametrize("middleware", [(), (GZipMiddleware,), (BaseHTTPMiddleware,)], ids=["bare", "gzip", "base"])
@FORMS
@KINDS
def test_each_piece_arrives_before_the_next_is_generated(make: Any, read: Any, kind: Any, middleware: Any) -> None:
    if middleware == (BaseHTTPMiddleware,):
        middleware = (PassThrough,)
    with NumberedServer(tokens=5, gate=True) as server:
        client = kind(server.url)
        server.release(1)
        with (
            served(lambda: make(client.stream_chat(MESSAGES)), *middleware) as port,
            asked(port, **{"Accept-Encoding": "gzip"}) as response,
        ):
            texts = []
            for event in read(response):
                if event["type"] == "text":
                    texts.append(event["text"])
                    server.release(1)  # only now the next one is made
    assert texts == ["0 ", "1 ", "2 ", "3 ", "4 "]


@FORMS
def test_headers_forbid_what_holds_streams_back(engine: Engine, make: Any, read: Any) -> None:
    client = AsyncStreamingClient(engine.url)
    with (
        served(lambda: make(client.stream_chat(MESSAGES), headers={"X-Own": "1"}), GZipMiddleware) as port,
        asked(port, **{"Accept-Encoding": "gzip"}) as response,
    ):
        found = {name.lower(): value for name, value in response.getheaders()}
        list(read(response))
    kinds = {sse: "text/event-stream; charset=utf-8", ndjson: "application/x-ndjson"}
    assert found["content-type"] == kinds[read]
    assert found["cache-control"] == "no-cache, no-transform"
    assert found["x-accel-buffering"] == "no"
    assert found["content-encoding"] == "identity"
    assert found["transfer-encoding"] == "chunked"
    assert "content-length" not in found
    assert found["x-own"] == "1"


def test_headers_of_the_caller_replace_ours_whatever_their_case(engine: Engine) -> None:
    client = AsyncStreamingClient(engine.url)
    own = {"Cache-Control": "no-store", "X-ACCEL-Buffering": "yes"}
    with (
        served(lambda: sse_response(client.stream_chat(MESSAGES, max_tokens=2), headers=own)) as port,
        asked(port) as response,
    ):
        found = [(name.lower(), value) for name, value in response.getheaders()]
        list(sse(response))
    assert [value for name, value in found if name == "cache-control"] == ["no-store"]
    assert [value for name, value in found if name == "x-accel-buffering"] == ["yes"]


@FORMS
@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf"), "5", True])
def test_a_keep_alive_that_is_none_is_refused_at_the_call(make: Any, read: Any, seconds: Any) -> None:
    with pytest.raises(SettingError, match=r"keep_alive must be a finite number of seconds above 0.*, not "):
        make(_pieces(), keep_alive=seconds)


@FORMS
@pytest.mark.parametrize("stream", [None, ["a"], "text", iter("ab")], ids=["None", "list", "str", "iterator"])
def test_what_is_no_stream_is_refused_at_the_call(make: Any, read: Any, stream: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{type(stream).__name__} cannot be streamed; allowed: what stream_chat"):
        make(stream)


async def _pieces() -> AsyncIterator[str]:
    yield "piece"


# -- hang-ups -----------------------------------------------------------------------------------------------


@KINDS
def test_a_client_that_hangs_up_frees_the_slot(engine: Engine, kind: Any, slots_free: Callable[[], float]) -> None:
    client = kind(engine.url)
    with served(lambda: sse_response(client.stream_chat(LONG_MESSAGES, ignore_eos=True, max_tokens=7000))) as port:
        with asked(port) as response:
            next(sse(response))
            assert any(slot["is_processing"] for slot in StreamingClient(engine.url).slots())
        slots_free()


@pytest.mark.parametrize("middleware", [(), (PassThrough,)], ids=["bare", "base"])
@KINDS
def test_a_hang_up_is_noticed_before_the_first_token(kind: Any, middleware: Any) -> None:
    with NumberedServer(gate=True) as server:
        client = kind(server.url, recovery="off")
        with served(lambda: sse_response(client.stream_chat(MESSAGES)), *middleware) as port:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                wait_for(lambda: server.generating == 1)
            wait_for(lambda: server.generating == 0)
    assert server.cancelled == 1


@KINDS
def test_a_hang_up_is_noticed_while_the_request_waits_in_the_queue(kind: Any) -> None:
    with ServerDouble(Script(stall=True)) as server:
        client = kind(server.url)
        with served(lambda: sse_response(client.stream_chat(MESSAGES))) as port:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                connection.sendall(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
                wait_for(lambda: server.connections == 1)
            wait_for(lambda: server.connections == 0)


def test_nothing_is_generated_for_a_head_request(engine: Engine) -> None:
    with NumberedServer() as server:
        client = AsyncStreamingClient(server.url)
        with served(lambda: sse_response(client.stream_chat(MESSAGES))) as port, asked(port, "HEAD") as response:
            assert response.status == 200
            assert response.read() == b""
    assert server.generations == 0


def test_background_work_is_done_after_the_stream(engine: Engine) -> None:
    done = threading.Event()
    from starlette.background import BackgroundTask

    client = AsyncStreamingClient(engine.url)
    respond = lambda: sse_response(client.stream_chat(MESSAGES, max_tokens=3), background=BackgroundTask(done.set))  # noqa: E731
    with served(respond) as port, asked(port) as response:
        list(sse(response))
        assert done.wait(5)


# -- the rest -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "alive"), [(sse_response, b": keep-alive\n"), (ndjson_response, b'{"type":"ping"}\n')]
)
def test_silence_is_filled_if_that_is_asked_for(make: Any, alive: bytes) -> None:
    with NumberedServer(tokens=1, gate=True) as server:
        client = AsyncStreamingClient(server.url)
        with (
            served(lambda: make(client.stream_chat(MESSAGES), keep_alive=0.05)) as port,
            asked(port) as response,
        ):
            assert response.readline() == alive  # the header has come too, long before the first token
            server.release()
            assert b'"type":"end"' in response.read()


def test_texts_and_objects_of_ones_own_can_be_sent() -> None:
    async def items() -> AsyncIterator[Any]:
        yield "one\n"
        yield {"type": "source", "page": 7}
        yield "two\u2028three"

    with served(lambda: ndjson_response(items())) as port, asked(port) as response:
        lines = response.read().decode().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"type": "text", "text": "one\n", "index": 0},
        {"type": "source", "page": 7},
        {"type": "text", "text": "two\u2028three", "index": 0},
        {"type": "end", "finish_reason": None, "usage": None, "stats": None},
    ]


def test_a_server_that_tells_of_hang_ups_by_oserror_is_understood(
    engine: Engine, slots_free: Callable[[], float]
) -> None:
    """As uvicorn does it by `receive`, others do it by `send` (ASGI 2.4)."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)
        if len(sent) == 4:
            raise OSError("gone")

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def call() -> None:
        client = AsyncStreamingClient(engine.url)
        response = sse_response(client.stream_chat(LONG_MESSAGES, ignore_eos=True, max_tokens=7000))
        await response({"type": "http", "method": "POST"}, receive, send)

    asyncio.run(call())
    assert len(sent) == 4
    slots_free()
