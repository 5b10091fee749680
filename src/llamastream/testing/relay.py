"""One connection through a `ChaosProxy`: requests go up, answers come down, and a fault happens on the way."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from typing import Literal

import msgspec
from msgspec import Struct

from llamastream.testing.editing import Ending, Piece, Untouched, editor_for
from llamastream.testing.faults import EndlessHeaders, Fault, HtmlError, Refuse, Unavailable
from llamastream.testing.framing import MessageReader, Span, header_fields
from llamastream.testing.wire import (
    http_answer,
    is_complete,
    read_request,
    readable,
    reset_on_close,
    wait_until_received,
)


class Exchange(Struct):
    """What happened to one request. It is filled in while that happens.

    Attributes:
        number: the how-manieth of the requests that faults apply to, from 1; 0 if faults do not apply to it.
        request_line: such as "POST /v1/chat/completions HTTP/1.1".
        fault: the fault chosen for it. fired: whether it has happened; a short answer may not get that far.
        bytes: how many bytes of the answer went to the client, head and framing included.
        events: how many of the server's SSE events went to the client, all of them.
        ended: "" while it goes on. "complete": the whole answer was sent. "fault": the fault ended it. "client left"
            (which is also how `Stall` and `EndlessHeaders` end), "server left": before the answer was complete.
    """

    number: int
    request_line: str
    fault: Fault | None = None
    fired: bool = False
    bytes: int = 0
    events: int = 0
    ended: Literal["", "complete", "fault", "client left", "server left", "server unreachable", "proxy closed"] = ""


class _ClientLeftError(Exception):
    pass


class _ServerLeftError(Exception):
    """The server closed the connection before the answer was complete; or reset it."""

    def __init__(self, *, reset: bool) -> None:
        super().__init__("the server left")
        self.reset = reset


class Relay:
    """Serves one client connection.

    Args:
        connect: opens a connection to the server. changed: is called when an exchange has changed.
    """

    def __init__(
        self, client: socket.socket, connect: Callable[[], socket.socket], changed: Callable[[], None]
    ) -> None:
        self._client = client
        self._connect = connect
        self._changed = changed
        self._server: socket.socket | None = None
        self._behind = bytearray()  # what the client sent behind its request
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def next_request(self) -> bytes:
        """The client's next request; b"" when it has left, or the server has while there was nothing to do."""
        if self._server is not None and not self._behind:
            ready = readable(self._client, self._server)
            if self._client not in ready:
                return b""  # the server ends the kept connection, or speaks without being asked
        request = read_request(self._client, self._behind)
        return request if is_complete(request) else b""

    def answer(self, request: bytes, exchange: Exchange) -> bool:
        """Answer one request; whether another may follow on this connection."""
        try:
            again = self._answer(request, exchange)
        except _ClientLeftError:
            exchange.ended, again = "client left", False
        except _ServerLeftError as left:
            exchange.ended, again = "server left", False
            if left.reset:
                wait_until_received(self._client)
                reset_on_close(self._client)
        return again and exchange.fault is None

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    # -- one answer -----------------------------------------------------------------------------------------

    def _answer(self, request: bytes, exchange: Exchange) -> bool:
        fault = exchange.fault
        if isinstance(fault, Refuse | HtmlError | Unavailable | EndlessHeaders):
            exchange.fired = True
            self._answer_alone(fault, exchange)
            exchange.ended = "fault"
            return False
        if self._server is None:
            try:
                self._server = self._connect()
            except OSError:
                exchange.ended = "server unreachable"
                return False
        try:
            self._server.sendall(request)
        except OSError:
            raise _ServerLeftError(reset=True) from None
        return self._relay(exchange, editor_for(fault), bodyless=request.startswith(b"HEAD "))

    def _answer_alone(self, fault: Refuse | HtmlError | Unavailable | EndlessHeaders, exchange: Exchange) -> None:
        if isinstance(fault, Refuse):
            if fault.reset:
                reset_on_close(self._client)
        elif isinstance(fault, HtmlError):
            answer = http_answer(fault.status, fault.page.encode(), "text/html", "Connection: close")
            self._send(Piece(answer), exchange)
        elif isinstance(fault, Unavailable):
            error = {"message": fault.message, "type": "unavailable_error", "code": 503}
            extra = ["Connection: close"]
            if fault.retry_after is not None:
                extra.append(f"Retry-After: {fault.retry_after}")
            body = msgspec.json.encode({"error": error})
            self._send(Piece(http_answer("503 Service Unavailable", body, "application/json", *extra)), exchange)
        else:
            self._send(Piece(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"), exchange)
            number = 0
            while True:
                number += 1
                self._watch_client(fault.delay)
                self._send(Piece(f"X-Endless-{number}: {number}\r\n".encode()), exchange)

    def _relay(self, exchange: Exchange, editor: Untouched, *, bodyless: bool) -> bool:
        reader = MessageReader(bodyless=bodyless)
        while not reader.done:
            data = self._receive()
            if not data:
                whole = reader.until_close
                left = [Span("body", b"", last=True)] if whole else [Span("framing", bytes(reader.rest))]
            else:
                left = list(reader.feed(data))
            for span in left:
                for step in editor.edit(span):
                    exchange.fired = editor.fired
                    if isinstance(step, Ending):
                        self._changed()
                        self._end(step)
                        exchange.ended = "client left" if step is Ending.STALL else "fault"
                        return False
                    self._send(step, exchange)
            if not data:
                if not whole:
                    raise _ServerLeftError(reset=False)
                break
        exchange.ended = "complete"
        closes = header_fields(reader.head).get("connection", "").lower() == "close"
        return reader.done and not closes and not reader.rest

    def _end(self, ending: Ending) -> None:
        if ending is Ending.RESET:
            wait_until_received(self._client)
            reset_on_close(self._client)
        elif ending is Ending.HALF_CLOSE:
            self.close()
            self._client.shutdown(socket.SHUT_WR)
        if ending in (Ending.HALF_CLOSE, Ending.STALL):
            with contextlib.suppress(OSError):
                while self._client.recv(65536):
                    pass

    # -- bytes ----------------------------------------------------------------------------------------------

    def _receive(self) -> bytes:
        """What the server says next; b"" when it has closed the connection."""
        assert self._server is not None
        while True:
            ready = readable(self._client, self._server)
            if self._client in ready:
                self._watch_client(0)
            if self._server in ready:
                try:
                    return self._server.recv(65536)
                except OSError:
                    raise _ServerLeftError(reset=True) from None

    def _watch_client(self, seconds: float) -> None:
        """Wait, but not for a client that has left. One that closes its sending side has left, as for llama-server."""
        if seconds and not readable(self._client, timeout=seconds):
            return
        while readable(self._client, timeout=0):
            try:
                more = self._client.recv(65536)
            except OSError:
                more = b""
            if not more:
                raise _ClientLeftError
            self._behind += more

    def _send(self, piece: Piece, exchange: Exchange) -> None:
        step = max(1, len(piece.data)) if piece.delay is None else 1
        for start in range(0, len(piece.data), step):
            if piece.delay:
                self._watch_client(piece.delay)
            part = piece.data[start : start + step]
            try:
                self._client.sendall(part)
            except OSError:
                raise _ClientLeftError from None
            exchange.bytes += len(part)
        exchange.events += piece.events
        self._changed()
