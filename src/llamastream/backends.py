"""Servers that requests may go to, as everybody sees them who sends any: a fixed list, a fleet, later a cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol, TypeAlias

from msgspec import Struct

from llamastream.types import Task

InstanceState: TypeAlias = Literal[
    "starting", "loading", "ready", "busy", "draining", "restarting", "wedged", "failed", "stopped"
]
"""What a llama-server is doing: `policy.instances` has the transitions, and says what each state means."""

ROUTABLE: frozenset[InstanceState] = frozenset({"ready", "busy"})
"""States in which a server takes new requests (one that is busy puts them in line)."""


class Backend(Struct, frozen=True, kw_only=True):
    """One server, as it was at one moment.

    Attributes:
        id: its name, unique in its source and the same for as long as the source lives. url: `http://host:port` or
            `unix:///path.sock`. api_key: the key that it asks for, or None; never shown.
        models: names of the models that it serves. slots: requests that it generates at the same time.
        state: only one that is `routable` takes new requests. pid: of the process that listens, 0 if there is none.
        in_flight: requests that it works on, as far as known. generation: how many times it has been started: another
            number means that its prompt cache is another one, unless it is `restored`: what was in its
            slots came back. tasks: what it is for; empty: not known. private: nobody but a gateway of this process can
            send it requests.
    """

    id: str
    url: str
    api_key: str | None = None
    models: tuple[str, ...] = ()
    slots: int = 0
    state: InstanceState = "ready"
    pid: int = 0
    in_flight: int = 0
    generation: int = 0
    tasks: tuple[Task, ...] = ()
    restored: bool = False
    private: bool = False

    def does(self, task: Task) -> bool:
        """Whether requests of this kind may go there: not to a server that is known to be for something else."""
        return not self.tasks or task in self.tasks

    @property
    def routable(self) -> bool:
        """Whether new requests may go there."""
        return self.state in ROUTABLE

    def __repr__(self) -> str:
        return f"<Backend {self.id} {self.url} {self.state} pid={self.pid} generation={self.generation}>"


class BackendSource(Protocol):
    """Where servers come from. Both methods may be called from any thread, and wait for nothing."""

    def snapshot(self) -> tuple[Backend, ...]:
        """All servers as they are now, in an order that stays."""
        ...

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called (in any thread; it must not wait) after each change; what comes back ends that."""
        ...


class StaticBackends:
    """Servers that somebody else runs: always taken to be ready."""

    def __init__(self, urls: tuple[str, ...], api_key: str | None = None) -> None:
        self._backends = tuple(Backend(id=str(index), url=url, api_key=api_key) for index, url in enumerate(urls))

    def snapshot(self) -> tuple[Backend, ...]:
        return self._backends

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Nothing ever changes."""
        return lambda: None
