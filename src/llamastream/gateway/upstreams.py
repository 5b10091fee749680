"""Servers that somebody else runs, as a source: asked every few seconds how they are, and how many slots they have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from llamastream.address import parse_address
from llamastream.backends import Backend, InstanceState
from llamastream.client import AsyncStreamingClient
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.events import InstanceChanged

LOOK_INTERVAL = 2.0
LOOK_TIMEOUT = 2.0


class Upstream(Struct, frozen=True, kw_only=True):
    """One server, as the last look found it.

    Attributes:
        url: where it is. backend: what requests see of it; its `url` is empty until it was ready once. reason: why it
            is in its state; it may name the address. since: when it came to it, in seconds since the epoch.
        build: the server's version, "" while it is not known.
    """

    url: str
    backend: Backend
    reason: str
    since: float
    build: str = ""


class Upstreams:
    """A fixed list of servers. `watch` is to run as long as they are used, in an event loop.

    Each is `starting` until it has been looked at. One that cannot be reached is `failed`, one that loads its model
    `loading`; both are asked again.
    """

    def __init__(
        self,
        urls: Sequence[str],
        api_key: str | None = None,
        *,
        listeners: Iterable[Callable[[InstanceChanged], None]] = (),
    ) -> None:
        """`listeners`: called with each change of a server's state, in the thread of `watch`.

        Raises:
            SettingError: one of them is no address, or is named twice.
        """
        self._api_key = api_key
        self._told = tuple(listeners)
        self._listeners: list[Callable[[], None]] = []
        now = time.time()
        self._upstreams = tuple(
            Upstream(
                url=url,
                backend=Backend(id=f"upstream-{index}", url="", api_key=api_key, state="starting"),
                reason="not looked at yet",
                since=now,
            )
            for index, url in enumerate(distinct(urls))
        )

    def snapshot(self) -> tuple[Backend, ...]:
        return tuple(each.backend for each in self._upstreams)

    def found(self) -> tuple[Upstream, ...]:
        """All of them, with what is for those who run the gateway. From any thread."""
        return self._upstreams

    def subscribe(self, listener: Callable[[], None]) -> Callable[[], None]:
        """Have `listener` called after each change."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener) if listener in self._listeners else None

    async def watch(self, looked: Callable[[], None] = lambda: None) -> None:
        """Look at all of them, again and again, until this is cancelled. `looked`: called after each time."""
        clients = [AsyncStreamingClient(each.url, api_key=self._api_key) for each in self._upstreams]
        try:
            while True:
                await self.look(clients)
                looked()
                await asyncio.sleep(LOOK_INTERVAL)
        finally:
            for client in clients:
                await client.close()

    async def look(self, clients: Sequence[AsyncStreamingClient]) -> None:
        """One look at each; what one of them is found to be, counts at once."""
        await asyncio.gather(*(self._look(index, client) for index, client in enumerate(clients)))

    async def _look(self, index: int, client: AsyncStreamingClient) -> None:
        before = self._upstreams[index]
        after = await _look(before, client)
        if after == before:
            return
        self._upstreams = (*self._upstreams[:index], after, *self._upstreams[index + 1 :])
        for changed in tuple(self._listeners):
            changed()
        if after.backend.state != before.backend.state:
            event = InstanceChanged(
                id=after.backend.id,
                before=before.backend.state,
                after=after.backend.state,
                reason=after.reason,
                time=after.since,
                generation=after.backend.generation,
            )
            for tell in self._told:
                tell(event)


def distinct(urls: Sequence[str]) -> list[str]:
    """The addresses in their canonical form.

    Raises:
        SettingError: one of them is no address, or is named twice.
    """
    found: dict[str, str] = {}
    for url in urls:
        canonical = parse_address(url).url
        if canonical in found:
            raise SettingError(f"upstreams = {url!r} is the same server as {found[canonical]!r}: name each one once")
        found[canonical] = url
    return list(found)


async def _look(known: Upstream, client: AsyncStreamingClient) -> Upstream:
    backend = known.backend
    try:
        health = await client.health(timeout=LOOK_TIMEOUT)
        if not health.ok:
            return _now(known, "loading", "it loads its model, or has no server that is ready")
        if backend.routable and backend.models:
            return known  # what it serves does not change while it is up
        props = await client.props()
        tasks = await client.tasks()
    except LlamaStreamError as error:
        return _now(known, "failed", error.message)
    slots = props.get("total_slots")
    alias = props.get("model_alias")
    build = props.get("build_info")
    ready = replace(
        backend,
        url=known.url,
        slots=slots if isinstance(slots, int) and slots > 0 else 1,
        models=(alias,) if isinstance(alias, str) and alias else ("default",),
        tasks=tasks,
        generation=backend.generation + 1,
    )
    found = replace(known, backend=ready, build=build if isinstance(build, str) else "")
    return _now(found, "ready", "it answers")


def _now(upstream: Upstream, state: InstanceState, reason: str) -> Upstream:
    """It is in this state; since now, unless it was before."""
    if upstream.backend.state == state:
        return replace(upstream, reason=reason)
    return replace(upstream, backend=replace(upstream.backend, state=state), reason=reason, since=time.time())


def out_of_service(backends: Iterable[Backend]) -> str:
    """What clients are told where no server takes requests: how many are in which state, and not where they are."""
    counts: dict[str, int] = {}
    for backend in backends:
        counts[backend.state] = counts.get(backend.state, 0) + 1
    there = ", ".join(f"{count} {state}" for state, count in counts.items()) or "there is none"
    return f"no server takes requests now: {there}"
