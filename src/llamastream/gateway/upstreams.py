"""Servers that somebody else runs, as a source: asked every few seconds how they are, and how many slots they have."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from msgspec.structs import replace

from llamastream.address import parse_address
from llamastream.backends import Backend
from llamastream.client import AsyncStreamingClient
from llamastream.errors import LlamaStreamError

LOOK_INTERVAL = 2.0
LOOK_TIMEOUT = 2.0


class Upstreams:
    """A fixed list of servers. `watch` is to run as long as they are used, in an event loop.

    A server that cannot be reached is `failed`, one that loads its model `loading`; both are asked again.
    """

    def __init__(self, urls: Sequence[str], api_key: str | None = None) -> None:
        """Raises:
        SettingError: one of them is no address.
        """
        self._backends = tuple(
            Backend(id=f"upstream-{index}", url=parse_address(url).url, api_key=api_key, slots=1)
            for index, url in enumerate(urls)
        )
        self._listeners: list[Callable[[], None]] = []

    def snapshot(self) -> tuple[Backend, ...]:
        return self._backends

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after each change."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def watch(self) -> None:
        """Look at all of them, again and again, until this is cancelled."""
        clients = [AsyncStreamingClient(backend.url, api_key=backend.api_key) for backend in self._backends]
        try:
            while True:
                await self.look(clients)
                await asyncio.sleep(LOOK_INTERVAL)
        finally:
            for client in clients:
                await client.close()

    async def look(self, clients: Sequence[AsyncStreamingClient]) -> None:
        """One look at each."""
        found = await asyncio.gather(*map(_look, self._backends, clients))
        if tuple(found) != self._backends:
            self._backends = tuple(found)
            for listener in tuple(self._listeners):
                listener()


async def _look(known: Backend, client: AsyncStreamingClient) -> Backend:
    try:
        health = await client.health(timeout=LOOK_TIMEOUT)
        if not health.ok:
            return replace(known, state="loading")
        if known.routable and known.models:
            return known  # what it serves does not change while it is up
        props = await client.props()
        tasks = await client.tasks()
    except LlamaStreamError:
        return replace(known, state="failed")
    slots = props.get("total_slots")
    alias = props.get("model_alias")
    return replace(
        known,
        state="ready",
        slots=slots if isinstance(slots, int) and slots > 0 else 1,
        models=(alias,) if isinstance(alias, str) and alias else ("default",),
        tasks=tasks,
        generation=known.generation + (0 if known.state == "ready" and known.models else 1),
    )
