"""asyncio connections that are kept for the next request, and a bound on how many there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from math import inf
from time import monotonic

from msgspec import Struct

from llamastream.client.aconnection import AsyncConnection
from llamastream.client.pool import Place, PoolLimits, all_in_use
from llamastream.client.servers import Server
from llamastream.protocol.http1 import ResponseReader


class _Idle(Struct):
    connection: AsyncConnection
    reader: ResponseReader
    expiry: asyncio.TimerHandle


class AsyncConnectionPool:
    """The connections of one client to one server. Belongs to one event loop at a time; in another it starts anew."""

    def __init__(self, server: Server, limits: PoolLimits) -> None:
        self.server = server
        self._limits = limits
        self._loop: asyncio.AbstractEventLoop | None = None
        self._idle: list[_Idle] = []
        self._places: set[Place] = set()
        self._line: deque[tuple[Place, asyncio.Future[None]]] = deque()
        self._leave: dict[Place, Callable[[], None]] = {}
        self._closed = False
        self._guard: AsyncGenerator[None, None] | None = None
        self.streams_keep_alive = True

    async def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            # Connections of a loop that is gone went with it, as did those who waited.
            self._loop = loop
            self._idle = []
            self._places = set()
            self._line = deque()
            self._leave = {}
            self.server.waiting = 0
            self._guard = _close_with_loop(self)
            await anext(self._guard)

    async def acquire(self, place: Place, deadline: float, leave: Callable[[], None]) -> tuple[AsyncConnection, bool]:
        """A connection, and whether it has been used before; a new one is not connected yet.

        Whatever comes of it, `release` is to be called once it is not needed any more. `leave` is called where the
        event loop ends before that: no task need be there that would notice.

        Raises:
            PoolTimeoutError: every connection was in use until the deadline.
        """
        acquired = await self.acquire_now(place)
        self._leave[place] = leave
        if acquired is not None:
            return acquired
        began = monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append((place, turn))
        self.server.waiting = len(self._line)
        try:
            async with asyncio.timeout(None if deadline == inf else max(0.0, deadline - monotonic())):
                await turn
        except BaseException as error:
            self.release(place, None, None)  # it may have come in the same moment
            if isinstance(error, TimeoutError):
                raise all_in_use(self.server, self._limits, monotonic() - began) from None
            raise
        return self._connection()

    async def acquire_now(self, place: Place) -> tuple[AsyncConnection, bool] | None:
        """As `acquire`, without a wait: None if all are in use."""
        await self._belong_to(asyncio.get_running_loop())
        if self._line or len(self._places) >= self._limits.connections:
            return None
        self._places.add(place)
        return self._connection()

    def _connection(self) -> tuple[AsyncConnection, bool]:
        while self._idle:
            idle = self._idle.pop()
            idle.expiry.cancel()
            if idle.connection.usable and idle.reader.complete and not idle.reader.trailing:
                return idle.connection, True
            idle.connection.abort()
        return AsyncConnection(), False

    def _give_back(self, place: Place) -> None:
        """A place is free, or one that stood in line has left it."""
        if place in self._places:
            self._places.remove(place)
        else:
            self._line = deque(each for each in self._line if each[0] is not place)
        while self._line and len(self._places) < self._limits.connections:
            following, turn = self._line.popleft()
            if not turn.done():  # else it was cancelled, and is about to leave
                self._places.add(following)
                turn.set_result(None)
        self.server.waiting = len(self._line)

    def replace(self, connection: AsyncConnection) -> AsyncConnection:
        """A new connection, not connected yet, in the place of one that turned out to be dead: nobody goes back in line
        because the server closed it."""
        connection.abort()
        return AsyncConnection()

    def release(self, place: Place, connection: AsyncConnection | None, reader: ResponseReader | None) -> None:
        """Give a place back, and the connection, if it came to one; a second time has no effect.

        `reader`: of the response that came over the connection, if that may be kept.
        """
        self._leave.pop(place, None)
        ours = place in self._places  # not if it was got in a loop before this one
        self._give_back(place)
        if connection is None:
            return
        is_stream = reader is not None and reader.headers.get("content-type", "").startswith("text/event-stream")
        if (
            self._loop is None
            or connection.loop is not self._loop
            or self._closed
            or not ours
            or reader is None
            or not (reader.header_complete and reader.keep_alive)
            or reader.trailing
            or not connection.usable
            or (is_stream and not self.streams_keep_alive)
        ):
            connection.abort()
            return
        timer = self._loop.call_later(self._limits.idle_seconds, self._expire, connection)
        self._idle.append(_Idle(connection, reader, timer))
        connection.keep(_Watch(self, connection, reader, is_stream))
        while len(self._idle) > self._limits.idle:
            self._expire(self._idle[0].connection)

    def _expire(self, connection: AsyncConnection) -> None:
        for idle in self._idle:
            if idle.connection is connection:
                self._idle.remove(idle)
                idle.expiry.cancel()
                break
        connection.abort()

    def closed_while_idle(self, connection: AsyncConnection, is_stream: bool) -> None:
        """The server closed a connection that was kept."""
        if is_stream:
            # llama-server announces keep-alive and closes after every stream: seen once, it is believed no more.
            self.streams_keep_alive = False
        self._expire(connection)

    def close(self) -> None:
        """Close what is idle; what is in use, or is used from now on, is closed when it comes back."""
        self._closed = True
        self.close_idle()

    def close_idle(self) -> None:
        """Close what is idle."""
        for idle in list(self._idle):
            idle.expiry.cancel()
            idle.connection.abort()
        self._idle = []

    def loop_ends(self) -> None:
        """Close what is idle, and leave what is in use."""
        self.close_idle()
        for leave in list(self._leave.values()):
            leave()


async def _close_with_loop(pool: AsyncConnectionPool) -> AsyncGenerator[None, None]:
    """A generator that waits for ever: an event loop closes those that are open when it ends (asyncio.run does, by
    `shutdown_asyncgens`), and so neither a client that nobody closed nor a stream that outlives its loop leaves a
    connection behind."""
    try:
        yield
    finally:
        pool.loop_ends()


class _Watch:
    """Receives what comes over an idle connection: the last bytes of the response, or its end."""

    def __init__(
        self, pool: AsyncConnectionPool, connection: AsyncConnection, reader: ResponseReader, is_stream: bool
    ) -> None:
        self._pool = pool
        self._connection = connection
        self._reader = reader
        self._is_stream = is_stream

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._reader.trailing or self._reader.failure is not None:
            self._pool.closed_while_idle(self._connection, self._is_stream)

    def closed(self, error: OSError | None) -> None:
        self._pool.closed_while_idle(self._connection, self._is_stream)
