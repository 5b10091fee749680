"""The runner of a stream in asyncio: receives, waits, hands on, has another attempt begun."""

from __future__ import annotations

import asyncio
import contextlib
from time import monotonic

from llamastream.client import endpoints
from llamastream.client.aattempts import AsyncAttempts
from llamastream.client.oserrors import connection_lost
from llamastream.client.session import StreamSession
from llamastream.client.unary import LOOK_TIMEOUT
from llamastream.errors import LlamaStreamError
from llamastream.protocol.steady import SteadyText
from llamastream.types import StreamEvent, TextDelta

_HIGH_WATER = 1024
"""So many events wait for the reader before the connection is paused."""


class AsyncRunner(AsyncAttempts):
    """Connects, sends, receives, and queues events for the reader.

    Apart from `AsyncStream`, and referred to by transport and timer, so that a stream which is dropped without `close`
    is noticed: nothing but its reader refers to the stream itself.
    """

    # These are for a reader that waits for one more piece of text and for nothing else (`astream._Texts`).
    steady: SteadyText | None = None
    text_waiter: asyncio.Future[str] | None = None
    _errand: asyncio.Task[None] | None = None

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

    async def _look_at_slots(self, session: StreamSession) -> None:
        slots = await self._ask(session.server, endpoints.slots(), LOOK_TIMEOUT)
        session.slots_seen(slots, monotonic())
        self.queue.extend(session.take_events())
        if not session.ended and session.next_attempt_at is None:
            self._arm_timer()

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
