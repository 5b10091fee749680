"""The runner of a stream in asyncio: connects, sends, receives, waits, tries again."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from math import inf
from time import monotonic
from typing import Any, TypeVar

from llamastream.client import endpoints
from llamastream.client.aconnection import AsyncConnection
from llamastream.client.alarm import Alarm
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.aunary import call_once
from llamastream.client.connection import LONGEST_WAIT
from llamastream.client.core import ClientCore, describe_stream
from llamastream.client.endpoints import Call
from llamastream.client.oserrors import connection_lost
from llamastream.client.pool import Place
from llamastream.client.servers import Server
from llamastream.client.session import StreamSession
from llamastream.client.unary import LOOK_TIMEOUT
from llamastream.errors import LlamaStreamError, PoolTimeoutError
from llamastream.protocol.http1 import ResponseReader
from llamastream.protocol.requests import GenerationRequest
from llamastream.protocol.steady import SteadyText
from llamastream.types import StreamEvent, TextDelta, Timeouts

T = TypeVar("T")

_HIGH_WATER = 1024
"""So many events wait for the reader before the connection is paused."""


class AsyncRunner:
    """Connects, sends, receives, and queues events for the reader.

    Apart from `AsyncStream`, and referred to by transport and timer, so that a stream which is dropped without `close`
    is noticed: nothing but its reader refers to the stream itself.
    """

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
        # These three are for a reader that waits for one more piece of text and for nothing else (`astream._Texts`).
        self.steady: SteadyText | None = None
        self.text_waiter: asyncio.Future[str] | None = None
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
        self._errand: asyncio.Task[None] | None = None
        self._step: asyncio.Timeout | None = None  # what `close` has to end
        self._paused = False
        self._cancelled = False
        request.encoded()  # what JSON cannot express is refused now, not at the first iteration

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
                connection.send(self._core.attempt_bytes(session.attempt))

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

    async def next_event(self) -> StreamEvent | None:
        """The next event, or None at the end; raises what ended the stream, if it did not end well."""
        item = await self.next_item()
        return TextDelta(item) if isinstance(item, str) else item

    async def next_item(self) -> StreamEvent | str | None:
        """As `next_event`, with plain text as `str`."""
        queue = self.queue
        while not queue:
            if not await self.advance():
                return None
        return queue.popleft()

    async def advance(self) -> bool:
        """Do what is to be done next: begin an attempt, or wait until something happens; False at the end.

        Raises:
            LlamaStreamError: what ended the stream, if it did not end well.
        """
        session = self.session
        if session is None or session.next_attempt_at is not None:
            await self.open()
            return True
        if session.ended:
            self._release()
            if session.error is not None:
                raise session.error
            return False
        if self._paused and self._connection is not None:
            self._paused = False
            session.reader_waited(monotonic())
            self._connection.resume()
        try:
            if session.wants_slots(monotonic()):
                await self._unless_left(self._look_at_slots(session))
            else:
                await self._wait(None)
        except asyncio.CancelledError:
            self.close()
            raise
        return True

    async def next_text(self) -> str:
        """The next piece of text of the first choice.

        Raises:
            StopAsyncIteration: the stream has ended well. LlamaStreamError: it has not.
        """
        queue = self.queue
        while True:
            item = queue.popleft() if queue else await self.next_item()
            if isinstance(item, str):
                return item
            if type(item) is TextDelta:
                if item.index == 0:
                    return item.text
            elif item is None:
                raise StopAsyncIteration

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

    async def _look_at_slots(self, session: StreamSession) -> None:
        slots = await self._ask(session.server, endpoints.slots(), LOOK_TIMEOUT)
        session.slots_seen(slots, monotonic())
        self.queue.extend(session.take_events())
        if not session.ended and session.next_attempt_at is None:
            self._arm_timer()

    async def _ask(self, server: Server, call: Call[T], timeout: float) -> T | None:
        """The answer to a short question, or None."""
        try:
            return await call_once(self._core, server, call, timeout)
        except LlamaStreamError:
            return None

    # -- callbacks of the connection and the timer --------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        # Called by the event loop itself. As long as a read is one more piece of text, this is all that happens.
        steady = self.steady
        text = None if steady is None else steady.take(data, monotonic())
        if text is None:
            self._take_the_long_way(data)
            return
        waiter = self.text_waiter
        if waiter is None:
            self.queue.append(text)
            self._taken()
            return
        self.text_waiter = None
        if waiter.cancelled():
            self.close()  # the task that waited was cancelled: its reader is gone
        else:
            waiter.set_result(text)

    def _take_the_long_way(self, data: bytes) -> None:
        session = self.session
        if session is not None and not session.ended:
            self.queue.extend(session.feed(data, monotonic()))
            self.steady = session.exchange.steady
            self._taken()

    def _taken(self) -> None:
        """Something was taken: see what follows, and tell the reader."""
        session = self.session
        assert session is not None
        if session.next_attempt_at is not None:
            self._alarm.stop()
        elif session.ended:
            self._release()
        elif len(self.queue) > _HIGH_WATER and not self._paused and self._connection is not None:
            self._paused = True
            session.exchange.rest()  # so that the reader asks us for more, and not only the connection
            self._connection.pause()
        elif session.deadline < self._alarm.deadline:
            self._arm_timer()
        self._wake()

    def closed(self, error: OSError | None) -> None:
        session = self.session
        if session is None or session.ended or session.next_attempt_at is not None:
            return  # of an attempt that is over already, perhaps
        if error is None:
            self.queue.extend(session.feed_eof(monotonic()))
        else:
            session.fail(connection_lost(session.url, error), monotonic())
            self.queue.extend(session.take_events())
        if session.next_attempt_at is not None:
            self._alarm.stop()
        else:
            self._release()
        self._wake()

    def _arm_timer(self) -> None:
        assert self._loop is not None
        assert self.session is not None
        self._alarm.set(self._loop, self._look_at_clocks, self.session.deadline, self.session.awake(monotonic()))

    def _look_at_clocks(self) -> None:
        session = self.session
        if session is None or session.ended:
            return
        now = monotonic()
        if self._paused:
            session.reader_waited(now)  # while we keep the server waiting, its silence is ours
        if session.wants_slots(now):
            self._wake()  # the reader asks; if it is elsewhere, it does so when it comes back
        elif session.timed_out(now):
            self.queue.extend(session.take_events())
            if session.ended:
                self._release()
            self._wake()
        else:
            self._arm_timer()

    def _wake(self) -> None:
        if self.text_waiter is not None:
            self._hand_on()
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _hand_on(self) -> None:
        """Something else than one more text happened while a reader waits for text."""
        waiter, self.text_waiter = self.text_waiter, None
        assert waiter is not None
        if waiter.cancelled():
            if self.session is not None and not self.session.ended:
                self.close()
            return
        queue = self.queue
        while queue:
            item = queue.popleft()
            if isinstance(item, TextDelta):
                if item.index:
                    continue
                item = item.text
            if isinstance(item, str):
                waiter.set_result(item)
                return
        session = self.session
        assert session is not None
        if session.ended:
            waiter.set_exception(session.error or StopAsyncIteration())
        else:
            assert self._loop is not None
            self._errand = self._loop.create_task(self._fetch_text(waiter))

    async def _fetch_text(self, waiter: asyncio.Future[str]) -> None:
        """The long way to a text (another attempt, say) on behalf of a reader that waits on a bare future."""
        task = asyncio.current_task()
        assert task is not None
        waiter.add_done_callback(lambda done: task.cancel() if done.cancelled() else None)
        try:
            text = await self.next_text()
        except asyncio.CancelledError:
            waiter.cancel()
            raise
        except (LlamaStreamError, StopAsyncIteration) as end:
            if not waiter.done():
                waiter.set_exception(end)
        else:
            if not waiter.done():
                waiter.set_result(text)

    # -- leaving ----------------------------------------------------------------------------------------

    def describe(self) -> str:
        """Endpoint and state, for people."""
        return describe_stream(self._core, self._request, self.session)

    def cancel(self) -> None:
        """From any thread."""
        self._cancelled = True
        loop = self._loop
        if loop is None or loop.is_closed():
            return
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(self.close)

    def close(self) -> None:
        """In the event loop's thread."""
        self._cancelled = True
        self.queue.clear()
        if self.session is not None:
            self.session.cancel(monotonic())
        self._release()
        if self._step is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self._step.reschedule(0.0)
        self._wake()

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
