"""A running answer in asyncio: iterate it for text, or ask it for events or the whole result."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Awaitable
from math import inf
from time import monotonic
from types import TracebackType
from typing import Any, Self

from llamastream.client import endpoints
from llamastream.client.aconnection import AsyncConnection
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.aunary import call_once
from llamastream.client.core import ClientCore, describe_stream
from llamastream.client.session import StreamSession, connection_lost
from llamastream.client.stream import CONSUMED
from llamastream.client.unary import LOOK_TIMEOUT
from llamastream.errors import LlamaStreamError, StreamConsumedError
from llamastream.protocol.http1 import ResponseReader
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import Result, Stats, StreamEvent, TextDelta, Timeouts

_HIGH_WATER = 1024
"""So many events wait for the reader before the connection is paused."""


class _AsyncRunner:
    """Connects, sends, receives, and queues events for the reader.

    Apart from `AsyncStream`, and referred to by transport and timer, so that a stream which is dropped without `close`
    is noticed: nothing but its reader refers to the stream itself.
    """

    def __init__(
        self, core: ClientCore, pool: AsyncConnectionPool, request: GenerationRequest, timeouts: Timeouts | None
    ) -> None:
        self.session: StreamSession | None = None
        self.queue: deque[StreamEvent | str] = deque()  # a str is a TextDelta of the first choice, in short
        self.text_waiter: asyncio.Future[str] | None = None
        self._core = core
        self._pool = pool
        self._request = request
        self._timeouts = timeouts
        self._connection: AsyncConnection | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_deadline = inf
        self._paused = False
        self._cancelled = False
        core.generation_bytes(request)  # what JSON cannot express is refused now, not at the first iteration

    async def open(self) -> StreamSession:
        """Connect and send; what goes wrong is kept in the session, where the reader meets it."""
        if self.session is None:
            self._loop = asyncio.get_running_loop()
            self.session = self._core.session(self._request, self._timeouts, monotonic())
        while not self.session.ended and self.session.next_attempt_at is not None:
            try:
                await self._attempt(self.session, self.session.next_attempt_at)
            except BaseException:
                self.close()
                raise
        return self.session

    async def _attempt(self, session: StreamSession, begin_at: float) -> None:
        if (delay := begin_at - monotonic()) > 0 and not self._cancelled:
            self._let_go(None)  # others may go first while this one waits
            await self._wait(delay)
            return  # whoever woke us: the session says what is to be done
        if self._cancelled:
            session.cancel(monotonic())
            return
        try:
            if self._connection is not None:
                connection, reused = self._pool.replace(self._connection), False
            else:
                connection, reused = await self._pool.acquire(session.queue_deadline)
        except LlamaStreamError as error:
            session.fail(error, monotonic())
            return
        self._connection = connection
        session.begin(monotonic(), reused_connection=reused)
        if self._cancelled:
            session.cancel(monotonic())
            return
        try:
            if reused:
                connection.keep(self)
            else:
                limit = None if session.deadline == inf else max(0.001, session.deadline - monotonic())
                await connection.connect(self, self._core.address, self._core.tls, limit)
        except LlamaStreamError as error:
            session.fail(error, monotonic())
            return
        if not session.ended and self._connection is connection:
            session.connected(monotonic())
            connection.send(self._core.generation_bytes(session.request))
            self._arm_timer()

    async def next_event(self) -> StreamEvent | None:
        """The next event, or None at the end; raises what ended the stream, if it did not end well."""
        item = await self.next_item()
        return TextDelta(item) if isinstance(item, str) else item

    def wait_for_text(self) -> asyncio.Future[str] | None:
        """What gets the next piece of text, where that is all that can be expected; None: ask `next_item`."""
        session = self.session
        if self.queue or self._paused or session is None or session.ended or session.steady_idle is None:
            return None
        assert self._loop is not None
        self.text_waiter = self._loop.create_future()
        return self.text_waiter

    async def next_item(self) -> StreamEvent | str | None:
        """As `next_event`, with plain text as `str`."""
        queue = self.queue
        while not queue:
            session = self.session
            if session is None or session.next_attempt_at is not None:
                session = await self.open()
                continue
            if session.ended:
                self._release()
                if session.error is not None:
                    raise session.error
                return None
            if self._paused and self._connection is not None:
                self._paused = False
                session.reader_waited(monotonic())
                self._connection.resume()
            try:
                if session.wants_slots(monotonic()):
                    await self._look_at_slots(session)
                else:
                    await self._wait(None)
            except asyncio.CancelledError:
                self.close()
                raise
        return queue.popleft()

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
        slots: list[dict[str, Any]] | None
        try:
            slots = await call_once(self._core, endpoints.slots(), LOOK_TIMEOUT)
        except LlamaStreamError:
            slots = None
        session.slots_seen(slots, monotonic())
        if not session.ended and session.next_attempt_at is None:
            self._arm_timer()

    # -- callbacks of the connection and the timer --------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        session = self.session
        if session is None or session.ended:
            return
        queue = self.queue
        text = session.feed_text(data, monotonic())
        if text is not None:
            waiter = self.text_waiter
            if waiter is not None:
                self.text_waiter = None
                if waiter.cancelled():
                    self.close()  # the task that waited was cancelled: its reader is gone
                else:
                    waiter.set_result(text)
                return
            queue.append(text)
        else:
            queue.extend(session.feed(data, monotonic()))
        if session.next_attempt_at is not None:
            self._stop_timer()
        elif session.ended:
            self._release()
        elif len(queue) > _HIGH_WATER and not self._paused and self._connection is not None:
            self._paused = True
            self._connection.pause()
        elif session.deadline < self._timer_deadline:
            self._arm_timer()
        self._wake()

    def closed(self, error: OSError | None) -> None:
        session = self.session
        if session is None or session.ended:
            return
        if error is None:
            self.queue.extend(session.feed_eof(monotonic()))
        else:
            session.fail(connection_lost(session.url, error), monotonic())
        if session.next_attempt_at is not None:
            self._stop_timer()
        else:
            self._release()
        self._wake()

    def _arm_timer(self) -> None:
        # One timer for the whole stream: when it fires it looks at the clocks, and sleeps on if they have moved on.
        # Only a deadline that moved forward in time, as when one clock hands over to a shorter one, sets it anew.
        assert self._loop is not None
        assert self.session is not None
        self._stop_timer()
        self._timer_deadline = self.session.deadline
        if self._timer_deadline != inf:
            self._timer = self._loop.call_later(max(0.0, self._timer_deadline - monotonic()), self._look_at_clocks)

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
        waiter.set_exception(_AskAgainError())

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
        self._wake()

    def _release(self) -> None:
        """Let go of the connection and the timer; the queue stays for the reader."""
        self._stop_timer()
        session = self.session
        ended_well = session is not None and session.ended and session.error is None and not session.cancelled
        self._let_go(session.exchange.reader if ended_well and session is not None else None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_go(self, reader: ResponseReader | None) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            if self._paused:
                self._paused = False
                connection.resume()
            self._pool.release(connection, reader)


class _AskAgainError(Exception):
    """There is no text, but something to be done: an end, an error, another attempt."""


class AsyncStream:
    """What the async client's `stream_chat` and `stream_completion` return; as `Stream`, with `async for`.

    The request goes out on the first iteration, or on `async with`. Leaving the loop early, cancelling the task,
    `await close()`, or `cancel()` from any thread frees the slot on the server.
    """

    def __init__(
        self, core: ClientCore, pool: AsyncConnectionPool, request: GenerationRequest, timeouts: Timeouts | None
    ) -> None:
        self._runner = _AsyncRunner(core, pool, request, timeouts)
        self._taken = False

    def __aiter__(self) -> AsyncIterator[str]:
        """The answer's text (of the first choice, without reasoning).

        Raises:
            StreamConsumedError: the stream was iterated before.
            LlamaStreamError: while iterating; `partial` has what was received.
        """
        self._take()
        return _Texts(self._runner)

    async def __anext__(self) -> str:
        return await _next_text(self._runner)

    def events(self) -> AsyncIterator[StreamEvent]:
        """Everything that the server sends, typed; `StreamEnd` comes last. Raises as iterating does."""
        self._take()
        return _Events(self._runner)

    async def result(self) -> Result:
        """Read what is left and return the whole answer; after an early end, what there is of it.

        Raises:
            LlamaStreamError: as iterating does.
        """
        while await self._runner.next_event() is not None:
            pass
        assert self._runner.session is not None
        return self._runner.session.result()

    def cancel(self) -> None:
        """Stop the answer, from any thread: the reader's loop ends, and the slot on the server is freed."""
        self._runner.cancel()

    async def close(self) -> None:
        """Leave the stream; frees the slot on the server if it still works."""
        self._runner.close()

    @property
    def stats(self) -> Stats:
        """Time to first token, tokens per second and so on, as of now."""
        session = self._runner.session
        return Stats() if session is None else session.stats()

    @property
    def finish_reason(self) -> str | None:
        """How the stream ended, or None while it runs."""
        session = self._runner.session
        return session.finish_reason if session is not None else None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._runner.describe()}>"

    def _take(self) -> None:
        if self._taken:
            raise StreamConsumedError(CONSUMED)
        self._taken = True

    async def __aenter__(self) -> Self:
        """Send the request now.

        Raises:
            LlamaStreamError: no connection.
        """
        session = await self._runner.open()
        if session.error is not None:
            raise session.error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()

    def __del__(self) -> None:
        runner = getattr(self, "_runner", None)
        if runner is not None and not self._taken:
            runner.cancel()


class _Reader:
    """An iterator over a running answer; when it is dropped, as by `break`, the stream is left."""

    __slots__ = ("_runner",)

    def __init__(self, runner: _AsyncRunner) -> None:
        self._runner = runner

    def __aiter__(self) -> Self:
        return self

    def __del__(self) -> None:
        # Possibly in another thread or after the loop's end: cancel() minds both.
        session = self._runner.session
        if session is not None and not session.ended:
            self._runner.cancel()


class _Texts(_Reader):
    __slots__ = ()

    def __anext__(self) -> Awaitable[str]:
        # Mostly there is nothing yet and one more text to come: then a bare future is all that it takes.
        waiter = self._runner.wait_for_text()
        return _next_text(self._runner) if waiter is None else _text_or_more(waiter, self._runner)


class _Events(_Reader):
    __slots__ = ()

    async def __anext__(self) -> StreamEvent:
        event = await self._runner.next_event()
        if event is None:
            raise StopAsyncIteration
        return event


async def _text_or_more(waiter: asyncio.Future[str], runner: _AsyncRunner) -> str:
    try:
        return await waiter
    except _AskAgainError:
        return await _next_text(runner)
    except asyncio.CancelledError:
        runner.close()
        raise


async def _next_text(runner: _AsyncRunner) -> str:
    queue = runner.queue
    while True:
        item = queue.popleft() if queue else await runner.next_item()
        if isinstance(item, str):
            return item
        if type(item) is TextDelta:
            if item.index == 0:
                return item.text
        elif item is None:
            raise StopAsyncIteration
