"""The listening half of every double: a free port of 127.0.0.1, a thread for each connection, an orderly end."""

from __future__ import annotations

import contextlib
import functools
import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self


class Listener:
    """Accepts connections and serves each in a thread of its own.

    Attributes:
        port: where it listens. lock: guards what a double records; notify it of every change.
    """

    def __init__(self, *, port: int = 0, listen: bool = True) -> None:
        """`listen=False` begins to listen, on `port`, only when the double is entered."""
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128) if listen else socket.socket()
        self._late_port = None if listen else port
        self._accepted = 0
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self.port: int = self._listener.getsockname()[1] if listen else port
        self.lock = threading.Condition()
        self.closing = False

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        with self.lock:
            return len(self._open)

    @property
    def accepted(self) -> int:
        """How many connections there were in all."""
        with self.lock:
            return self._accepted

    def wait_for(self, condition: Callable[[Self], bool], timeout: float = 10.0) -> bool:
        """Wait until `condition(self)` holds; it is looked at whenever a connection comes, asks or goes."""
        with self.lock:
            return self.lock.wait_for(lambda: condition(self), timeout)

    def serve(self, connection: socket.socket, number: int) -> None:
        """Serve one connection, the `number`-th from 0; it is closed afterwards. An OSError ends it quietly."""
        raise NotImplementedError

    def run(self, work: Callable[[], None]) -> None:
        """Do something in a thread that `close` waits for."""
        with self.lock:
            if self.closing:
                return
            self._threads = [thread for thread in self._threads if thread.is_alive()]
            thread = threading.Thread(target=work, daemon=True)
            self._threads.append(thread)
            thread.start()  # under the lock: close() may come in the next moment and joins what it finds

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self.lock:
                if self.closing:
                    connection.close()
                    return
                number = self._accepted
                self._accepted += 1
                self._open.add(connection)
                self.run(functools.partial(self._serve, connection, number))
                self.lock.notify_all()

    def _serve(self, connection: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(OSError):
                self.serve(connection, number)
        finally:
            connection.close()
            with self.lock:
                self._open.discard(connection)
                self.lock.notify_all()

    def close(self) -> None:
        """Stop listening, break every connection off, and wait for the threads."""
        with self.lock:
            self.closing = True
            open_now = list(self._open)
            self.lock.notify_all()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in open_now:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        if self._late_port is not None:
            self._listener.close()
            self._listener = socket.create_server(("127.0.0.1", self._late_port), backlog=128)
        self.run(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
