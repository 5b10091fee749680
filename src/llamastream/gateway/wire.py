"""The gateway's end of a client's connection: strict HTTP/1.1, bounds on everything, and the way past ASGI.

`SpliceProtocol` is uvicorn's HTTP protocol with these differences. It offers the splice in the ASGI scope: a stream's
frames go from the upstream connection straight to the client's transport. It refuses what two readers could read in two
ways (`gateway.strict`). It sends no chunks to HTTP/1.0. It bounds the size and the time of each request's head, and the
number of connections and of requests in one of them. It never writes an error page into, or in place of, another
request's response. It tells a running request that its client is gone even if that client has sent further requests
meanwhile.

None of what it builds on is public, hence the narrow pin of uvicorn's version, and a contract test.
"""

from __future__ import annotations

import asyncio
import weakref
from collections import Counter
from typing import Any, ClassVar, cast

import httptools
from msgspec import Struct
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from llamastream.gateway.linger import LingeringTransport
from llamastream.gateway.refusals import refusal
from llamastream.gateway.settings import GatewaySettings
from llamastream.gateway.strict import HeadError, check_head
from llamastream.gateway.unchunked import end_with_connection

EXTENSION = "llamastream.splice"
MAX_PIPELINED = 8
"""Requests of one connection that may wait for the answer to the one before: after those the connection is closed."""
MAX_PIPELINED_BODY = 64 * 1024
_PHRASES = {400: b"Bad Request", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large"}


class EnoughError(Exception):
    """So many requests wait on a connection that no further one is taken."""


class WireLimits(Struct, frozen=True):
    """What a connection may take: bytes and seconds for a head; connections in all, and from one address."""

    max_head: int = 64 * 1024
    head_timeout: float = 20.0
    connections: int = 4096
    connections_per_client: int | None = None


class Splice:
    """One response, as far as the way past ASGI is concerned. Knows the request's own cycle: that of
    the protocol changes with every request on the connection.

    Attributes:
        flow: uvicorn's flow control of the client's connection: `write_paused`, and `drain()` to wait for its end.
        transport: the client's connection: takes whole HTTP chunks, while `open`.
    """

    __slots__ = ("_cycle", "flow", "transport")

    flow: Any
    transport: LingeringTransport

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = weakref.ref(cycle)  # whose scope this is in
        self.flow = cycle.flow
        self.transport = cast("LingeringTransport", cycle.transport)

    @property
    def open(self) -> bool:
        """The response has begun, is chunked, and its client is there: frames may be written."""
        cycle = self._cycle()
        return bool(
            cycle is not None
            and cycle.response_started
            and not cycle.response_complete
            and not cycle.disconnected
            and cycle.chunked_encoding
            and cycle.scope["http_version"] == "1.1"
            and cycle.scope["method"] != "HEAD"
        )


class SpliceProtocol(HttpToolsProtocol):
    """uvicorn's protocol for the gateway; see the module."""

    limits: ClassVar[WireLimits] = WireLimits()
    addresses: ClassVar[Counter[str]] = Counter()
    """Connections from each address; of one server, where the class is made by `bound`."""

    _line: LingeringTransport

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # uvicorn's line has the path and the query as they came; ours has neither
        self._refused = False  # the whole connection
        self._failed = False
        self._full = False  # no further request is taken on this connection
        self._address: str | None = None
        self._in_head = True
        self._head = 0  # bytes of the head that came in earlier reads
        self._fields = 0  # bytes of its parts that are complete
        self._head_timer: asyncio.TimerHandle | None = None
        self._running: RequestResponseCycle | None = None
        self._raw: int | None = None  # bytes of a body that are still to come, which the parser does not read

    # -- the connection -----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        self._line = LingeringTransport(transport, self.loop, self._may_be_sending)
        peer = transport.get_extra_info("peername")
        address = peer[0] if isinstance(peer, tuple) else "unix"
        limits = self.limits
        of_this_client = limits.connections_per_client
        if len(self.connections) >= limits.connections:
            self._turn_away(503, "the gateway has as many connections as it may have (max_connections)")
        elif of_this_client is not None and peer and self.addresses[address] >= of_this_client:
            self._turn_away(429, "too many connections from this address (max_connections_per_client)")
        else:
            self._address = address
            self.addresses[address] += 1
            super().connection_made(self._line)  # type: ignore[arg-type]  # has what a transport has
            self._await_head()

    def _turn_away(self, status: int, message: str) -> None:
        self._refused = True
        self.transport = self._line  # type: ignore[assignment]  # has what a transport has
        self._write_error(status, message)

    def connection_lost(self, exc: Exception | None) -> None:
        self._line.over()
        self._head_is_here()
        if self._address is not None:
            self.addresses[self._address] -= 1
            if not self.addresses[self._address]:
                del self.addresses[self._address]
            self._address = None
        # uvicorn tells only the last request; those before it, which may still run, have to hear of it, too
        self._abandon()
        self.pipeline.clear()
        if not self._refused:
            super().connection_lost(exc)

    def _abandon(self) -> None:
        """Whoever works for this connection need not."""
        cycles = [cycle for cycle, _ in self.pipeline]
        if self._running is not None:
            cycles.append(self._running)
        for cycle in cycles:
            if not cycle.response_complete:
                cycle.disconnected = True
                cycle.message_event.set()

    # -- what arrives -------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        if self._refused or self._full or self._line.closing:
            return
        self._unset_keepalive_if_required()
        if self._raw is not None:
            self._take_raw(data)
            return
        if not self._in_head:
            self._feed(data)
            return
        if self._head_timer is None:
            self._await_head()
        room = self.limits.max_head - self._head
        part = data[:room]
        self._head += len(part)
        self._feed(part)
        if len(data) > room and not (self._full or self._line.closing):
            if self._in_head and self._head >= self.limits.max_head:
                self._refuse(431, "the request's head is too large (max_head)")
            else:
                self._feed(data[room:])

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._take_raw(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            if isinstance(cause, EnoughError):
                self._take_no_more()
                return
            message = str(cause) if isinstance(cause, HeadError) else "the request is not proper HTTP/1.1"
            status = cause.status if isinstance(cause, HeadError) else 400
            self._refuse(status, message)

    def _take_raw(self, data: bytes) -> None:
        """What follows a head that asks for an upgrade. Nobody upgrades here, but some clients (Java's) always ask, and
        the parser takes their body for another protocol."""
        left = self._raw or 0
        self._raw = max(0, left - len(data))
        if left:
            self.on_body(data[:left])
            if not self._raw:
                super().on_message_complete()

    def on_message_begin(self) -> None:
        self._in_head = True
        self._fields = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._grown(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._grown(len(name) + len(value) + 4)

    def _grown(self, size: int) -> None:
        self._fields += size
        if self._fields > self.limits.max_head:
            raise HeadError(431, "the request's head is too large (max_head)")

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head = 0
        self._head_is_here()
        check_head(self.parser.get_http_version(), self.url, self.headers)
        before, running = self.cycle, self._running
        if running is not None and not running.response_complete and len(self.pipeline) >= MAX_PIPELINED:
            raise EnoughError
        super().on_headers_complete()
        cycle = self.cycle
        if cycle is before:
            return
        if self._running is None or self._running.response_complete:
            self._running = cycle
        else:
            # uvicorn stops reading here; then nobody would notice when the client hangs up
            self.flow.resume_reading()
        if self.parser.should_upgrade():
            self._ignore_upgrade(cycle)
        if cycle.scope["http_version"] == "1.0":
            end_with_connection(cycle)
        extensions: dict[str, Any] = {EXTENSION: Splice(cycle)}
        cycle.scope["extensions"] = extensions

    def _ignore_upgrade(self, cycle: RequestResponseCycle) -> None:
        cycle.keep_alive = False
        fields = dict(self.headers)
        if b"transfer-encoding" in fields:
            raise HeadError(400, "a chunked request cannot ask for an upgrade: leave out the header Upgrade")
        self._raw = int(fields.get(b"content-length", b"0"))

    def on_body(self, body: bytes) -> None:
        super().on_body(body)
        if self.cycle is not self._running and self.pipeline:
            self.flow.resume_reading()
            if len(self.cycle.body) > MAX_PIPELINED_BODY:
                raise HeadError(400, "a request that was sent before the answer to the one before it is too large")

    def on_message_complete(self) -> None:
        if self._raw:
            return
        self._in_head = True
        self._head = self._fields = 0
        super().on_message_complete()

    # -- what is answered ---------------------------------------------------------------------------------------

    def on_response_complete(self) -> None:
        running = self._running
        if running is not None and running.more_body:
            self.transport.close()  # what it still sends is of no use to anybody
        following = self.pipeline[-1][0] if self.pipeline else None
        super().on_response_complete()
        if following is not None:
            self._running = following

    def send_400_response(self, msg: str) -> None:
        self._refuse(400, msg)

    def _refuse(self, status: int, message: str) -> None:
        """Answer what cannot be understood, unless that would be taken for a part of another answer."""
        if self._line.closing:
            return
        running = self._running
        at_work = running is not None and not running.response_complete
        if at_work and running is not None:
            own = running is self.cycle and running.more_body and not running.response_started
            self._abandon()
            if not own:
                self.transport.close()
                return
        self._write_error(status, message)

    def _take_no_more(self) -> None:
        """Answer the requests that are here, and close then. What still comes is read, since only so it is noticed when
        the client hangs up, and thrown away."""
        self._full = True
        self._head_is_here()
        self.cycle.keep_alive = False  # of the last one, which waits

    def _write_error(self, status: int, message: str) -> None:
        path = self.url.decode("latin-1") if self._in_request else ""
        body = refusal(path, status, message)
        head = b"HTTP/1.1 %d %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        self._line.write(head % (status, _PHRASES.get(status, b"Service Unavailable"), len(body)) + body)
        self._failed = True
        self._line.close()

    def _may_be_sending(self) -> bool:
        running = self._running
        return self._failed or self._full or (running is not None and running.more_body)

    @property
    def _in_request(self) -> bool:
        return isinstance(getattr(self, "url", None), bytes)

    # -- time for a head ----------------------------------------------------------------------------------------

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_timeout, self._head_is_late)

    def _head_is_here(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        running = self._running
        if running is not None and not running.response_complete:
            running.keep_alive = False  # its answer is finished first
        elif not self._line.closing:
            self._line.close()


def bound(limits: WireLimits) -> type[SpliceProtocol]:
    """The protocol of one server, with its limits."""
    return type("BoundSpliceProtocol", (SpliceProtocol,), {"limits": limits, "addresses": Counter()})


def limits_of(settings: GatewaySettings, connections: int) -> WireLimits:
    """The limits that settings ask for. `connections`: how many the system allows."""
    return WireLimits(
        max_head=settings.max_head,
        head_timeout=settings.head_timeout,
        connections=min(settings.max_connections, connections),
        connections_per_client=settings.max_connections_per_client,
    )
