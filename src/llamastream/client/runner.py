"""The runner of a blocking stream: connects, sends, reads, waits, tries again."""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence
from time import monotonic
from typing import TypeVar

from llamastream.client import endpoints
from llamastream.client.connection import Connection
from llamastream.client.core import ClientCore, describe_stream
from llamastream.client.endpoints import Call
from llamastream.client.forks import renew_after_fork
from llamastream.client.oserrors import connection_lost
from llamastream.client.pool import ConnectionPool, Place
from llamastream.client.servers import Server
from llamastream.client.session import EARLY, StreamSession
from llamastream.client.unary import LOOK_TIMEOUT, call_once
from llamastream.errors import LlamaStreamError, PoolTimeoutError
from llamastream.protocol.http1 import ResponseReader
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import StreamEvent, TextDelta, Timeouts

T = TypeVar("T")


class Runner:
    """Connects, sends, reads: everything of a stream that its reader does not see.

    Apart from `Stream` so that a stream which is dropped without `close` is freed at once: the generator below refers
    to the runner, not to the stream, hence there is no cycle that only the garbage collector would find.
    """

    def __init__(
        self,
        core: ClientCore,
        pools: Sequence[ConnectionPool],
        request: GenerationRequest,
        timeouts: Timeouts | None,
    ) -> None:
        self.session: StreamSession | None = None
        self._core = core
        self._pools = pools
        self._request = request
        self._timeouts = timeouts
        self._connection: Connection | None = None
        self._question: Connection | None = None  # over which a short question is asked
        self._place: Place | None = None  # in line for a connection, or with it
        self._pool = pools[0]  # the one that the place belongs to
        self._cancelled = threading.Event()
        self.after_fork()
        renew_after_fork(self)
        self._left = False  # the same, for a look at each piece of text
        request.encoded()  # what JSON cannot express is refused now, not at the first iteration

    def after_fork(self) -> None:
        """Locks of its own for the child of a fork, where a copy of the stream is closed at the latest when it goes."""
        self._lock = threading.RLock()  # reentrant, since `cancel` may be called by a signal's handler
        cancelled, self._cancelled = self._cancelled, threading.Event()
        if cancelled.is_set():
            self._cancelled.set()

    def open(self) -> StreamSession:
        """Connect and send; what goes wrong is kept in the session, where the reader meets it."""
        if self.session is None:
            self.session = self._core.session(self._request, self._timeouts, monotonic())
        try:
            while not self.session.ended and self.session.next_attempt_at is not None:
                self._attempt(self.session, self.session.next_attempt_at)
        except BaseException:
            self.close()
            raise
        return self.session

    def _attempt(self, session: StreamSession, begin_at: float) -> None:
        delay = begin_at - monotonic()
        if delay > 0:
            self._let_go(None)  # others may go first while this one waits
        if (delay > 0 and self._cancelled.wait(delay)) or self._cancelled.is_set():
            session.cancel(monotonic())
            return
        session.prepare(monotonic())
        while not (session.ended or self._cancelled.is_set()) and (errand := session.errand) is not None:
            session.errand_done(self._ask(errand.server, errand.call, errand.timeout), monotonic())
        if self._cancelled.is_set():
            session.cancel(monotonic())
        if session.ended:
            return
        pool = self._pools[session.server.index]
        if pool is not self._pool:
            self._let_go(None)
            self._pool = pool
        if self._connection is not None:
            connection, reused = pool.replace(self._connection), False
        else:
            try:
                acquired = self._acquire(session.queue_deadline)
            except PoolTimeoutError as error:
                session.fail(error, monotonic())
                return
            if acquired is None:
                session.cancel(monotonic())
                return
            connection, reused = acquired
        with self._lock:
            self._connection = connection
        if self._cancelled.is_set():
            session.cancel(monotonic())
            return
        session.begin(monotonic(), reused_connection=reused)
        try:
            if not reused:
                connection.connect(session.deadline)
            session.connected(monotonic())
            connection.send(self._core.attempt_bytes(session.attempt), session.deadline)
        except LlamaStreamError as error:
            self._failed(session, error)
        except TimeoutError:
            session.timed_out(session.deadline)
        except OSError:
            # A server may answer (413, 401) and close before it has read the whole body: look for that answer.
            pass

    def _acquire(self, deadline: float) -> tuple[Connection, bool] | None:
        """A connection of the pool, after a wait in line if need be; None: `cancel` came."""
        self._let_go(None)
        place = Place()
        with self._lock:
            self._place = place
        if self._cancelled.is_set():
            return None
        return self._pool.acquire(place, deadline)

    def _ask(self, server: Server, call: Call[T], timeout: float) -> T | None:
        """The answer to a short question, or None."""
        connection = Connection(server.address, server.tls)
        with self._lock:
            self._question = connection
        try:
            return None if self._cancelled.is_set() else call_once(self._core, server, call, timeout, connection)
        except LlamaStreamError:
            return None
        finally:
            with self._lock:
                self._question = None

    def events(self) -> Generator[StreamEvent, None, None]:
        """All events; raises what ended the stream, if it did not end well."""
        try:
            session = self.open()
            while not session.ended:
                events = self._step(session)
                if events:
                    for event in events:
                        if self._cancelled.is_set():
                            break  # left in the middle of what one read brought
                        yield event
                    session.reader_waited(monotonic())
        finally:
            self.close()
        if session.error is not None:
            raise session.error

    def texts(self) -> Generator[str, None, None]:
        """The text of the first choice; otherwise as `events`, and much the same, with a short way for plain text."""
        try:
            session = self.open()
            while not session.ended:
                idle = session.steady_idle
                if idle is None or self._connection is None or session.exchange.steady is None:
                    events = self._step(session)
                    if events:
                        yield from self._texts_of(events)
                        session.reader_waited(monotonic())
                    continue
                # As long as each read is one more piece of text, this is all that happens.
                receive, take = self._connection.receive_within, session.exchange.steady.take
                data = b""
                try:
                    while (text := take(data := receive(idle), monotonic())) is not None:
                        yield text
                        if self._left:
                            break
                except OSError as error:
                    self._read_failed(session, error)
                    yield from self._texts_of(session.take_events())
                    continue
                events = self._take(session, data)
                if events:
                    yield from self._texts_of(events)
                    session.reader_waited(monotonic())
        finally:
            self.close()
        if session.error is not None:
            raise session.error

    def _texts_of(self, events: list[StreamEvent]) -> Generator[str, None, None]:
        for event in events:
            if self._cancelled.is_set():
                return  # left in the middle of what one read brought
            if type(event) is TextDelta and event.index == 0:
                yield event.text

    def _step(self, session: StreamSession) -> list[StreamEvent]:
        """An attempt, or a read, and what it gave."""
        if session.next_attempt_at is not None:
            self._attempt(session, session.next_attempt_at)
            return session.take_events()
        assert self._connection is not None
        try:
            data = self._connection.receive(session.deadline)
        except OSError as error:
            self._read_failed(session, error)
            return session.take_events()
        return self._take(session, data)

    def _take(self, session: StreamSession, data: bytes) -> list[StreamEvent]:
        if self._cancelled.is_set():
            session.cancel(monotonic())
            return []
        return session.feed(data, monotonic()) if data else session.feed_eof(monotonic())

    def _read_failed(self, session: StreamSession, error: OSError) -> None:
        if isinstance(error, TimeoutError):
            now = monotonic()
            # A timer may be a moment early; a wait that was cut at its longest is far from the deadline.
            self._wait_is_over(session, max(now, session.deadline) if session.deadline - now < EARLY else now)
        else:
            self._failed(session, connection_lost(session.url, error))

    def _wait_is_over(self, session: StreamSession, now: float) -> None:
        if not session.wants_slots(now):
            session.timed_out(now)
            return
        slots = self._ask(session.server, endpoints.slots(), LOOK_TIMEOUT)
        if self._cancelled.is_set():
            session.cancel(monotonic())
        session.slots_seen(slots, max(now, monotonic()))

    def _failed(self, session: StreamSession, error: LlamaStreamError) -> None:
        if self._cancelled.is_set():
            session.cancel(monotonic())
        else:
            session.fail(error, monotonic())

    def _let_go(self, reader: ResponseReader | None) -> None:
        """Give the connection back; `reader` of a response that ended well, so that it may be used again."""
        with self._lock:
            connection, self._connection = self._connection, None
            place, self._place = self._place, None
        if place is not None:
            self._pool.release(place, connection, reader)

    def describe(self) -> str:
        """Endpoint and state, for people."""
        return describe_stream(self._core, self._request, self.session)

    def cancel(self) -> None:
        """From any thread."""
        self._left = True
        self._cancelled.set()
        with self._lock:
            if self._place is not None:
                self._place.leave()
            for connection in (self._connection, self._question):
                if connection is not None:
                    connection.abort()

    def close(self) -> None:
        """In the thread that reads."""
        session = self.session
        self._cancelled.set()
        if session is None:
            return
        session.cancel(monotonic())  # no effect on a stream that has ended
        ended_well = session.error is None and not session.cancelled
        self._let_go(session.exchange.reader if ended_well else None)
