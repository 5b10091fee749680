"""A running answer, blocking: iterate it for text, or ask it for events or the whole result."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from llamastream.client.arguments import check_timeouts
from llamastream.client.core import ClientCore
from llamastream.client.pool import ConnectionPool
from llamastream.client.runner import Runner
from llamastream.errors import StreamConsumedError
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import Result, Stats, StreamEvent, Timeouts

CONSUMED = (
    "this stream is already being read, or was; a stream has one consumer: "
    "call stream_chat or stream_completion again for another answer, or keep what it gave with result()"
)


MIXED = (
    "this stream is already being read {}; the events that this took are gone, so it cannot be read {} as well: "
    "use one of the two for the whole stream (events() has the text, too, as TextDelta)"
)
CLOSED = (
    "this stream was closed, so there is nothing to iterate; what it gave is in result(), "
    "and another answer takes another call of stream_chat or stream_completion"
)


class Stream:
    """What `stream_chat` and `stream_completion` return. The request goes out on the first iteration, or on `with`.

    - `for text in stream` gives the answer's text, piece by piece.
    - `stream.events()` gives everything, typed.
    - `stream.result()` reads what is left and gives the whole answer.

    Leaving the loop early, leaving `with`, `close()`, or `cancel()` from any thread frees the slot on the server.
    """

    def __init__(
        self, core: ClientCore, pools: Sequence[ConnectionPool], request: GenerationRequest, timeouts: Timeouts | None
    ) -> None:
        check_timeouts(timeouts)
        self._runner = Runner(core, pools, request, timeouts)
        self._texts: Generator[str, None, None] | None = None
        self._taken = False
        self._as_events = False
        self._closed = False

    def __iter__(self) -> Iterator[str]:
        """The answer's text (of the first choice, without reasoning).

        Raises:
            StreamConsumedError: the stream was iterated or closed before.
            LlamaStreamError: while iterating; `partial` has what was received.
        """
        self._take()
        # The generator itself, not kept here: a loop that is left lets go of it, and with it of the stream.
        return self._runner.texts() if self._texts is None else self._texts

    def __next__(self) -> str:
        if self._texts is None:
            if self._as_events:
                raise StreamConsumedError(MIXED.format("by events()", "as text"))
            if self._closed:
                raise StreamConsumedError(CLOSED)
            self._begin()
            self._texts = self._runner.texts()
        return next(self._texts)

    def events(self) -> Iterator[StreamEvent]:
        """Everything that the server sends, typed; `StreamEnd` comes last. Raises as iterating does."""
        if self._texts is not None:
            raise StreamConsumedError(MIXED.format("as text", "by events()"))
        self._take()
        self._as_events = True
        return self._runner.events()

    def result(self) -> Result:
        """Read what is left and return the whole answer; after an early end, what there is of it.

        Raises:
            LlamaStreamError: as iterating does.
        """
        session = self._runner.session
        if session is None or not session.ended:
            if not self._taken and self._texts is None:
                self._begin()
            for _ in self._runner.events():
                pass
        session = self._runner.session
        if session is None:
            return Result(finish_reason="cancelled")  # closed before it began
        if session.error is not None:
            raise session.error
        return session.result()

    def cancel(self) -> None:
        """Stop the answer, from any thread: the reader's loop ends, and the slot on the server is freed."""
        self._runner.cancel()

    def close(self) -> None:
        """Leave the stream, from the thread that reads it; frees the slot on the server if it still works."""
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
        if self._closed and self._texts is None:
            raise StreamConsumedError(CLOSED)
        self._taken = True
        self._begin()

    def _begin(self) -> None:
        if self._runner.session is not None:  # `with` has sent the request already
            self._runner.session.reader_came(monotonic())

    def __enter__(self) -> Self:
        """Send the request now.

        Raises:
            LlamaStreamError: no connection.
        """
        session = self._runner.open()
        if session.error is not None:
            self._runner.close()
            raise session.error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # Once it is iterated, the iterator decides: `for text in client.stream_chat(...)` keeps nothing else.
        if not getattr(self, "_taken", True):
            with contextlib.suppress(Exception):
                self._runner.close()
