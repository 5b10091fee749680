"""Requests that are passed on as they are: whole answers, and streams that no recovery knows how to continue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from time import monotonic
from typing import Any

from llamastream.client.aconnection import AsyncConnection
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.core import ClientCore
from llamastream.client.pool import Place
from llamastream.client.servers import Server
from llamastream.errors import BadRequestError, ConnectionLostError, LlamaStreamError
from llamastream.gateway import relay
from llamastream.gateway.arrivals import Arrivals
from llamastream.gateway.asgi import Send
from llamastream.gateway.frames import WAITING, error_type, event
from llamastream.gateway.patience import Patience
from llamastream.gateway.refusals import in_form, public
from llamastream.gateway.relay import HEADERS
from llamastream.protocol.failures import response_error
from llamastream.protocol.http1 import build_request
from llamastream.protocol.requests import in_slot

PASSED_ON = frozenset({"content-type", "retry-after"})
"""Headers of a server's answer that its client gets."""
ATTEMPTS = 3


class Passage:
    """One request to one server and its answer, byte by byte; of a stream whole events only, so that an error can
    follow them.

    Attributes:
        began: the response has begun, so that an error can only be told inside of it. server: which answers.
        events: of the stream, that its client got. lease: the slot that it uses, if it needs one. via: see
        `gateway.hops`.
    """

    def __init__(
        self, core: ClientCore, pools: Sequence[AsyncConnectionPool], send: Send, *, stream: bool = False
    ) -> None:
        """`stream`: the client wants events, and can be told that it has to wait."""
        self.began = False
        self.via = ""
        self.lease: relay.Lease | None = None
        self._stream = stream
        self._answered = False
        self.events = 0
        self.server: Server | None = None
        self._core = core
        self._pools = pools
        self._send = send

    async def run_at(self, server: Server, method: str, path: str, body: bytes | None) -> int:
        """Ask this server and no other, and hand on what comes; the status.

        Raises:
            LlamaStreamError: it did not answer; if `began`, the answer broke off.
        """
        self.server = server
        use = self._core.servers.began(server)
        try:
            return await self._attempt(server, method, path, body, ())
        finally:
            self._core.servers.ended(server, use)

    async def run(self, method: str, path: str, body: bytes | None, headers: Sequence[tuple[bytes, bytes]] = ()) -> int:
        """Ask, on another server if one fails before it answered, and hand on what comes; the status.

        Raises:
            LlamaStreamError: no server answered; if `began`, the answer broke off.
        """
        servers, lease = self._core.servers, self.lease
        failed: list[Server] = []
        while True:
            server, _ = servers.choose(monotonic(), failed, None if lease is None else lease.server)
            self.server = server
            if lease is not None:
                lease.at(server)
            use = servers.began(server)
            try:
                return await self._attempt(server, method, path, body, headers)
            except LlamaStreamError as error:
                if isinstance(error, BadRequestError):
                    raise  # it is the request's fault
                servers.failed(server, monotonic(), certain=isinstance(error, ConnectionLostError))
                failed.append(server)
                most = relay.ATTEMPTS if lease is not None and relay.comes_back(error) else ATTEMPTS
                if self._answered or len(failed) >= most:
                    raise
            finally:
                servers.ended(server, use)
            if lease is not None:
                await lease.again(self.sign if self._stream else None, relay.SIGN_OF_LIFE)
            elif not servers.elsewhere(monotonic(), failed):
                await asyncio.sleep(0.25 * 2 ** len(failed))

    async def _attempt(
        self, server: Server, method: str, path: str, body: bytes | None, headers: Sequence[tuple[bytes, bytes]]
    ) -> int:
        place = Place()
        pool = self._pools[server.index]
        arrivals = Arrivals()
        arrivals.url = server.url + path
        patience = Patience(self._core, server)
        sign = self.sign if self._stream else None
        connection: AsyncConnection | None = None
        try:
            connection, reused = await pool.acquire(place, monotonic() + 30.0, arrivals.leave)
            slot = None if self.lease is None else self.lease.slot_at(server)
            placed = body if slot is None or body is None else in_slot(body, slot)
            request = self._request(server, method, path, placed)
            if reused:
                connection.keep(arrivals)
                connection.send(request)
                reused = not await arrivals.stale(patience, sign)
            if not reused:
                connection = pool.replace(connection)
                await connection.connect(arrivals, server.address, server.tls, self._core.timeouts.connect)
                connection.send(request)
            await arrivals.header(sign, patience)
            reader = arrivals.reader
            if reader.status in (401, 503):
                await arrivals.whole(patience)
                raise response_error(reader.status, reader.headers, bytes(arrivals.body), arrivals.url)
            await self._hand_on(path, arrivals, connection, headers, patience)
            if reader.status < 500:
                self._core.servers.succeeded(server)
            return reader.status
        finally:
            whole = arrivals.over and arrivals.error is None
            if not whole:
                arrivals.reader.leave()
            pool.release(place, connection, arrivals.reader if whole else None)

    async def sign(self) -> None:
        """The client of a stream hears that we are there; an error has to be told inside of the response from now
        on."""
        await self._begin(200, HEADERS)
        await self._send({"type": "http.response.body", "body": WAITING, "more_body": True})

    async def _begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        if not self.began:
            self.began = True
            await self._send({"type": "http.response.start", "status": status, "headers": list(headers)})

    def _request(self, server: Server, method: str, path: str, body: bytes | None) -> bytes:
        key = self._core.settings.api_key
        own = {"Accept": "*/*"} | ({"Authorization": f"Bearer {key}"} if key else {})
        if self.via:
            own["Via"] = self.via
        if body is not None:
            own["Content-Type"] = "application/json"
        return build_request(method, server.address.target(path), server.address.host_header, own, body)

    async def _hand_on(
        self,
        path: str,
        arrivals: Arrivals,
        connection: AsyncConnection,
        headers: Sequence[tuple[bytes, bytes]],
        patience: Patience,
    ) -> None:
        reader = arrivals.reader
        if reader.headers.get("content-type", "").startswith("text/event-stream"):
            await self._hand_on_events(arrivals, connection, [*HEADERS, *headers])
            return
        await arrivals.whole(patience)  # a body that broke off is told by its status
        if arrivals.error is not None:
            raise arrivals.error
        if self.began:  # the client was told to wait for events
            raise response_error(reader.status, reader.headers, bytes(arrivals.body), arrivals.url)
        kept = [(name.encode(), value.encode("latin-1")) for name, value in reader.headers.items() if name in PASSED_ON]
        body = bytes(arrivals.body) if reader.status < 400 else in_form(path, bytes(arrivals.body))
        kept.append((b"content-length", str(len(body)).encode()))
        await self._begin(reader.status, [*kept, *headers])
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _hand_on_events(
        self, arrivals: Arrivals, connection: AsyncConnection, headers: Sequence[tuple[bytes, bytes]]
    ) -> None:
        idle = self._core.timeouts.content_idle
        while body := await arrivals.events(idle):
            if not self._answered:  # only now: until then another server may be asked
                self._answered = True
                await self._begin(200, headers)
                if self.lease is not None:
                    self.lease.begun()
            self.events += body.count(b"\ndata:") + body.startswith(b"data:")
            arrivals.filled = connection.pause
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            arrivals.filled = None
            connection.resume()
        if arrivals.error is not None:
            raise arrivals.error
        if not self._answered:
            raise ConnectionLostError(f"{arrivals.url} sent nothing")
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})


def broken_stream(path: str, error: LlamaStreamError, events: int = 0) -> bytes:
    """The error of a stream that began, in the form of its API. `events`: that its client got before it."""
    message = public(error)
    data: dict[str, Any]
    if path == "/v1/messages":
        data = {"type": "error", "error": {"type": "api_error", "message": message}}
        return b"event: error\n" + event(data)
    fault = {"message": message, "type": error_type(error.status or 502), "code": error.status or 502}
    if path == "/v1/responses":
        # `error` besides what the reference has: OpenAI's own service sends it, and its clients raise by it
        told = {"code": "server_error", "message": message, "param": None, "sequence_number": events}
        return b"event: error\n" + event({"type": "error", **told, "error": {**fault, "code": "server_error"}})
    return event({"error": fault})
