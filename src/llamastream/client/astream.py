"""A running answer in asyncio: iterate it for text, or ask it for events or the whole result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Sequence
from types import TracebackType
from typing import Self

from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.arguments import check_timeouts
from llamastream.client.arunner import AsyncRunner
from llamastream.client.core import ClientCore
from llamastream.client.stream import CLOSED, CONSUMED, MIXED
from llamastream.errors import StreamConsumedError
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import Result, Stats, StreamEvent, Timeouts


class AsyncStream:
    """What the async client's `stream_chat` and `stream_completion` return; as `Stream`, with `async for`.

    The request goes out on the first iteration, or on `async with`. Leaving the loop early, cancelling the task,
    `await close()`, or `cancel()` from any thread frees the slot on the server.
    """

    def __init__(
        self,
        core: ClientCore,
        pools: Sequence[AsyncConnectionPool],
        request: GenerationRequest,
        timeouts: Timeouts | None,
    ) -> None:
        self._taken = True  # for __del__, until there is something to leave
        check_timeouts(timeouts)
        self._runner = AsyncRunner(core, pools, request, timeouts)
        self._taken = False
        self._as_texts = False
        self._as_events = False
        self._closed = False

    def __aiter__(self) -> AsyncIterator[str]:
        """The answer's text (of the first choice, without reasoning).

        Raises:
            StreamConsumedError: the stream was iterated or closed before.
            LlamaStreamError: while iterating; `partial` has what was received.
        """
        self._take()
        return _Texts(self._runner)

    async def __anext__(self) -> str:
        if not self._as_texts:
            if self._as_events:
                raise StreamConsumedError(MIXED.format("by events()", "as text"))
            if self._closed:
                raise StreamConsumedError(CLOSED)
            self._as_texts = True
        return await self._runner.next_text()

    def events(self) -> AsyncIterator[StreamEvent]:
        """Everything that the server sends, typed; `StreamEnd` comes last. Raises as iterating does."""
        if self._as_texts:
            raise StreamConsumedError(MIXED.format("as text", "by events()"))
        self._take()
        self._as_events = True
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
        self._closed = True
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
        if session is None:
            return "cancelled" if self._closed else None
        return session.finish_reason

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._runner.describe()}>"

    def _take(self) -> None:
        if self._taken:
            raise StreamConsumedError(CONSUMED)
        if self._closed and not self._as_texts:
            raise StreamConsumedError(CLOSED)
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
        self._closed = True
        self._runner.close()

    def __del__(self) -> None:
        runner = getattr(self, "_runner", None)
        if runner is not None and not self._taken:
            runner.cancel()


class _Reader:
    """An iterator over a running answer; when it is dropped, as by `break`, the stream is left."""

    __slots__ = ("_runner",)

    def __init__(self, runner: AsyncRunner) -> None:
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
        # Mostly there is nothing yet and one more text to come. Then a bare future does, and saves a coroutine for each
        # token. Whoever is cancelled while waiting for it drops the iterator, which leaves the stream; if not, the next
        # data finds the future cancelled.
        runner = self._runner
        steady = runner.steady
        if steady is None or not steady.armed or runner.queue:
            return runner.next_text()
        waiter = runner.text_waiter = runner.new_future()
        return waiter


class _Events(_Reader):
    __slots__ = ()

    async def __anext__(self) -> StreamEvent:
        event = await self._runner.next_event()
        if event is None:
            raise StopAsyncIteration
        return event
