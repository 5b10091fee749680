"""The way past ASGI: a stream's frames go from the upstream connection straight to the client's transport.

`SpliceProtocol` is uvicorn's HTTP protocol with four differences: it offers the splice in the ASGI scope, never writes
an error page into a response that has begun, bounds the size of a request's head, and tells a running request that its
client is gone even if that client has sent a second request meanwhile. None of what it builds on is public, hence the
narrow pin of uvicorn's version, and a contract test.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

EXTENSION = "llamastream.splice"
MAX_HEAD = 64 * 1024
"""Bytes that the request line and the headers of one request may have together."""
HEAD_SECONDS = 20.0
"""Seconds that a client may take for the head of a request."""


class Splice:
    """One response, as far as the way past ASGI is concerned. Holds the request's own cycle: that of
    the protocol changes with every request on the connection."""

    __slots__ = ("_cycle",)

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle

    @property
    def open(self) -> bool:
        """The response has begun, is chunked, and its client is there: frames may be written."""
        cycle = self._cycle
        return bool(
            cycle.response_started
            and not cycle.response_complete
            and not cycle.disconnected
            and cycle.chunked_encoding
            and cycle.scope["http_version"] == "1.1"
            and cycle.scope["method"] != "HEAD"
        )

    @property
    def flow(self) -> Any:
        """uvicorn's flow control of the client's connection: `write_paused`, and `drain()` to wait for its end."""
        return self._cycle.flow

    @property
    def transport(self) -> asyncio.Transport:
        """The client's connection: takes whole HTTP chunks, while `open`."""
        return self._cycle.transport


class SpliceProtocol(HttpToolsProtocol):
    """uvicorn's protocol for the gateway; see the module."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head = 0
        self._in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_here()
        # uvicorn tells only the last request; those before it, which may still run, have to hear of it, too
        for cycle, _ in self.pipeline:
            cycle.disconnected = True
            cycle.message_event.set()
        running = getattr(self, "_running", None)
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head += len(data)
            if self._head > MAX_HEAD:
                self.send_400_response("The request's head is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head = 0
        self._head_is_here()
        super().on_headers_complete()
        self._offer(self.cycle)

    def _offer(self, cycle: RequestResponseCycle) -> None:
        running = getattr(self, "_running", None)
        if running is None or running.response_complete:
            self._running = cycle
        extensions: dict[str, Any] = {EXTENSION: Splice(cycle)}
        cycle.scope["extensions"] = extensions

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._running = self.cycle

    def send_400_response(self, msg: str) -> None:
        running = getattr(self, "_running", None)
        if running is not None and running.response_started and not running.response_complete:
            # a status line in the middle of a body would be taken for content
            self.transport.close()
            return
        super().send_400_response(msg)

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self._head_is_late)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
