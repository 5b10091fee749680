"""Streams as HTTP responses: a real uvicorn, a real llama-server, and a client that sees every byte."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("starlette", reason="needs the extra fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from commandline import LONG, STORY
from llamastream import AsyncStreamingClient, Engine, RetryPolicy, StreamingClient, Timeouts
from llamastream.errors import SettingError
from llamastream.integrations.fastapi import ndjson_response, sse_response
from llamastream.testing import ChaosProxy, NumberedServer, Reset, Script, ServerDouble, chunked, http_answer
from polling import wait_for
from ports import free_port

Respond = Callable[[], Response]


@contextmanager
def served(respond: Respond, *middleware: Any) -> Iterator[int]:
    """A service whose every path answers with `respond()`; its port."""

    async def endpoint(request: Request) -> Response:
        await request.body()
        return respond()

    routes = [Route("/{path:path}", endpoint, methods=["GET", "POST"])]
    app = Starlette(routes=routes, middleware=[Middleware(kind) for kind in middleware])
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()
        assert not thread.is_alive()


@contextmanager
def asked(port: int, method: str = "POST", **headers: str) -> Iterator[http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, "/", body=b"{}", headers=headers)
        yield connection.getresponse()
    finally:
        connection.close()


def sse(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := response.readline():
        if line.startswith(b"data: "):
            assert response.readline() == b"\n"
            yield json.loads(line.removeprefix(b"data: "))


def ndjson(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    while line := response.readline():
        assert line.endswith(b"\n")
        yield json.loads(line)


FORMS = pytest.mark.parametrize(("make", "read"), [(sse_response, sse), (ndjson_response, ndjson)], ids=["sse", "nd"])
KINDS = pytest.mark.parametrize("kind", [AsyncStreamingClient, StreamingClient], ids=["async", "sync"])
MESSAGES = [{"role": "user", "content": STORY.question}]
LONG_MESSAGES = [{"role": "user", "content": LONG.question}]
IMPATIENT = RetryPolicy(max_retries=0, loading_patience=0)


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
        middleware = (_PassThrough,)
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


class _PassThrough(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)


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


@pytest.mark.parametrize("middleware", [(), (_PassThrough,)], ids=["bare", "base"])
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


# -- errors -------------------------------------------------------------------------------------------------

HEAD = chunked([], end=False)
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


def test_an_error_after_the_first_keep_alive_is_an_event() -> None:
    with ServerDouble(Script(HEAD, stall=True)) as server:
        client = AsyncStreamingClient(server.url, retry=IMPATIENT, timeouts=Timeouts(prefill=0.3))
        with (
            served(lambda: sse_response(client.stream_chat(MESSAGES), keep_alive=0.05)) as port,
            asked(port) as response,
        ):
            assert response.status == 200
            assert [event["type"] for event in sse(response)] == ["error"]


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


def test_what_cannot_be_sent_is_an_error_of_the_service() -> None:
    async def items() -> AsyncIterator[Any]:
        yield object()

    with served(lambda: ndjson_response(items())) as port, asked(port) as response:
        assert response.status == 500


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
