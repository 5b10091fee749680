"""Blocking connections that are kept for the next request, and a bound on how many there are.

The bound is one on places. Whoever wants a connection brings a `Place` of his own, and gives it back whatever happened,
by `release`: so there is no moment in which an interruption (Ctrl-C, a cancelled task) could lose one.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections import deque
from queue import Empty, SimpleQueue
from time import monotonic

from msgspec import Struct

from llamastream.client.connection import LONGEST_WAIT, Connection
from llamastream.client.forks import renew_after_fork
from llamastream.client.servers import Server
from llamastream.errors import PoolTimeoutError
from llamastream.protocol.http1 import ResponseReader


class PoolLimits(Struct, frozen=True):
    """Bounds of a client's pool.

    Attributes:
        connections: in use at the same time; more streams wait in line, first come first served.
        idle: kept for the next request.
        idle_seconds: how long; llama-server closes an idle connection after 5 s itself. The blocking pool has no thread
            to look at the time: one that has expired is not used any more, and closed when the next connection is
            asked for or comes back, at `close`, or with the client.
    """

    connections: int = 512
    idle: int = 16
    idle_seconds: float = 4.5


class _Idle(Struct):
    connection: Connection
    reader: ResponseReader
    since: float


def _close_all(idle: list[_Idle]) -> None:
    """Close them, and leave an empty list."""
    with contextlib.suppress(IndexError):  # at any time, in any thread: each is popped by one only
        while True:
            idle.pop().connection.close()


class Place:
    """A place in the pool: first in line for it, then with a connection. For one use only."""

    __slots__ = ("_news",)

    def __init__(self) -> None:
        # Its `put` may come in the middle of anything: from another thread, a finalizer, a signal's handler.
        self._news: SimpleQueue[bool] = SimpleQueue()

    def leave(self) -> None:
        """Wait in line no more; from any thread, at any time."""
        self._news.put(False)

    def serve(self) -> None:
        """It is this one's turn."""
        self._news.put(True)

    def wait(self, deadline: float) -> bool | None:
        """Whether it is its turn (False: it was left); None if nothing happened until the deadline."""
        while True:
            left = max(0.0, deadline - monotonic())
            try:
                return self._news.get(timeout=min(left, LONGEST_WAIT))
            except Empty:
                if left <= LONGEST_WAIT:
                    return None


def all_in_use(server: Server, limits: PoolLimits, seconds: float) -> PoolTimeoutError:
    """The error for who waited in line in vain."""
    return PoolTimeoutError(
        f"{server.url}: the client's bound of {limits.connections} connections to this server was in use for "
        f"{seconds:.1f} s; raise max_connections, close streams that nobody reads, or wait longer (Timeouts.first_byte)"
    )


class ConnectionPool:
    """The connections of one client to one server. Safe across threads, and across a fork: the child starts anew."""

    def __init__(self, server: Server, limits: PoolLimits) -> None:
        self.server = server
        self._limits = limits
        self._idle: list[_Idle] = []  # for good, see below
        self._closed = False
        # llama-server announces keep-alive and closes after every stream; seen once, it is believed no more.
        self.streams_keep_alive = True
        self._start()
        renew_after_fork(self)
        # A client that nobody closed: its idle sockets are closed in order all the same. Not by `__del__`: in a cycle
        # that is collected it may come after the sockets' own, which warn of what is open.
        weakref.finalize(self, _close_all, self._idle)

    def _start(self) -> None:
        # Reentrant: the garbage collector may end a stream, which gives its place back, in the middle of the below.
        self._lock = threading.RLock()
        self._places: set[Place] = set()
        self._line: deque[Place] = deque()
        self.server.waiting = 0
        self._pid = os.getpid()

    def after_fork(self) -> None:
        """In the child the sockets and the places are the parent's: let go of them without a word on the wire."""
        self._start()
        _close_all(self._idle)

    def acquire(self, place: Place, deadline: float) -> tuple[Connection, bool] | None:
        """A connection, and whether it has been used before; a new one is not connected yet. None: the place was left.

        Whatever comes of it, `release` is to be called once it is not needed any more.

        Raises:
            PoolTimeoutError: every connection was in use until the deadline.
        """
        self._look_at_process()
        began = monotonic()
        with self._lock:
            self._line.append(place)
            self._serve()
        try:
            served = place.wait(deadline)
            if served is None and place not in self._places:
                raise all_in_use(self.server, self._limits, monotonic() - began)
            if served is not False:
                return self._connection()
        except BaseException:
            self.release(place, None, None)
            raise
        self.release(place, None, None)
        return None

    def acquire_now(self, place: Place) -> tuple[Connection, bool] | None:
        """As `acquire`, without a wait: None if all are in use."""
        self._look_at_process()
        with self._lock:
            if self._line or len(self._places) >= self._limits.connections:
                return None
            self._places.add(place)
        return self._connection()

    def _look_at_process(self) -> None:
        if self._pid != os.getpid():  # a fork that Python was not told of, as some servers written in C do it
            self.after_fork()

    def _serve(self) -> None:
        """Whose turn it is; under the lock."""
        while self._line and len(self._places) < self._limits.connections:
            with contextlib.suppress(IndexError):  # a finalizer was quicker, see `_start`
                place = self._line.popleft()
                self._places.add(place)
                place.serve()
        self.server.waiting = len(self._line)

    def _connection(self) -> tuple[Connection, bool]:
        return self._take_idle() or (Connection(self.server.address, self.server.tls), False)

    def _take_idle(self) -> tuple[Connection, bool] | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                idle = self._idle.pop()  # the youngest is the likeliest to live
            # Outside of the lock: this reads from the socket.
            if monotonic() - idle.since < self._limits.idle_seconds and idle.connection.still_usable(idle.reader):
                return idle.connection, True
            if idle.reader.headers.get("content-type", "").startswith("text/event-stream"):
                self.streams_keep_alive = False
            idle.connection.close()

    def replace(self, connection: Connection) -> Connection:
        """A new connection, not connected yet, in the place of one that turned out to be dead: nobody goes back in line
        because the server closed it."""
        connection.close()
        return Connection(self.server.address, self.server.tls)

    def release(self, place: Place, connection: Connection | None, reader: ResponseReader | None) -> None:
        """Give a place back, and the connection, if it came to one; a second time has no effect.

        `reader`: of the response that came over the connection, if that may be kept.
        """
        keep = (
            connection is not None
            and reader is not None
            and reader.header_complete
            and reader.keep_alive
            and not reader.trailing
            and connection.usable
            and (self.streams_keep_alive or not reader.headers.get("content-type", "").startswith("text/event-stream"))
        )
        close = []
        now = monotonic()
        with self._lock:
            ours = place in self._places  # not if it was got before a fork
            if ours:
                self._places.remove(place)
            elif place in self._line:
                self._line.remove(place)
            self._serve()
            if connection is not None and reader is not None and keep and ours and not self._closed:
                self._idle.append(_Idle(connection, reader, now))
            elif connection is not None:
                close.append(connection)
            while len(self._idle) > self._limits.idle or (
                self._idle and now - self._idle[0].since > self._limits.idle_seconds
            ):
                close.append(self._idle.pop(0).connection)
        for unused in close:
            unused.close()

    def close(self) -> None:
        """Close what is idle; what is in use, or is used from now on, is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle = self._idle.copy()
            self._idle.clear()
        _close_all(idle)
