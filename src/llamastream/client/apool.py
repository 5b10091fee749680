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


class _LoopState:
    """What belongs to one event loop: idle connections, places, and those in line, with how to make them leave."""

    __slots__ = ("guard", "idle", "leave", "line", "loop", "places")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.idle: list[_Idle] = []
        self.places: set[Place] = set()
        self.line: deque[tuple[Place, asyncio.Future[None]]] = deque()
        self.leave: dict[Place, Callable[[], None]] = {}
        self.guard: AsyncGenerator[None, None] | None = None


class AsyncConnectionPool:
    """The connections of one client to one server. Each event loop that uses the client has its own, with its own
    bound: several may run at the same time, each in a thread."""

    def __init__(self, server: Server, limits: PoolLimits) -> None:
        self.server = server
        self._limits = limits
        self._states: dict[asyncio.AbstractEventLoop, _LoopState] = {}
        self._owners: dict[Place, _LoopState] = {}
        self._closed = False
        self.streams_keep_alive = True

    async def _here(self) -> _LoopState:
        """The state of the loop that runs."""
        loop = asyncio.get_running_loop()
        state = self._states.get(loop)
        if state is None:
            # Connections of a loop that is gone went with it, as did those who waited.
            for known in list(self._states):
                if known.is_closed():
                    self._forget(self._states[known])
            state = self._states[loop] = _LoopState(loop)
            state.guard = _close_with_loop(self, state)
            await anext(state.guard)
        return state

    def _forget(self, state: _LoopState) -> None:
        self._states.pop(state.loop, None)
        for place in (*state.places, *(place for place, _ in state.line)):
            self._owners.pop(place, None)

    @property
    def _line(self) -> list[Place]:
        """All who are in line."""
        return [place for state in list(self._states.values()) for place, _ in list(state.line)]

    @property
    def _places(self) -> set[Place]:
        """All places that are taken."""
        return {place for state in list(self._states.values()) for place in list(state.places)}

    async def acquire(self, place: Place, deadline: float, leave: Callable[[], None]) -> tuple[AsyncConnection, bool]:
        """A connection, and whether it has been used before; a new one is not connected yet.

        Whatever comes of it, `release` is to be called once it is not needed any more. `leave` is called where the
        event loop ends before that: no task need be there that would notice.

        Raises:
            PoolTimeoutError: every connection was in use until the deadline.
        """
        acquired = await self.acquire_now(place)
        state = await self._here()
        state.leave[place] = leave
        if acquired is not None:
            return acquired
        began = monotonic()
        turn: asyncio.Future[None] = state.loop.create_future()
        state.line.append((place, turn))
        self._owners[place] = state
        self.server.waiting = len(self._line)
        try:
            async with asyncio.timeout(None if deadline == inf else max(0.0, deadline - monotonic())):
                await turn
        except BaseException as error:
            self.release(place, None, None)  # it may have come in the same moment
            if isinstance(error, TimeoutError):
                raise all_in_use(self.server, self._limits, monotonic() - began) from None
            raise
        return self._connection(state)

    async def acquire_now(self, place: Place) -> tuple[AsyncConnection, bool] | None:
        """As `acquire`, without a wait: None if all are in use."""
        state = await self._here()
        if state.line or len(state.places) >= self._limits.connections:
            return None
        state.places.add(place)
        self._owners[place] = state
        return self._connection(state)

    @staticmethod
    def _connection(state: _LoopState) -> tuple[AsyncConnection, bool]:
        while state.idle:
            idle = state.idle.pop()
            idle.expiry.cancel()
            if idle.connection.usable and idle.reader.complete and not idle.reader.trailing:
                return idle.connection, True
            idle.connection.abort()
            idle.reader.leave()
        return AsyncConnection(), False

    def _give_back(self, state: _LoopState, place: Place) -> None:
        """A place is free, or one that stood in line has left it."""
        if place in state.places:
            state.places.remove(place)
        else:
            state.line = deque(each for each in state.line if each[0] is not place)
        while state.line and len(state.places) < self._limits.connections:
            following, turn = state.line.popleft()
            if not turn.done():  # else it was cancelled, and is about to leave
                state.places.add(following)
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
        state = self._owners.pop(place, None)
        if state is None:  # given back before, or got in a loop that is gone
            if connection is not None:
                connection.abort()
            return
        state.leave.pop(place, None)
        ours = place in state.places
        self._give_back(state, place)
        if connection is None:
            return
        is_stream = reader is not None and reader.headers.get("content-type", "").startswith("text/event-stream")
        if (
            connection.loop is not state.loop
            or self._closed
            or not ours
            or reader is None
            or not (reader.header_complete and reader.keep_alive)
            or reader.trailing
            or not connection.usable
            or (is_stream and not self.streams_keep_alive)
        ):
            connection.abort()
            if reader is not None:
                reader.leave()
            return
        timer = state.loop.call_later(self._limits.idle_seconds, self._expire, state, connection)
        state.idle.append(_Idle(connection, reader, timer))
        connection.keep(_Watch(self, state, connection, reader, is_stream))
        while len(state.idle) > self._limits.idle:
            self._expire(state, state.idle[0].connection)

    @staticmethod
    def _expire(state: _LoopState, connection: AsyncConnection) -> None:
        for idle in state.idle:
            if idle.connection is connection:
                state.idle.remove(idle)
                idle.expiry.cancel()
                idle.reader.leave()
                break
        connection.abort()

    def closed_while_idle(self, state: _LoopState, connection: AsyncConnection, is_stream: bool) -> None:
        """The server closed a connection that was kept."""
        if is_stream:
            # llama-server announces keep-alive and closes after every stream: seen once, it is believed no more.
            self.streams_keep_alive = False
        self._expire(state, connection)

    def close(self) -> None:
        """Close what is idle; what is in use, or is used from now on, is closed when it comes back."""
        self._closed = True
        for state in list(self._states.values()):
            self._close_idle(state)

    @staticmethod
    def _close_idle(state: _LoopState) -> None:
        for idle in list(state.idle):
            idle.expiry.cancel()
            idle.connection.abort()
        state.idle = []

    def loop_ends(self, state: _LoopState) -> None:
        """Close what is idle, and leave what is in use."""
        self._close_idle(state)
        for leave in list(state.leave.values()):
            leave()
        self._forget(state)


async def _close_with_loop(pool: AsyncConnectionPool, state: _LoopState) -> AsyncGenerator[None, None]:
    """A generator that waits for ever: an event loop closes those that are open when it ends (asyncio.run does, by
    `shutdown_asyncgens`), and so neither a client that nobody closed nor a stream that outlives its loop leaves a
    connection behind."""
    try:
        yield
    finally:
        pool.loop_ends(state)


class _Watch:
    """Receives what comes over an idle connection: the last bytes of the response, or its end."""

    def __init__(
        self,
        pool: AsyncConnectionPool,
        state: _LoopState,
        connection: AsyncConnection,
        reader: ResponseReader,
        is_stream: bool,
    ) -> None:
        self._pool = pool
        self._state = state
        self._connection = connection
        self._reader = reader
        self._is_stream = is_stream

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        if self._reader.trailing or self._reader.failure is not None:
            self._pool.closed_while_idle(self._state, self._connection, self._is_stream)

    def closed(self, error: OSError | None) -> None:
        self._pool.closed_while_idle(self._state, self._connection, self._is_stream)
