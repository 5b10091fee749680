"""One attempt after another in asyncio, as the session says: wait until it is due, connect, send; and let go again."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from time import monotonic
from typing import Any, TypeVar

from llamastream.client.aconnection import AsyncConnection
from llamastream.client.alarm import Alarm
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.aunary import call_once
from llamastream.client.connection import LONGEST_WAIT
from llamastream.client.core import ClientCore, describe_stream
from llamastream.client.endpoints import Call
from llamastream.client.pool import Place
from llamastream.client.servers import Server
from llamastream.client.session import StreamSession
from llamastream.errors import LlamaStreamError, PoolTimeoutError
from llamastream.protocol.http1 import ResponseReader
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import StreamEvent, Timeouts

T = TypeVar("T")


class AsyncAttempts(ABC):
    """Begins attempts, with a connection of the pool; what the connection receives goes to the class that stands on
    this one."""

    def __init__(
        self,
        core: ClientCore,
        pools: Sequence[AsyncConnectionPool],
        request: GenerationRequest,
        timeouts: Timeouts | None,
    ) -> None:
        self.session: StreamSession | None = None
        self.prefer: Server | None = None  # for the first attempt
        self.queue: deque[StreamEvent | str] = deque()  # a str is a TextDelta of the first choice, in short
        self.new_future: Callable[[], asyncio.Future[str]] = asyncio.Future
        self._core = core
        self._pools = pools
        self._place: Place | None = None  # in line for a connection, or with it
        self._pool = pools[0]  # the one that the place belongs to
        self._request = request
        self._timeouts = timeouts
        self._connection: AsyncConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._alarm = Alarm()
        self._step: asyncio.Timeout | None = None  # what `close` has to end
        self._paused = False
        self._cancelled = False
        request.encoded()  # what JSON cannot express is refused now, not at the first iteration

    @abstractmethod
    def data_received(self, data: bytes) -> None:
        """The connection received something."""

    @abstractmethod
    def closed(self, error: OSError | None) -> None:
        """The connection ended: `error` is None if the server closed it in order."""

    @abstractmethod
    def close(self) -> None:
        """Nobody wants the answer any more."""

    @abstractmethod
    def _wake(self) -> None:
        """Something happened: whoever waits should look."""

    @abstractmethod
    def _arm_timer(self) -> None:
        """The session's deadline holds from now on."""

    def describe(self) -> str:
        """Endpoint and state, for people."""
        return describe_stream(self._core, self._request, self.session)

    async def open(self) -> StreamSession:
        """Connect and send; what goes wrong is kept in the session, where the reader meets it."""
        if self.session is None:
            self._loop = asyncio.get_running_loop()
            self.new_future = self._loop.create_future
            self.session = self._core.session(self._request, self._timeouts, monotonic(), self.prefer)
        while not self.session.ended and self.session.next_attempt_at is not None:
            try:
                await self._unless_left(self._attempt(self.session, self.session.next_attempt_at))
            except BaseException:
                self.close()
                raise
        return self.session

    async def _unless_left(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it, but end it at once when the stream is left: whoever reads must not wait for a connection, or for the
        answer to a question, that nobody wants any more."""
        try:
            async with asyncio.timeout(None) as self._step:
                await work
        except TimeoutError:
            if not self._cancelled:
                raise
        finally:
            self._step = None

    async def _attempt(self, session: StreamSession, begin_at: float) -> None:
        if (delay := begin_at - monotonic()) > 0 and not self._cancelled:
            self._let_go(None)  # others may go first while this one waits
            await self._wait(delay)
            return  # whoever woke us: the session says what is to be done
        if self._cancelled:
            session.cancel(monotonic())
            return
        session.prepare(monotonic())
        while not (session.ended or self._cancelled) and (errand := session.errand) is not None:
            session.errand_done(await self._ask(errand.server, errand.call, errand.timeout), monotonic())
        if session.ended:
            self.queue.extend(session.take_events())
            return
        pool = self._pools[session.server.index]
        if pool is not self._pool:
            self._let_go(None)
            self._pool = pool
        if self._connection is not None:
            connection, reused = pool.replace(self._connection), False
        else:
            self._let_go(None)
            self._place = Place()
            try:
                connection, reused = await pool.acquire(self._place, session.queue_deadline, self.close)
            except PoolTimeoutError as error:
                session.fail(error, monotonic())
                return
        self._connection = connection
        if self._cancelled:
            session.cancel(monotonic())
            self._let_go(None)
            return
        session.begin(monotonic(), reused_connection=reused)

        def made() -> None:
            if not session.ended and self._connection is connection:
                session.connected(monotonic())
                connection.send(self._to_send(session))

        try:
            if reused:
                connection.keep(self)
                made()
            else:
                limit = (
                    None if session.deadline == inf else min(LONGEST_WAIT, max(0.001, session.deadline - monotonic()))
                )
                await connection.connect(self, session.server.address, session.server.tls, limit, made)
        except LlamaStreamError as error:
            if session.next_attempt_at is None:
                session.fail(error, monotonic())
            return
        if not session.ended and session.next_attempt_at is None and self._connection is connection:
            self._arm_timer()

    def _to_send(self, session: StreamSession) -> bytes:
        return self._core.attempt_bytes(session.attempt)

    async def _wait(self, seconds: float | None) -> None:
        """Wait until something happens, `seconds` at most."""
        assert self._loop is not None
        waiter = self._waiter = self._loop.create_future()
        timer = None if seconds is None else self._loop.call_later(seconds, self._wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    async def _ask(self, server: Server, call: Call[T], timeout: float) -> T | None:
        """The answer to a short question, or None."""
        try:
            return await call_once(self._core, server, call, timeout)
        except LlamaStreamError:
            return None

    def _release(self) -> None:
        """Let go of the connection and the timer; the queue stays for the reader."""
        self._alarm.stop()
        session = self.session
        ended_well = session is not None and session.ended and session.error is None and not session.cancelled
        self._let_go(session.exchange.reader if ended_well and session is not None else None)

    def _let_go(self, reader: ResponseReader | None) -> None:
        connection, self._connection = self._connection, None
        place, self._place = self._place, None
        if connection is not None and self._paused:
            self._paused = False
            connection.resume()
        if place is not None:
            self._pool.release(place, connection, reader)
