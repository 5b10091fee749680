"""asyncio connections that are kept for the next request, and a bound on how many there are."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from math import inf
from time import monotonic

from msgspec import Struct

from llamastream.client.aconnection import AsyncConnection
from llamastream.client.pool import PoolLimits
from llamastream.client.servers import Server
from llamastream.errors import ConnectTimeoutError
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
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._in_use = 0
        self._guard: AsyncGenerator[None, None] | None = None
        self.streams_keep_alive = True

    async def _belong_to(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._loop is not loop:
            # Connections of a loop that is gone went with it, as did those who waited.
            self._loop = loop
            self._idle = []
            self._waiters = deque()
            self._in_use = 0
            self._guard = _close_with_loop(self)
            await anext(self._guard)

    async def acquire(self, deadline: float) -> tuple[AsyncConnection, bool]:
        """A connection, and whether it has been used before; a new one is not connected yet.

        Raises:
            ConnectTimeoutError: every connection was in use until the deadline.
        """
        loop = asyncio.get_running_loop()
        await self._belong_to(loop)
        if self._in_use < self._limits.connections:
            self._in_use += 1
        else:
            await self._wait(loop, deadline)
        while self._idle:
            idle = self._idle.pop()
            idle.expiry.cancel()
            if idle.connection.usable and idle.reader.complete and not idle.reader.trailing:
                return idle.connection, True
            idle.connection.abort()
        return AsyncConnection(), False

    async def _wait(self, loop: asyncio.AbstractEventLoop, deadline: float) -> None:
        waiter = loop.create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(None if deadline == inf else max(0.0, deadline - monotonic())):
                await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():
                self._pass_on()  # the place came in the same moment: give it to the next
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(error, TimeoutError):
                raise ConnectTimeoutError(
                    f"{self.server.url}: all {self._limits.connections} connections of this client were in use "
                    "(max_connections)"
                ) from None
            raise

    def _pass_on(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._in_use -= 1

    def replace(self, connection: AsyncConnection) -> AsyncConnection:
        """A new connection, not connected yet, in the place of one that turned out to be dead: nobody goes back in line
        because the server closed it."""
        connection.abort()
        return AsyncConnection()

    def release(self, connection: AsyncConnection, reader: ResponseReader | None) -> None:
        """Give a connection back after use. `reader`: of the response that came over it, if it may be kept."""
        if self._loop is None or connection.loop is not self._loop:
            connection.abort()
            return
        self._pass_on()
        is_stream = reader is not None and reader.headers.get("content-type", "").startswith("text/event-stream")
        if (
            reader is None
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
        """Close what is idle; what is in use is closed when it comes back."""
        for idle in list(self._idle):
            idle.expiry.cancel()
            idle.connection.abort()
        self._idle = []


async def _close_with_loop(pool: AsyncConnectionPool) -> AsyncGenerator[None, None]:
    """A generator that waits for ever: an event loop closes those that are open when it ends (asyncio.run does, by
    `shutdown_asyncgens`), and so a client that nobody closed leaves no connection behind."""
    try:
        yield
    finally:
        pool.close()


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
