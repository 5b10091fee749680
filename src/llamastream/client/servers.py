"""The servers of one client: where they are, how they are, and which takes the next attempt."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Callable, Collection, Sequence

from llamastream.address import Address
from llamastream.client.forks import renew_after_fork
from llamastream.policy.breaker import Breaker, BreakerState
from llamastream.policy.selection import Candidate, choose
from llamastream.types import Capabilities

PROBE_TIMEOUT = 1.0
"""Seconds that a server which failed has to say that it is well again."""


class Server:
    """One server.

    Attributes:
        index: its place in the list. address, url: where it is. tls: how to talk https, or None.
        in_flight: streams that it serves. waiting: streams in line for a connection to it.
        routable: it takes new requests, as far as whoever runs it says. slots: how many it has, 0 if not known.
        reattach, continues: what it can do as far as learned (see `Capabilities`); None: not known.
    """

    __slots__ = (
        "address",
        "breaker",
        "continues",
        "in_flight",
        "index",
        "reattach",
        "routable",
        "slots",
        "tls",
        "url",
        "waiting",
    )

    def __init__(self, index: int, address: Address, tls: ssl.SSLContext | None) -> None:
        self.index = index
        self.address = address
        self.url = address.url
        self.tls = tls if address.scheme == "https" else None
        self.breaker = Breaker()
        self.in_flight = 0
        self.waiting = 0
        self.routable = True
        self.slots = 0
        self.reattach: bool | None = None
        self.continues: bool | None = None

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(reattach=self.reattach, continues=self.continues)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.url}>"


class Servers:
    """All servers of a client. Thread-safe.

    Attributes:
        all: the servers; more may follow, none is taken away. refresh: where they come from a source, takes over how it
            sees them; called with the lock held when they are `stale`.
    """

    def __init__(self, addresses: Sequence[Address], tls: ssl.SSLContext | None) -> None:
        self.all = tuple(Server(index, address, tls) for index, address in enumerate(addresses))
        self.refresh: Callable[[Servers], None] | None = None
        self.stale = False
        self._tls = tls
        self.after_fork()
        renew_after_fork(self)

    def after_fork(self) -> None:
        """A lock of its own for the child of a fork, which has none of its parent's streams."""
        # Reentrant: the garbage collector may end a stream in the middle of any of the methods below.
        self._lock = threading.RLock()
        self._process = os.getpid()
        for server in self.all:
            server.in_flight = server.waiting = 0

    def __len__(self) -> int:
        return len(self.all)

    def choose(self, now: float, failed: Collection[Server] = (), prefer: Server | None = None) -> tuple[Server, bool]:
        """The server for the next attempt, and whether to probe it first: its breaker is half-open. `prefer`: the one
        to take, whoever decided that."""
        if self.stale:
            self._catch_up()
        if len(self.all) == 1:
            return self.all[0], False
        with self._lock:
            server = self._best(now, failed) if prefer is None else prefer
            probe = server.breaker.state(now) is BreakerState.HALF_OPEN
            if probe:
                server.breaker.probe(now, PROBE_TIMEOUT)
            return server, probe

    def _best(self, now: float, failed: Collection[Server]) -> Server:
        candidates = [
            Candidate(
                each.breaker.state(now),
                each.in_flight + each.waiting,
                each in failed,
                each.breaker.open_until or 0.0,
                each.routable,
                each.slots,
            )
            for each in self.all
        ]
        return self.all[choose(candidates)]

    def catch_up(self) -> None:
        """Take over what is new in the source."""
        if self.stale:
            self._catch_up()

    def elsewhere(self, now: float, tried: Collection[Server]) -> bool:
        """Whether there is a server that was not tried and may be well."""
        if self.stale:
            self._catch_up()
        with self._lock:
            return any(
                server.routable and server not in tried and server.breaker.state(now) is not BreakerState.OPEN
                for server in self.all
            )

    def _catch_up(self) -> None:
        with self._lock:
            if self.stale and self.refresh is not None:
                self.stale = False  # first: what changes from here on makes it stale again
                self.refresh(self)

    def add(self, address: Address) -> Server:
        """One more server; with the lock held."""
        server = Server(len(self.all), address, self._tls)
        self.all = (*self.all, server)
        return server

    def began(self, server: Server) -> int:
        """A stream begins to use a server. What it returns is for `ended`."""
        with self._lock:
            server.in_flight += 1
            return self._process

    def ended(self, server: Server, began: int) -> None:
        """It has ended; a child's copy of a stream that its parent began was never counted here."""
        with self._lock:
            if began == self._process:
                server.in_flight -= 1

    def failed(self, server: Server, now: float, *, certain: bool) -> None:
        with self._lock:
            server.breaker.failed(now, certain=certain)

    def succeeded(self, server: Server) -> None:
        with self._lock:
            server.breaker.succeeded()
