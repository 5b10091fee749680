"""Every kind of stream as one: an asynchronous iterator, and a way to leave it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Mapping
from typing import Any, cast

from msgspec import Struct

from llamastream import AsyncStream, Stream
from llamastream.integrations.web.foreign import from_message
from llamastream.integrations.web.wire import Item
from llamastream.types import StreamEvent

AHEAD = 64
"""So many events of a synchronous stream may wait for a client that reads slowly."""


def iterate(stream: AsyncStream | Stream | AsyncIterable[Any]) -> AsyncIterator[Item]:
    """What a stream gives, one by one."""
    if isinstance(stream, AsyncStream):
        return stream.events()
    if isinstance(stream, Stream):
        return _from_thread(stream)
    return _from_others(stream)


async def leave(stream: AsyncStream | Stream | AsyncIterable[Any], items: AsyncIterator[Item]) -> None:
    """Leave a stream, so that the slot on the server is free; nothing happens if it has ended."""
    for owner in (items, stream):
        if isinstance(owner, Stream):
            owner.cancel()
        elif isinstance(owner, AsyncStream):
            await owner.close()
        elif (close := getattr(owner, "aclose", None)) is not None:  # an asynchronous generator
            await close()


async def _from_others(items: AsyncIterable[Any]) -> AsyncIterator[Item]:
    async for item in items:
        if isinstance(item, str | Mapping | Struct):
            yield cast("Item", item)
        else:
            for event in from_message(item):
                yield event


async def _from_thread(stream: Stream) -> AsyncIterator[StreamEvent]:
    """The events of a synchronous stream, which a thread of its own reads. The event loop is never blocked."""
    loop = asyncio.get_running_loop()
    waiting: deque[StreamEvent | Exception | None] = deque()
    arrived = asyncio.Event()
    room = threading.Semaphore(AHEAD)
    left = False

    def take(item: StreamEvent | Exception | None) -> None:
        waiting.append(item)
        arrived.set()

    def hand_over(item: StreamEvent | Exception | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and its reader with it
            loop.call_soon_threadsafe(take, item)

    def read() -> None:
        try:
            for event in stream.events():
                room.acquire()
                if left:
                    return
                hand_over(event)
        except Exception as error:  # noqa: BLE001  # it is raised where the events are read
            hand_over(error)
        else:
            hand_over(None)

    threading.Thread(target=read, name="llamastream-response", daemon=True).start()
    try:
        while True:
            while waiting:
                item = waiting.popleft()
                room.release()
                if item is None:
                    return
                if isinstance(item, Exception):
                    raise item
                yield item
            arrived.clear()
            await arrived.wait()
    finally:
        left = True
        stream.cancel()
        room.release()  # the thread may wait for it
