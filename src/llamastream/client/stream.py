"""A running answer, blocking: iterate it for text, or ask it for events or the whole result."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator
from time import monotonic
from types import TracebackType
from typing import Self

from llamastream.client.connection import Connection
from llamastream.client.core import ClientCore
from llamastream.client.session import StreamSession, connection_lost
from llamastream.errors import LlamaStreamError, StreamConsumedError
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import Result, Stats, StreamEvent, TextDelta, Timeouts

CONSUMED = (
    "this stream is already being read, or was; a stream has one consumer: "
    "call stream_chat or stream_completion again for another answer, or keep what it gave with result()"
)


class _Runner:
    """Connects, sends, reads: everything of a stream that its reader does not see.

    Apart from `Stream` so that a stream which is dropped without `close` is freed at once: the generator below refers
    to the runner, not to the stream, hence there is no cycle that only the garbage collector would find.
    """

    def __init__(self, core: ClientCore, request: GenerationRequest, timeouts: Timeouts | None) -> None:
        self.session: StreamSession | None = None
        self._core = core
        self._request = request
        self._request_bytes = core.generation_bytes(request)
        self._timeouts = timeouts
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._cancelled = False

    def open(self) -> tuple[StreamSession, Connection]:
        """Connect and send, once; what goes wrong is kept in the session, where the reader meets it."""
        if self.session is not None and self._connection is not None:
            return self.session, self._connection
        session = self._core.session(self._request, self._timeouts, monotonic())
        connection = Connection(self._core.address, self._core.tls)
        with self._lock:
            self.session, self._connection = session, connection
            if self._cancelled:
                session.cancel(monotonic())
                return session, connection
        try:
            connection.connect(session.deadline)
            session.connected(monotonic())
            connection.send(self._request_bytes, session.deadline)
        except LlamaStreamError as error:
            self._failed(error)
        except TimeoutError:
            session.timed_out(session.deadline)
        except OSError:
            # A server may answer (413, 401) and close before it has read the whole body: look for that answer.
            pass
        self._request_bytes = b""
        return session, connection

    def run(self) -> Generator[StreamEvent, None, None]:
        """All events; raises what ended the stream, if it did not end well."""
        session, connection = self.open()
        try:
            while not session.ended:
                try:
                    data = connection.receive(session.deadline)
                except TimeoutError:
                    session.timed_out(max(monotonic(), session.deadline))
                    continue
                except OSError as error:
                    self._failed(connection_lost(session.url, error))
                    continue
                if self._cancelled:
                    session.cancel(monotonic())
                elif data:
                    events = session.feed(data, monotonic())
                    if events:
                        yield from events
                        session.reader_waited(monotonic())
                else:
                    yield from session.feed_eof(monotonic())
        finally:
            session.cancel(monotonic())  # no effect on a stream that has ended
            connection.close()
        if session.error is not None:
            raise session.error

    def _failed(self, error: LlamaStreamError) -> None:
        assert self.session is not None
        if self._cancelled:
            self.session.cancel(monotonic())
        else:
            self.session.fail(error, monotonic())

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            connection = self._connection
        if connection is not None:
            connection.abort()

    def close(self) -> None:
        self._cancelled = True
        if self.session is not None:
            self.session.cancel(monotonic())
        if self._connection is not None:
            self._connection.close()


class Stream:
    """What `stream_chat` and `stream_completion` return. The request goes out on the first iteration, or on `with`.

    - `for text in stream` gives the answer's text, piece by piece.
    - `stream.events()` gives everything, typed.
    - `stream.result()` reads what is left and gives the whole answer.

    Leaving the loop early, leaving `with`, `close()`, or `cancel()` from any thread frees the slot on the server.
    """

    def __init__(self, core: ClientCore, request: GenerationRequest, timeouts: Timeouts | None) -> None:
        self._runner = _Runner(core, request, timeouts)
        self._source = self._runner.run()
        self._taken = False

    def __iter__(self) -> Iterator[str]:
        """The answer's text (of the first choice, without reasoning).

        Raises:
            StreamConsumedError: the stream was iterated before.
            LlamaStreamError: while iterating; `partial` has what was received.
        """
        self._take()
        return self._texts()

    def __next__(self) -> str:
        for event in self._source:
            if type(event) is TextDelta and event.index == 0:
                return event.text
        raise StopIteration

    def events(self) -> Iterator[StreamEvent]:
        """Everything that the server sends, typed; `StreamEnd` comes last. Raises as iterating does."""
        self._take()
        return self._typed()

    def result(self) -> Result:
        """Read what is left and return the whole answer; after an early end, what there is of it.

        Raises:
            LlamaStreamError: as iterating does.
        """
        for _ in self._source:
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
        self._runner.close()
        self._source.close()

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

    def _take(self) -> None:
        if self._taken:
            raise StreamConsumedError(CONSUMED)
        self._taken = True

    def _texts(self) -> Iterator[str]:
        try:
            for event in self._source:
                if type(event) is TextDelta and event.index == 0:
                    yield event.text
        finally:
            self.close()

    def _typed(self) -> Iterator[StreamEvent]:
        try:
            yield from self._source
        finally:
            self.close()

    def __enter__(self) -> Self:
        """Send the request now.

        Raises:
            LlamaStreamError: no connection.
        """
        session, connection = self._runner.open()
        if session.error is not None:
            connection.close()
            raise session.error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self._runner.close()
