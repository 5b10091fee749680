"""A service around a response, as uvicorn runs it, and a client that sees every byte of it."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from commandline import LONG, STORY
from llamastream import AsyncStreamingClient, StreamingClient
from llamastream.integrations.fastapi import ndjson_response, sse_response

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


class PassThrough(BaseHTTPMiddleware):
    """A middleware that changes nothing, but stands between."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        return await call_next(request)
