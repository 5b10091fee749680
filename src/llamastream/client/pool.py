"""Blocking connections that are kept for the next request, and a bound on how many there are."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from time import monotonic

from msgspec import Struct

from llamastream.client.connection import Connection
from llamastream.client.servers import Server
from llamastream.errors import ConnectTimeoutError
from llamastream.protocol.http1 import ResponseReader


class PoolLimits(Struct, frozen=True):
    """Bounds of a client's pool.

    Attributes:
        connections: open at the same time; more requests wait in line, first come first served.
        idle: kept for the next request.
        idle_seconds: how long; llama-server closes an idle connection after 5 s itself.
    """

    connections: int = 512
    idle: int = 16
    idle_seconds: float = 4.5


class _Idle(Struct):
    connection: Connection
    reader: ResponseReader
    since: float


class ConnectionPool:
    """The connections of one client to one server. Safe across threads, and across a fork: the child starts anew."""

    def __init__(self, server: Server, limits: PoolLimits) -> None:
        self.server = server
        self._limits = limits
        self._idle: list[_Idle] = []
        self._start()

    def _start(self) -> None:
        self._lock = threading.Lock()
        self._idle = []
        self._waiters: deque[_Waiter] = deque()
        self._in_use = 0
        self._pid = os.getpid()
        self._closed = False
        # llama-server announces keep-alive and closes after every stream; seen once, it is believed no more.
        self.streams_keep_alive = True

    def _after_fork(self) -> None:
        """In the child of a fork the sockets are the parent's: let go of them without a word on the wire."""
        inherited = self._idle
        self._start()  # the old lock may be held by a thread that does not exist here
        for idle in inherited:
            idle.connection.close()

    def acquire(self, deadline: float) -> tuple[Connection, bool]:
        """A connection, and whether it has been used before; a new one is not connected yet.

        Raises:
            ConnectTimeoutError: every connection was in use until the deadline.
        """
        if self._pid != os.getpid():
            self._after_fork()
        with self._lock:
            waiter = None
            if self._in_use >= self._limits.connections:
                waiter = _Waiter()
                self._waiters.append(waiter)
            else:
                self._in_use += 1
        if waiter is not None:
            self._wait(waiter, deadline)
        return self._take_idle() or (Connection(self.server.address, self.server.tls), False)

    def _wait(self, waiter: _Waiter, deadline: float) -> None:
        if waiter.event.wait(min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)):
            return
        with self._lock:
            if waiter.event.is_set():
                return  # handed over in the last moment
            self._waiters.remove(waiter)
        raise ConnectTimeoutError(
            f"{self.server.url}: all {self._limits.connections} connections of this client were in use "
            "(max_connections)"
        )

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

    def release(self, connection: Connection, reader: ResponseReader | None) -> None:
        """Give a connection back after use. `reader`: of the response that came over it, if it may be kept."""
        keep = (
            reader is not None
            and reader.header_complete
            and reader.keep_alive
            and not reader.trailing
            and connection.usable
            and (self.streams_keep_alive or not reader.headers.get("content-type", "").startswith("text/event-stream"))
        )
        close = []
        now = monotonic()
        with self._lock:
            if self._pid == os.getpid():
                if self._waiters:
                    self._waiters.popleft().event.set()  # the place goes on to the next in line
                else:
                    self._in_use -= 1
            if keep and reader is not None and not self._closed:
                self._idle.append(_Idle(connection, reader, now))
                while len(self._idle) > self._limits.idle or (
                    self._idle and now - self._idle[0].since > self._limits.idle_seconds
                ):
                    close.append(self._idle.pop(0).connection)
            else:
                close.append(connection)
        for unused in close:
            unused.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it comes back."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for each in idle:
            each.connection.close()

    def __del__(self) -> None:
        # A client that nobody closed: its idle sockets are closed in order all the same.
        with contextlib.suppress(Exception):
            self.close()


class _Waiter:
    __slots__ = ("event",)

    def __init__(self) -> None:
        self.event = threading.Event()
