"""A TCP proxy that breaks what passes through it, exactly where a test says.

    with ChaosProxy(server.url, Reset(after_events=5), None, Stall(after_events=3)) as proxy:
        client = StreamingClient(proxy.url)

The first generation gets a reset behind its fifth event, the second passes untouched, the third stalls behind its third
event, and all that follow pass untouched.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from llamastream.errors import SettingError
from llamastream.testing.faults import Fault, Unavailable
from llamastream.testing.listener import Listener
from llamastream.testing.relay import Exchange, Relay

GENERATION_PATHS = frozenset({"/v1/chat/completions", "/v1/completions", "/completion", "/chat/completions"})
"""Where a POST generates text. Other requests pass untouched unless a proxy takes `everything`."""

Choice = Callable[[int, str], Fault | None]
"""Chooses a fault from the number of the request, from 1, and its request line."""

Faults = list[Fault | None] | tuple[Fault | None, ...]
"""For the first request, the second, and so on."""


class ChaosProxy(Listener):
    """Stands between a client and a server, on a free port of 127.0.0.1, and brings faults into the answers.

    Bytes pass untouched until a fault says otherwise. When one side leaves, the connection to the other side is closed
    at once. The n-th fault is for the n-th *generation request*, wherever a connection carries more than one.

    Attributes:
        url: what the client is given. log: what happened, an `Exchange` for each request.
        connections: how many connections are open now. accepted: how many there were in all.
    """

    def __init__(self, target_url: str, *faults: Fault | Faults | Choice | None, everything: bool = False) -> None:
        """Stand before the server at `target_url`.

        Args:
            faults: for the first generation, the second, and so on; None: untouched. Later ones pass untouched. A
                list does as well, or one function `(number, request_line) -> Fault | None`, which is asked each time.
            everything: faults are for all requests, not only for those that generate.

        Raises:
            SettingError: the target is no http:// address, or a function stands beside other faults.
        """
        parts = urlsplit(target_url)
        if parts.scheme != "http" or not parts.hostname:
            raise SettingError(f"{target_url!r} is no address that ChaosProxy can stand before: http://host:port")
        self._choose, self._faults = _split(faults)
        super().__init__()
        self._target = (parts.hostname, parts.port or 80)
        self._everything = everything
        self._number = 0
        self._storm: tuple[Unavailable, int] | None = None
        self._upstream: set[socket.socket] = set()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log: list[Exchange] = []

    def serve(self, connection: socket.socket, number: int) -> None:
        relay = Relay(connection, self._connect, self._changed)
        try:
            while request := relay.next_request():
                exchange = self._exchange(request)
                again = False
                try:
                    again = relay.answer(request, exchange)
                finally:
                    self._note_end(exchange)
                if not again:
                    return
        finally:
            relay.close()

    def _exchange(self, request: bytes) -> Exchange:
        """Note a request, and decide on its fault."""
        request_line = request.partition(b"\r\n")[0].decode("latin-1")
        method, _, target = request_line.partition(" ")
        path = target.partition(" ")[0].partition("?")[0]
        exchange = Exchange(0, request_line)
        with self.lock:
            if self._everything or (method == "POST" and path in GENERATION_PATHS):
                self._number += 1
                exchange.number = self._number
                exchange.fault = self._next_fault(request_line)
            self.log.append(exchange)
            self.lock.notify_all()
        return exchange

    def _next_fault(self, request_line: str) -> Fault | None:
        if self._storm is not None:
            fault, left = self._storm
            self._storm = (fault, left - 1) if left > 1 else None
            return fault
        chosen = self._choose(self._number, request_line) if self._choose else next(self._faults, None)
        if isinstance(chosen, Unavailable) and chosen.times > 1:
            self._storm = (chosen, chosen.times - 1)
        return chosen

    def _note_end(self, exchange: Exchange) -> None:
        with self.lock:
            if self.closing and exchange.ended in ("", "client left", "server left"):
                exchange.ended = "proxy closed"
            exchange.ended = exchange.ended or "client left"
            self.lock.notify_all()

    def _changed(self) -> None:
        with self.lock:
            self.lock.notify_all()

    def _connect(self) -> socket.socket:
        server = socket.create_connection(self._target, timeout=10)
        server.settimeout(None)
        server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.lock:
            if self.closing:
                server.close()
                raise OSError("the proxy is closed")
            self._upstream = {other for other in self._upstream if other.fileno() >= 0} | {server}
        return server

    def close(self) -> None:
        """Break every connection off on both sides, and wait for the threads."""
        with self.lock:
            self.closing = True
            for server in self._upstream:
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
        super().close()


def _split(faults: tuple[Fault | Faults | Choice | None, ...]) -> tuple[Choice | None, Iterator[Fault | None]]:
    """The function that chooses, if there is one, and the faults in order."""
    in_order: list[Fault | None] = []
    for given in faults:
        if callable(given):
            if len(faults) > 1:
                raise SettingError("a function chooses all faults: give ChaosProxy nothing beside it")
            return given, iter(())
        in_order += given if isinstance(given, list | tuple) else [given]
    return None, iter(in_order)
