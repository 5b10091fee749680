"""A client whose servers come from a source, such as a fleet: new ones are used, those that drain are left alone."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TypeGuard, TypeVar, overload

from llamastream.address import parse_address
from llamastream.backends import Backend, BackendSource
from llamastream.client.servers import Server, Servers
from llamastream.errors import SettingError
from llamastream.policy.breaker import Breaker

P = TypeVar("P")


def is_source(value: object) -> TypeGuard[BackendSource]:
    """Whether it is a source of servers, and no address."""
    return callable(getattr(value, "snapshot", None)) and callable(getattr(value, "subscribe", None))


def source_backends(source: BackendSource, model: str | None) -> tuple[Backend, ...]:
    """The servers of a source that serve a model (None: all of them).

    Raises:
        SettingError: there is none.
    """
    every = tuple(backend for backend in source.snapshot() if backend.url)
    if not every:
        raise SettingError("the source has no servers: start the fleet before its clients are made")
    serving = tuple(backend for backend in every if model in backend.models)
    return serving or every


def common_key(backends: Sequence[Backend]) -> str | None:
    """The key that all of them ask for.

    Raises:
        SettingError: they ask for different ones.
    """
    keys = {backend.api_key for backend in backends}
    if len(keys) > 1:
        raise SettingError("the servers of the source ask for different keys: make a client for each model")
    return keys.pop()


class Following:
    """Keeps the servers of a client in step with a source, as long as the client lives."""

    def __init__(self, source: BackendSource, servers: Servers, backends: Sequence[Backend], model: str | None) -> None:
        """Args:
        backends: the source's, in the order of the servers that were made of them.
        """
        self._source = source
        self._model = model
        self._known = {backend.id: server for backend, server in zip(backends, servers.all, strict=True)}
        self._generations = {backend.id: backend.generation for backend in backends}
        servers.refresh = self.refresh
        weak = weakref.ref(servers)

        def changed() -> None:
            living = weak()
            if living is not None:
                living.stale = True
            else:
                leave()

        leave = source.subscribe(changed)
        self.leave = leave
        servers.stale = True

    def server(self, id_: str) -> Server | None:
        """The server that a backend of the source is now; None: it has none, or does not belong to this client."""
        return self._known.get(id_)

    def refresh(self, servers: Servers) -> None:
        """Take over how the source's servers are; with the servers' lock held."""
        every = {backend.id: backend for backend in self._source.snapshot() if backend.url}
        for id_, server in self._known.items():
            backend = every.get(id_)
            server.routable = backend is not None and backend.routable
            server.slots = 0 if backend is None else backend.slots
            if backend is not None and backend.generation != self._generations[id_]:
                # another process: what its predecessor did, or could not do, says nothing of it
                self._generations[id_] = backend.generation
                server.breaker = Breaker()
                server.reattach = server.continues = None
        for id_, backend in every.items():
            known = self._known.get(id_)
            fits = self._model is None or self._model in backend.models
            if (known is None and fits) or (known is not None and known.url != parse_address(backend.url).url):
                if known is not None:
                    known.routable = False
                self._known[id_] = server = servers.add(parse_address(backend.url))
                server.routable, server.slots = backend.routable, backend.slots
                self._generations[id_] = backend.generation


class Pools(Sequence[P]):
    """The connection pools of a client, one for each of its servers; made when the first one asks. Thread-safe."""

    def __init__(self, servers: Servers, make: Callable[[Server], P]) -> None:
        self._servers = servers
        self._make = make
        self._pools = [make(server) for server in servers.all]
        self._lock = threading.Lock()

    @overload
    def __getitem__(self, index: int) -> P: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[P]: ...
    def __getitem__(self, index: int | slice) -> P | Sequence[P]:
        if isinstance(index, int) and index >= len(self._pools):
            with self._lock:
                while index >= len(self._pools):
                    self._pools.append(self._make(self._servers.all[len(self._pools)]))
        return self._pools[index]

    def __len__(self) -> int:
        return len(self._pools)

    def __iter__(self) -> Iterator[P]:
        return iter(tuple(self._pools))
