"""One answer that is made once, and read by any number of clients, each from where it wants.

It takes what a runner sends, in the place of a client, and keeps the body in a journal: all of it, up to a bound, from
which on the beginning is given up, as llama-server's own ring does. It runs as long as somebody wants it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from llamastream.errors import LlamaStreamError
from llamastream.gateway.asgi import Send
from llamastream.gateway.frames import chunk, unchunked
from llamastream.gateway.outlet import Outlet
from llamastream.gateway.passage import broken_stream
from llamastream.gateway.refusals import refusal, respond

Headers = Sequence[tuple[bytes, bytes]]

logger = logging.getLogger("llamastream.gateway")

PIECE = 64 * 1024
"""Bytes that are handed to a client at once."""
BEHIND = 1 << 20
"""Bytes that the slowest client which is there may be behind, before the server is made to wait."""
OVERHEAD = 2048
"""Bytes that an answer is taken to need besides its body."""


class OffsetLostError(LookupError):
    """What was asked for is not kept any more."""


class Reader:
    """Somebody who reads. `offset`: what comes next for them. `left`: they are to get no more. `live`: the way past
    ASGI to them, while they have all that there is and wait for more."""

    __slots__ = ("left", "live", "offset")

    def __init__(self, offset: int = 0) -> None:
        self.offset = offset
        self.left = False
        self.live: Outlet | None = None

    def write(self, frame: bytes, size: int) -> None:
        """HTTP chunks with so many bytes of the body, that come next, if they can be taken now."""
        live = self.live
        if live is not None and live.open and not live.flow.write_paused:
            self.offset += size
            with contextlib.suppress(RuntimeError):  # uvloop's word for a connection that was closed a moment ago
                live.transport.write(frame)


class Broadcast:
    """One answer. Belongs to one event loop.

    Attributes:
        status, headers: of the response; 0 before it began. body: what is kept of it. dropped: bytes before that.
        ended: nothing more will come. cut: it was ended by nobody wanting it.
        heed: told of each message that the work sends, but for what goes past ASGI.
        holds: how many want it besides those who read. whole: nothing of it was dropped.
    """

    def __init__(self, path: str, limit: int, account: Callable[[int], None] = lambda size: None) -> None:
        """`path`: what was asked. `limit`: bytes that are kept. `account`: told of each change of what is kept."""
        self.status = 0
        self.headers: Headers = ()
        self.body = bytearray()
        self.dropped = 0
        self.ended = False
        self.cut = False
        self.holds = 0
        self.readers: set[Reader] = set()
        self.heed: Callable[[dict[str, Any]], None] = lambda message: None
        self.on_end: list[Callable[[Broadcast], None]] = []
        self._path = path
        self._limit = limit
        self._account = account
        self._accounted = OVERHEAD
        self._waiters: list[asyncio.Future[None]] = []
        self._task: asyncio.Task[None] | None = None
        account(OVERHEAD)

    @property
    def outlet(self) -> Outlet:
        """The way past ASGI into it."""
        return Inlet(self)

    @property
    def end(self) -> int:
        """Bytes of the body so far."""
        return self.dropped + len(self.body)

    @property
    def whole(self) -> bool:
        return not self.dropped

    @property
    def behind(self) -> int:
        """Bytes that the slowest reader has yet to get."""
        return max((self.end - reader.offset for reader in self.readers), default=0)

    # -- the side of the work -----------------------------------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """Have the work done that sends to `take`, whoever reads."""
        self._task = asyncio.ensure_future(self._work(work))
        self._task.add_done_callback(lambda _: work.close())  # if it was cancelled before it began
        return self._task

    async def _work(self, work: Coroutine[Any, Any, object]) -> None:
        try:
            await work
        except Exception:
            logger.exception("a request to %s failed", self._path)
            await self._apologise()
        finally:
            if not self.ended:
                self._end(cut=True)

    async def _apologise(self) -> None:
        message = "the gateway failed at this request; its log says why"
        if not self.status:
            await respond(self.take, 500, refusal(self._path, 500, message))
        elif not self.ended:
            body = broken_stream(self._path, LlamaStreamError(message, status=500))
            await self.take({"type": "http.response.body", "body": body, "more_body": False})

    async def take(self, message: dict[str, Any]) -> None:
        """What would be sent to a client."""
        if self.ended:
            return
        self.heed(message)
        if message["type"] == "http.response.start":
            self.status, self.headers = message["status"], tuple(message.get("headers", ()))
            self._tell()
            return
        if body := message.get("body"):
            self.append(body)
        if not message.get("more_body", False):
            self._end(cut=False)
        while self.behind > BEHIND and not self.ended:
            await self._news()

    def append(self, body: bytes, frame: bytes | None = None) -> None:
        """More of the body. `frame`: the same as HTTP chunks, if it is there already."""
        if self.ended:
            return  # what still came while it was being ended
        size, end, late = len(body), self.end, False
        for reader in self.readers:
            if reader.live is not None and reader.offset == end:
                frame = frame or chunk(body)
                reader.write(frame, size)
            late = late or reader.offset < end + size
        self.body += body
        self._account(size)
        self._accounted += size
        if len(self.body) > self._limit:
            self.trim(self._limit)
        if late:
            self._tell()

    def trim(self, keep: int) -> None:
        """Give up the beginning beyond so many bytes, but nothing that somebody who is there has yet to get."""
        size = min(len(self.body) - keep, len(self.body) - self.behind)
        if size > 0:
            del self.body[:size]
            self.dropped += size
            self._accounted -= size
            self._account(-size)

    def _end(self, *, cut: bool) -> None:
        self.ended, self.cut = True, cut
        self._task = None
        self._tell()
        listeners, self.on_end = self.on_end, []  # which may refer to this
        for listener in listeners:
            listener(self)

    # -- the side of the clients --------------------------------------------------------------------------------

    def attach(self, offset: int = 0) -> Reader:
        """Somebody will `read` from this byte on; until then nothing behind it is given up.

        Raises:
            OffsetLostError: that is gone already.
        """
        if offset < self.dropped:
            raise OffsetLostError
        reader = Reader(offset)
        self.readers.add(reader)
        return reader

    async def read(self, reader: Reader, send: Send, past: Callable[[], Outlet | None] = lambda: None) -> None:
        """Send all that there is and will be, until it ends or the reader leaves.

        Args:
            past: the way past ASGI to the reader, if it may be taken; asked once it began.
        """
        try:
            while not (self.status or self.ended or reader.left):
                await self._news()
            if self.status not in (0, 200):
                reader.offset = self.dropped  # an error is told from its beginning
            own = self.headers if self.status else ((b"content-type", b"text/event-stream"),)
            await send({"type": "http.response.start", "status": self.status or 200, "headers": [*own]})
            live = past()
            while not reader.left:
                start = reader.offset - self.dropped
                if piece := bytes(self.body[start : start + PIECE]) if start >= 0 else b"":
                    reader.offset += len(piece)
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                    if self._waiters and self.behind <= BEHIND:
                        self._tell()
                elif self.ended:
                    break
                else:
                    reader.live = live
                    await self._news()
                    reader.live = None
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            self.detach(reader)

    def detach(self, reader: Reader) -> None:
        """They are gone, or are to go. Idempotent."""
        reader.left = True
        reader.live = None
        if reader in self.readers:
            self.readers.discard(reader)
            self._tell()
            self._look()

    def release(self) -> None:
        """One of the `holds` is given up."""
        self.holds -= 1
        self._look()

    def _look(self) -> None:
        """Whether anybody still wants it."""
        if self.readers or self.holds:
            return
        self.abandon()
        if self._accounted:
            self._account(-self._accounted)
            self._accounted = 0

    def abandon(self) -> None:
        """End the work; idempotent."""
        if self.ended:
            return
        if self._task is not None:
            self._task.cancel()
        self._end(cut=True)

    # -- news ---------------------------------------------------------------------------------------------------

    def _tell(self) -> None:
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def _news(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        await waiter


class Inlet:
    """The way past ASGI into a broadcast, where a `gateway.wire.Splice` leads to a client's transport; it is its own
    flow control and transport."""

    __slots__ = ("_broadcast",)

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast

    @property
    def open(self) -> bool:
        """Frames may be written."""
        return self._broadcast.status == 200 and not self._broadcast.ended

    @property
    def flow(self) -> Inlet:
        return self

    @property
    def transport(self) -> Any:
        return self

    @property
    def write_paused(self) -> bool:
        """The clients are too far behind."""
        broadcast = self._broadcast
        # nobody is further behind than all there is, which is known at once
        return len(broadcast.body) > BEHIND and broadcast.behind > BEHIND

    def hold(self) -> None:
        """What is sent at once is in one read anyway."""

    def release(self) -> None:
        """See `hold`."""

    def write(self, frame: bytes) -> None:
        """One HTTP chunk, or several."""
        self._broadcast.append(unchunked(frame), frame)
