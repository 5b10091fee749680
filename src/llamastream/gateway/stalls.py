"""Clients that take nothing of their answer: whoever is connected but does not read must not hold a slot for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from time import monotonic
from typing import Any

from msgspec import Struct


class Backlog(Struct, frozen=True):
    """What a client has not taken yet: bytes, and since when (monotonic seconds) it has taken none of them."""

    size: int
    since: float


def backlog(before: Backlog | None, size: int, now: float) -> Backlog | None:
    """The backlog after another look; None if there is none. Pure.

    While it grows nobody can tell whether anything was taken besides, so the time begins anew. It does not grow for
    long: when it is full, nothing more is written.
    """
    if not size:
        return None
    return before if before is not None and before.size == size else Backlog(size, now)


class StallWatch:
    """Hangs up on clients that have taken nothing for `timeout` seconds. Belongs to one event loop."""

    def __init__(self, connections: Callable[[], Collection[Any]], timeout: float) -> None:
        """`connections`: uvicorn's protocols, each with its `transport`."""
        self._connections = connections
        self._timeout = timeout
        self._backlogs: dict[Any, Backlog] = {}
        self.hung_up = 0

    async def run(self) -> None:
        """Look again and again, until this is cancelled."""
        while True:
            await asyncio.sleep(max(0.05, min(5.0, self._timeout / 4)))
            self.look(monotonic())

    def look(self, now: float) -> None:
        """Look at all connections once."""
        found = {}
        for protocol in tuple(self._connections()):
            transport = protocol.transport
            seen = backlog(self._backlogs.get(protocol), transport.get_write_buffer_size(), now)
            if seen is None:
                continue
            if now - seen.since >= self._timeout:
                self.hung_up += 1
                transport.abort()  # to close it would wait for what is not taken
            else:
                found[protocol] = seen
        self._backlogs = found
