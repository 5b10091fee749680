"""A stream as an ASGI response: server-sent events, or newline-delimited JSON."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterable, Mapping
from typing import Literal, TypeAlias

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llamastream import AsyncStream, LlamaStreamError, Stream
from llamastream.errors import SettingError
from llamastream.integrations.web import wire
from llamastream.integrations.web.source import iterate, leave
from llamastream.integrations.web.wire import Item, MessageChunk
from llamastream.types import StreamEnd, StreamStart

Source: TypeAlias = AsyncStream | Stream | AsyncIterable[Item | MessageChunk]

log = logging.getLogger("llamastream.web")

KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment is sent: proxies between cut connections that are silent for a minute."""

_ALWAYS = {
    "cache-control": "no-cache, no-transform",
    "content-encoding": "identity",  # compression collects before it gives out; middleware leaves encoded bodies alone
    "x-accel-buffering": "no",  # nginx
}

_OF_THE_BODY = {"content-type", "content-length", "content-encoding", "transfer-encoding"}
"""Headers of the caller that describe the stream, and not the error which is sent in its place."""


def sse_response(
    stream: Source,
    *,
    keep_alive: float | None = KEEP_ALIVE,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> StreamResponse:
    """Server-sent events, each with one JSON object as its data.

    Args:
        stream: what a client's `stream_chat` or `stream_completion` returned, or LangChain's `astream`; or any
            asynchronous iterable of text, typed events, or JSON objects of your own. It must not have been read yet.
        keep_alive: seconds of silence after which a comment is sent, which also sends the header; None: never.
        headers: further ones, or others instead of ours. An error has them, too, but for those that describe the body,
            and is never to be cached. background: runs after the response, as Starlette does it.

    Raises:
        SettingError: `keep_alive` is not a finite number above 0.
        TypeError: `stream` is nothing that can be streamed.
    """
    return StreamResponse(stream, "sse", keep_alive=keep_alive, headers=headers, background=background)


def ndjson_response(
    stream: Source,
    *,
    keep_alive: float | None = None,
    headers: Mapping[str, str] | None = None,
    background: BackgroundTask | None = None,
) -> StreamResponse:
    """One JSON object in each line, each line ended by a line feed. Arguments as for `sse_response`; what keeps the
    connection alive is the object `{"type":"ping"}`, if asked for."""
    return StreamResponse(stream, "ndjson", keep_alive=keep_alive, headers=headers, background=background)


class StreamResponse(Response):
    """What `sse_response` and `ndjson_response` return.

    The header goes out with the first event after the server's own header, or with the first keep-alive. Until then an
    error becomes a status of its own. A client that hangs up is noticed at any time, and the stream is left at once.
    """

    def __init__(
        self,
        stream: Source,
        form: Literal["sse", "ndjson"],
        *,
        keep_alive: float | None,
        headers: Mapping[str, str] | None,
        background: BackgroundTask | None,
    ) -> None:
        _check(stream, keep_alive)
        self._stream = stream
        self._before, self._after, self._alive = (
            (b"data: ", b"\n\n", b": keep-alive\n\n") if form == "sse" else (b"", b"\n", b'{"type":"ping"}\n')
        )
        self._keep_alive = keep_alive
        self._started = False
        self._sent = 0
        self._turn = asyncio.Lock()
        self.status_code = 200
        self.media_type = "text/event-stream" if form == "sse" else "application/x-ndjson"
        self.background = background
        self._own = {name.lower(): value for name, value in (headers or {}).items()}
        self.init_headers({**_ALWAYS, **self._own})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        items = iterate(self._stream)
        try:
            if scope.get("method") == "HEAD":
                await self._send(send, b"", more=False)
                return
            writer = asyncio.create_task(self._write(items, send))
            watchers = [asyncio.create_task(_disconnected(receive))]
            if self._keep_alive is not None:
                watchers.append(asyncio.create_task(self._keep(self._keep_alive, send)))
            await _first(writer, *watchers)
        finally:
            await leave(self._stream, items)
        if self.background is not None:
            await self.background()

    async def _write(self, items: AsyncIterable[Item], send: Send) -> None:
        before, after, ended = self._before, self._after, False
        held = b""
        try:
            async for item in items:
                data = before + wire.encode(item) + after
                if isinstance(item, StreamStart):
                    held = data  # an error may still become a status
                    continue
                await self._send(send, held + data if held else data)
                held = b""
                ended = isinstance(item, StreamEnd)
            if not ended:
                await self._send(send, held + before + wire.end(None) + after)
            await self._send(send, b"", more=False)
        except LlamaStreamError as error:
            log.warning("a stream failed with %s: %s", type(error).__name__, error)
            await self._fail(error, send)

    async def _fail(self, error: LlamaStreamError, send: Send) -> None:
        async with self._turn:
            if not self._started:
                self._started = True
                status, headers, body = wire.refusal(error)
                own = {name: value for name, value in self._own.items() if name not in _OF_THE_BODY}
                await _deliver(send, _head(status, {**own, "content-type": "application/json", **headers}))
                await _deliver(send, {"type": "http.response.body", "body": body, "more_body": False})
                return
        await self._send(send, self._before + wire.error_event(error) + self._after)
        await self._send(send, b"", more=False)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> None:
        async with self._turn:
            self._sent += 1
            if not self._started:
                self._started = True
                await _deliver(
                    send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
                )
            await _deliver(send, {"type": "http.response.body", "body": data, "more_body": more})

    async def _keep(self, seconds: float, send: Send) -> None:
        while True:
            sent = self._sent
            await asyncio.sleep(seconds)
            if self._sent == sent:
                await self._send(send, self._alive)


def _check(stream: object, keep_alive: object) -> None:
    """Refuse wrong arguments where the caller sees it, and not in the middle of the response."""
    if not isinstance(stream, AsyncStream | Stream | AsyncIterable):
        raise TypeError(
            f"{type(stream).__name__} cannot be streamed; allowed: what stream_chat or stream_completion returned, or "
            "an asynchronous iterable (LangChain's astream, an async generator)"
        )
    if keep_alive is None:
        return
    number = math.nan if isinstance(keep_alive, bool) or not isinstance(keep_alive, int | float) else keep_alive
    if not 0 < number < math.inf:
        raise SettingError(
            f"keep_alive must be a finite number of seconds above 0, or None for never, not {keep_alive!r}"
        )


def _head(status: int, headers: Mapping[str, str]) -> Message:
    raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


class _ClientGoneError(Exception):
    pass


async def _deliver(send: Send, message: Message) -> None:
    try:
        await send(message)
    except OSError:  # how servers of ASGI 2.4 tell that the client has gone
        raise _ClientGoneError from None


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _first(writer: asyncio.Task[None], *watchers: asyncio.Task[None]) -> None:
    """Wait for the writer, or for what ends before it; then all are ended. The writer's own error is raised."""
    tasks = (writer, *watchers)
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
    failure = ended[0]
    if isinstance(failure, Exception) and not isinstance(failure, _ClientGoneError):
        raise failure
