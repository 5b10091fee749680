"""One streamed answer on its way from a server to a client: bytes as they are, as long as nothing breaks.

It is the client's own runner with another end. What is one more piece of text goes from the upstream connection's
callback straight to the client's transport, and is taken note of in passing (`protocol.steady.SteadyText`), so that the
recovery machine knows at any time what the client has. Everything else is read in full, and forwarded up to the last
whole event. After a break in the middle the rest comes as typed events, and is written anew
(`gateway.frames.Continuation`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from time import monotonic
from typing import Any, Protocol

from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.arunner import AsyncRunner
from llamastream.client.core import ClientCore
from llamastream.client.servers import Server
from llamastream.client.session import StreamSession
from llamastream.errors import (
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    LlamaStreamError,
    UnavailableError,
)
from llamastream.gateway.asgi import Send
from llamastream.gateway.frames import DONE, WAITING, Continuation, chunk, unchunked
from llamastream.gateway.outlet import Outlet
from llamastream.protocol.requests import CHAT_PATH, GenerationRequest
from llamastream.types import TextDelta, Timeouts

SIGN_OF_LIFE = 10.0
"""Seconds without anything to write, while a client waits for its first token, after which it gets a comment."""
ATTEMPTS = 8
"""Attempts of a request that waits in line before each, and of which its client has nothing yet, where its servers went
away or are not up."""
BACKLOG = 1 << 20
"""Bytes that wait for a client which reads too slowly, before its server is made to wait as well."""

HEADERS = [
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),
]


class Lease(Protocol):
    """A slot (see `gateway.admission.Lease`)."""

    server: Server | None
    waited: float
    placed: bool
    failures: int

    def slot_at(self, server: Server) -> int | None: ...
    def at(self, server: Server) -> None: ...
    def begun(self) -> None: ...
    async def again(self, sign: Callable[[], Awaitable[None]] | None, sign_every: float) -> None: ...


def comes_back(error: LlamaStreamError) -> bool:
    """Whether a request of which its client has nothing yet goes back into the line: its server went away, or is not
    up yet, so that the request was not the reason."""
    if isinstance(error, UnavailableError):
        return error.status == 503
    return isinstance(error, ConnectError | ConnectTimeoutError | ConnectionLostError)


class RawRequest(GenerationRequest, frozen=True):
    """A request as its client sent it: what goes out first are its own bytes."""

    raw: bytes = b""
    via: str = ""

    def encoded(self) -> bytes:
        return self.raw

    def headers(self) -> dict[str, str]:
        return {"Via": self.via} if self.via else {}


class Relay(AsyncRunner):
    """Runs one streamed request for one client.

    Attributes:
        began: the response has begun, so that an error can only be told inside of it. events: not counted here.
        lease: the slot that it uses.
    """

    events = 0

    def __init__(
        self,
        core: ClientCore,
        pools: Sequence[AsyncConnectionPool],
        request: GenerationRequest,
        timeouts: Timeouts | None,
        send: Send,
        outlet: Outlet | None,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(core, pools, request, timeouts)
        self.began = False
        self.lease: Lease | None = None
        self._fault: Exception | None = None  # our own
        self._early = False
        self._sign: asyncio.TimerHandle | None = None
        self._send = send
        self._outlet = outlet
        self._headers = [*HEADERS, *headers]
        self._direct: Callable[[bytes], object] | None = None
        self._flow: Any = None
        self._continuation: Continuation | None = None  # set: the client has content, and the rest is written anew
        self._held = bytearray()  # bytes of the body behind the last whole event
        self._out = bytearray()  # whole events that wait to be written
        self._exchange: object = None

    # -- the client's side ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until the answer is with the client, or the client is gone.

        Raises:
            LlamaStreamError: what ended the stream; if `began`, it has to be told inside the response.
        """
        self._expect_silence()
        if self.lease is not None:
            self.prefer = self.lease.server
        try:
            while True:
                began = monotonic()
                try:
                    await self._answer()
                    break
                except LlamaStreamError as error:
                    if not self._may_begin_anew(error):
                        raise
                await self._begin_anew(began)
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        except asyncio.CancelledError:
            self.close()  # wherever that was: the server must not go on for nobody
            raise
        finally:
            self._direct = None
            self._expect_no_silence()

    async def _answer(self) -> None:
        lease = self.lease
        more = True
        while more:
            more = await self.advance()
            if self._fault is not None:
                raise self._fault
            if lease is not None and self.session is not None:
                lease.at(self.session.server)
            await self._write()

    def _may_begin_anew(self, error: LlamaStreamError) -> bool:
        session, lease = self.session, self.lease
        if session is None or session.has_content or lease is None or not lease.placed or self._cancelled:
            return False
        return comes_back(error) and lease.failures + 1 < ATTEMPTS

    async def _begin_anew(self, began: float) -> None:
        """The client has nothing yet, and no server could be reached: back into the line, and all from the start."""
        lease = self.lease
        assert lease is not None
        self._let_go(None)
        await lease.again(self.sign, SIGN_OF_LIFE)
        lease.waited += monotonic() - began
        self.session, self.steady, self._exchange, self._direct = None, None, None, None
        for held in (self.queue, self._held, self._out):
            held.clear()
        self.prefer = lease.server

    async def _attempt(self, session: StreamSession, begin_at: float) -> None:
        lease, planner = self.lease, session.planner
        if lease is not None and planner.wants_slot and begin_at <= monotonic() and not self._cancelled:
            # A generation begins: it takes its turn as everybody's does, where there is a slot.
            began = monotonic()
            self._let_go(None)
            await lease.again(self.sign, SIGN_OF_LIFE)
            planner.go_to(lease.server, monotonic() - began)
        await super()._attempt(session, begin_at)

    def _to_send(self, session: StreamSession) -> bytes:
        slot = None if self.lease is None else self.lease.slot_at(session.server)
        return self._core.attempt_bytes(session.attempt, slot)

    async def sign(self) -> None:
        """The client hears that we are there; an error has to be told inside of the response from now on."""
        if not self.began:
            await self.begin()
        await self._send({"type": "http.response.body", "body": WAITING, "more_body": True})

    async def begin(self) -> None:
        """Send the response's header."""
        self.began = True
        await self._send({"type": "http.response.start", "status": 200, "headers": self._headers})

    async def _write(self) -> None:
        """Write what there is, once the first content is here; from then on the upstream connection writes itself."""
        session = self.session
        if session is None:
            return
        if session.next_attempt_at is not None and self._continuation is None and session.has_content:
            self._broke([])  # a clock ran out
        if self._continuation is not None:
            items = [TextDelta(item) if isinstance(item, str) else item for item in self.queue]
            self.queue.clear()
            self._out += self._continuation.write(items)
        else:
            self.queue.clear()  # their bytes are forwarded
        if session.ended and session.error is not None and not self.began:
            return  # it becomes a plain response
        if session.has_content and self._sign is not None and session.planner.broken is None:
            self._expect_no_silence()
            if self.lease is not None:
                self.lease.begun()
        if self._early:
            self._early = False
            await self.sign()
        if not (self._out and (session.has_content or session.ended)):
            return  # another attempt would begin anew
        outlet = self._outlet
        if self.began or outlet is None:
            await self._write_out()
        else:
            outlet.transport.hold()  # the header and the first content are one piece for the client's system, too
            try:
                await self._write_out()
            finally:
                outlet.transport.release()
        if outlet is not None and outlet.open and self._continuation is None and not session.ended:
            self._flow = outlet.flow
            self._direct = outlet.transport.write

    async def _write_out(self) -> None:
        if not self.began:
            await self.begin()
        while self._out:
            body, self._out = bytes(self._out), bytearray()
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    def _expect_silence(self) -> None:
        """As long as there is no content, say now and then that we are there. Nothing that could still be tried
        elsewhere is lost by that."""
        self._sign = asyncio.get_running_loop().call_later(SIGN_OF_LIFE, self._give_sign)

    def _expect_no_silence(self) -> None:
        self._early = False
        if self._sign is not None:
            self._sign.cancel()
            self._sign = None

    def _give_sign(self) -> None:
        if not self._cancelled:
            self._early = True
            self._expect_silence()
            self._wake()

    # -- the server's side --------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        steady = self.steady
        direct = self._direct
        if direct is not None and steady is not None:
            now = monotonic()
            if steady.take(data, now) is not None:
                # what follows is written out here, although `_hand_through` says the same: it is done for each token
                if self._flow.write_paused:
                    self._wait_for_client(data)
                    return
                try:
                    direct(data)
                except RuntimeError:
                    self._direct = None
                return
            if taken := steady.take_several(data, now):
                self._hand_through(direct, data[:taken])
                data = data[taken:]
                if not data:
                    return
        try:
            self._take_the_long_way(data)
        except Exception as fault:  # noqa: BLE001 - as in `closed`
            self._failed(fault)

    def _hand_through(self, direct: Callable[[bytes], object], data: bytes) -> None:
        """Write whole chunks as they are."""
        if self._flow.write_paused:
            self._wait_for_client(data)
            return
        try:
            direct(data)
        except RuntimeError:  # uvloop's word for a connection that was closed a moment ago: nobody reads any more
            self._direct = None

    def _take_the_long_way(self, data: bytes) -> None:
        session = self.session
        if session is None or session.ended or session.next_attempt_at is not None:
            return
        if self._continuation is not None:
            super()._take_the_long_way(data)
            return
        exchange = session.exchange
        if exchange is not self._exchange:  # another attempt, before the client had anything
            self._exchange = exchange
            self._held.clear()
            self._out.clear()
        before = exchange.event_boundary or 0
        now = monotonic()
        events = session.feed(data, now)
        self.steady = exchange.steady
        self._held += b"".join(exchange.bodies)
        if session.next_attempt_at is not None or session.error is not None:
            self._broke(events)
        else:
            after = len(self._held) if session.ended else (exchange.event_boundary or 0) - before
            self._forward(bytes(self._held[:after]))
            del self._held[:after]
        self._taken()

    def closed(self, error: OSError | None) -> None:
        try:
            self._closed(error)
        except Exception as fault:  # noqa: BLE001 - nobody but the reader could tell the client
            self._failed(fault)

    def _failed(self, fault: Exception) -> None:
        self._fault = fault
        self._wake()

    def _closed(self, error: OSError | None) -> None:
        session = self.session
        if session is not None and not session.ended and session.next_attempt_at is None:
            super().closed(error)
            if session.next_attempt_at is not None and self._continuation is None:
                self._broke([])
                self.queue.clear()
            elif session.ended and session.error is None and self._continuation is None:
                self._out += DONE  # all that was asked for is here, but for the mark of the end

    def _broke(self, events: Sequence[Any]) -> None:
        """The stream broke. If the client has content, what follows is written anew; else it begins anew."""
        session = self.session
        assert session is not None
        self._direct = None
        self._held.clear()
        if not session.has_content:
            self._out.clear()
            return
        if self._sign is None:
            self._expect_silence()
        answer = session.result()
        options = self._request.body.get("stream_options")
        self._continuation = Continuation(
            chat=self._request.path == CHAT_PATH,
            id=answer.id,
            created=answer.created,
            model=answer.model,
            fingerprint=answer.system_fingerprint,
            usage=isinstance(options, dict) and bool(options.get("include_usage")),
        )
        self.queue.extend(events)  # of the same read as the failure: their bytes were not forwarded

    def _forward(self, body: bytes) -> None:
        if not body:
            return
        direct = self._direct
        if direct is not None and not self._out and not self._flow.write_paused:
            with contextlib.suppress(RuntimeError):  # as above
                direct(chunk(body))
        else:
            self._direct = None  # until this is written: what comes next must not overtake it
            self._out += body

    def _wait_for_client(self, data: bytes) -> None:
        """The client reads too slowly: what comes is kept for it, up to a bound, and written when it reads again."""
        self._direct = None
        self._out += unchunked(data)
        self._wake()

    def _taken(self) -> None:
        if self._continuation is None:
            self.queue.clear()
        super()._taken()
        session = self.session
        if len(self._out) > BACKLOG and not self._paused and self._connection is not None and session is not None:
            self._paused = True
            session.exchange.rest()
            self._connection.pause()
