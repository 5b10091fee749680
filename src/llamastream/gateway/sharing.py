"""Answers that more than the client which asked may want: one that comes back, others with the same request, later
ones.

A request with an `X-Conversation-Id`, or one whose answer may be kept, does not write to its client, but into a
`gateway.broadcast.Broadcast`, from which its client reads like anybody else.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from msgspec import Struct

from llamastream.gateway.answer_file import AnswerFile
from llamastream.gateway.answers import Answer, AnswerMemory, answer_of, replayed
from llamastream.gateway.asgi import Receive, Send
from llamastream.gateway.attendance import attended
from llamastream.gateway.broadcast import Broadcast
from llamastream.gateway.held import Held, HeldStreams, refused_id
from llamastream.gateway.identity import Identities
from llamastream.gateway.lanes import Lane
from llamastream.gateway.outlet import Outlet
from llamastream.gateway.refusals import refusal, respond
from llamastream.gateway.relay import Relay
from llamastream.gateway.served import Served, served_of
from llamastream.gateway.settings import GatewaySettings
from llamastream.gateway.wire import EXTENSION
from llamastream.observe.dashboard import CacheFigures
from llamastream.observe.series import Sample
from llamastream.policy.caching import Directives, deterministic, directives, request_key

logger = logging.getLogger("llamastream.gateway")

RESULTS = ("hit", "miss", "shared")

Work = Callable[[dict[str, Any], Send], Coroutine[Any, Any, object]]
"""Answers a request, given its scope and where the answer goes."""


class Plan(Struct, frozen=True):
    """What is to become of a request's answer.

    Attributes:
        path, body, lane: the request. conversation: the id under which its client may come back, or None.
        directives: what it says of caches, where that matters; else None. keepable: its answer may be kept. line: what
            else has to be the same for two requests in flight to be one.
    """

    path: str
    body: dict[str, Any]
    lane: Lane
    conversation: str | None
    directives: Directives | None
    keepable: bool
    line: tuple[bytes, ...]


class Sharing:
    """All answers of a gateway that may be read more than once. Belongs to one event loop.

    Attributes:
        held: the streams that clients may come back to. identities: what answers in each lane.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises:
        SettingError: the directory of the cache cannot be used.
        """
        self.held = HeldStreams(settings)
        self.identities = Identities()
        self._settings = settings
        self._memory = AnswerMemory(settings.response_cache_memory)
        self._file: AnswerFile | None = None
        if settings.response_cache and settings.response_cache_dir is not None:
            self._file = AnswerFile(
                settings.response_cache_dir, settings.response_cache_size, settings.response_cache_ttl
            )
        elif settings.response_cache_dir is not None:
            logger.warning("response_cache_dir is set, but response_cache is off: no answer is kept")
        self._in_flight: dict[tuple[Any, ...], Broadcast] = {}
        self._running: set[Broadcast] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts = dict.fromkeys(RESULTS, 0)
        self._tokens_saved = 0

    async def start(self) -> None:
        """Look what is on disk."""
        if self._file is not None:
            await self._file.open()

    async def close(self) -> None:
        """End what runs for those who are gone, and write what is to be written."""
        self.held.close()
        for broadcast in tuple(self._running):
            broadcast.abandon()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._file is not None:
            await self._file.close()

    def plan(self, scope: dict[str, Any], path: str, body: dict[str, Any], lane: Lane) -> Plan | None:
        """What is to become of the answer; None: it is for this client, and for now."""
        conversation, cached = None, []
        for name, value in scope["headers"]:
            if name == b"x-conversation-id" and value and body.get("stream") is True:
                conversation = value.decode("utf-8", "surrogateescape")  # as queries and lookups spell it
            elif name == b"cache-control":
                cached.append(value.decode("latin-1"))
        wish = directives(cached)
        keepable = self._settings.response_cache and not wish.no_store and deterministic(path, body)
        heeded = wish if keepable or wish.only_if_cached else None
        if conversation is None and heeded is None:
            return None
        # What decides on the turn in line is not shared with those who have another.
        line = tuple(value for name, value in scope["headers"] if name == b"x-priority")
        return Plan(path, body, lane, conversation, heeded, keepable, line)

    async def serve(self, plan: Plan, work: Work, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request by `work`, or by what there is already."""
        served = served_of(scope)
        if plan.conversation is not None and (message := refused_id(plan.conversation)):
            await respond(send, 400, refusal(plan.path, 400, message), [(b"connection", b"close")])
            return
        broadcast = None
        if plan.directives is not None:
            broadcast = await self._cached(plan, plan.directives, work, scope, served)
            if broadcast is None:
                message = "there is no such answer in the cache, and Cache-Control says only-if-cached"
                await respond(send, 504, refusal(plan.path, 504, message))
                return
        if broadcast is None:
            broadcast = self._begin(plan, work, scope)
        if plan.conversation is None:
            reading = broadcast.read(broadcast.attach(), send, lambda: _past(scope))
            await attended(reading, receive)
            return
        held = self.held.hold(served.owner, plan.conversation, broadcast)
        await self.read(held, 0, scope, receive, send)

    async def read(self, held: Held, offset: int, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Give out what is held, from this byte on.

        Raises:
            OffsetLostError: that is gone.
        """
        reader = self.held.attach(held, offset)
        try:
            await attended(held.broadcast.read(reader, send, lambda: _past(scope)), receive)
        finally:
            held.broadcast.detach(reader)
            self.held.left(held, reader)

    def _begin(self, plan: Plan, work: Work, scope: dict[str, Any]) -> Broadcast:
        broadcast = self.held.new(plan.path)
        apart = {**scope, "extensions": {**scope.get("extensions", {}), EXTENSION: broadcast.outlet}}
        self._running.add(broadcast)
        broadcast.on_end.append(self._running.discard)
        served = served_of(scope)
        broadcast.heed = served.saw
        served.work = broadcast.run(work(apart, broadcast.take))
        self._keep(served.work)
        return broadcast

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- the cache ----------------------------------------------------------------------------------------------

    async def _cached(
        self, plan: Plan, wish: Directives, work: Work, scope: dict[str, Any], served: Served
    ) -> Broadcast | None:
        """The answer, from the cache if it is there; None if the client wants no other. What the cache did is in
        `served`, unless it cannot be asked now."""
        if not plan.keepable:
            return None
        identity = await self.identities.of(plan.lane)
        if identity is None:
            return None if wish.only_if_cached else self._begin(plan, work, scope)
        owner = "" if self._settings.response_cache_shared else served.owner
        key = request_key(plan.path, plan.body, identity=identity, owner=owner)
        if not wish.no_cache:
            answer = await self._find(key, wish)
            if answer is not None:
                self._counts["hit"] += 1
                self._tokens_saved += answer.tokens
                served.repeated(plan.body, "hit")
                return await self._again(plan, answer)
        in_flight = (key, served.owner, plan.line)
        running = self._in_flight.get(in_flight)
        if running is not None and not (wish.no_cache or running.ended) and running.whole:
            self._counts["shared"] += 1
            served.repeated(plan.body, "shared")
            return running
        if wish.only_if_cached:
            return None
        self._counts["miss"] += 1
        served.cache = "miss"
        broadcast = self._begin(plan, work, scope)
        self._in_flight[in_flight] = broadcast

        def ended(broadcast: Broadcast) -> None:
            if self._in_flight.get(in_flight) is broadcast:
                del self._in_flight[in_flight]
            if not broadcast.cut and broadcast.status == 200 and broadcast.whole and not _mended(served):
                store = self._store(key, plan.lane, identity, broadcast.headers, bytes(broadcast.body))
                self._keep(asyncio.ensure_future(store))

        broadcast.on_end.append(ended)
        return broadcast

    async def _find(self, key: bytes, wish: Directives) -> Answer | None:
        oldest = self._settings.response_cache_ttl if wish.max_age is None else wish.max_age
        oldest = min(oldest, self._settings.response_cache_ttl)
        answer = self._memory.get(key)
        if answer is None and self._file is not None:
            answer = await self._file.get(key)
            if answer is not None:
                self._memory.put(key, answer)
        return answer if answer is not None and answer.age(time.time()) <= oldest else None

    async def _again(self, plan: Plan, answer: Answer) -> Broadcast:
        headers, body = replayed(answer, time.time())
        broadcast = self.held.new(plan.path, len(body))
        await broadcast.take({"type": "http.response.start", "status": 200, "headers": headers})
        await broadcast.take({"type": "http.response.body", "body": body, "more_body": False})
        return broadcast

    async def _store(self, key: bytes, lane: Lane, identity: str, headers: Any, body: bytes) -> None:
        """Keep an answer, if it ended well, and if what answers is still the same."""
        answer = await asyncio.to_thread(answer_of, headers, body)
        if answer is None or await self.identities.of(lane, fresh=True) != identity:
            return
        self._memory.put(key, answer)
        if self._file is not None:
            self._file.put(key, answer)

    def cache_figures(self) -> CacheFigures | None:
        """How the cache does; None: it is off."""
        if not self._settings.response_cache:
            return None
        file = self._file
        return CacheFigures(
            hits=self._counts["hit"],
            shared=self._counts["shared"],
            misses=self._counts["miss"],
            tokens_saved=self._tokens_saved,
            entries=len(self._memory) if file is None else file.entries,
            memory_bytes=self._memory.used,
            disk_bytes=None if file is None else file.used,
        )

    def samples(self) -> Iterator[Sample]:
        """What there is to count."""
        held = self.held
        yield Sample("held_streams", (), len(held))
        yield Sample("detached_streams", (), held.detached)
        yield Sample("reattached_requests", (), held.reattached)
        yield Sample("replay_bytes", (), held.used)
        for result, count in self._counts.items():
            yield Sample("response_cache_requests", (result,), count)
        yield Sample("response_cache_tokens_saved", (), self._tokens_saved)
        yield Sample("response_cache_entries", ("memory",), len(self._memory))
        yield Sample("response_cache_bytes", ("memory",), self._memory.used)
        if self._file is not None:
            yield Sample("response_cache_entries", ("disk",), self._file.entries)
            yield Sample("response_cache_bytes", ("disk",), self._file.used)
            yield Sample("response_cache_errors", (), self._file.errors)


def _past(scope: dict[str, Any]) -> Outlet | None:
    """The way past ASGI to the client of a request, unless somebody reads along there."""
    outlet: Outlet | None = scope.get("extensions", {}).get(EXTENSION)
    return outlet if served_of(scope).glimpse is None else None


def _mended(served: Served) -> bool:
    """Whether the answer broke in the middle: what was continued is very likely the same, but not surely."""
    session = served.runner.session if isinstance(served.runner, Relay) else None
    return session is not None and bool(session.stats().recoveries)
