"""What arrives of one answer over one connection, for a task that waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf

from llamastream.client.oserrors import connection_lost
from llamastream.errors import ConnectionLostError, ContentIdleTimeoutError, LlamaStreamError
from llamastream.gateway import relay
from llamastream.gateway.patience import Patience
from llamastream.protocol.http1 import ResponseReader

HIGH_WATER = 1 << 20
"""Bytes of a stream that wait for a client which reads too slowly, before its server is made to wait as well."""
LARGEST_EVENT = 8 * 1024 * 1024
"""Bytes of an event that are held back until it is whole."""


class Arrivals:
    """What arrives over one connection, as a queue with an end. `filled`: called when much of it waits."""

    def __init__(self) -> None:
        self.reader = ResponseReader()
        self.body = bytearray()
        self.begun = False
        self.over = False
        self.error: LlamaStreamError | None = None
        self.filled: Callable[[], None] | None = None
        self._news = asyncio.Event()
        self.url = ""

    def data_received(self, data: bytes) -> None:
        self.begun = True
        try:
            self.body += b"".join(self.reader.feed(data))
        except LlamaStreamError as error:
            self.error = error
        if self.reader.failure is not None:
            self.error = self.reader.failure
        self.over = self.reader.complete or self.error is not None
        if self.filled is not None and len(self.body) > HIGH_WATER:
            self.filled()
        self._news.set()

    def closed(self, error: OSError | None) -> None:
        if not self.over:
            if error is not None:
                self.error = connection_lost(self.url, error)
            elif not self.reader.feed_eof():
                self.error = ConnectionLostError(f"{self.url} broke off in the middle of the answer")
            self.over = True
        self._news.set()

    def leave(self) -> None:
        """The event loop ends: nothing more will come."""
        self.over = True
        self._news.set()

    async def news(self, timeout: float | None = None) -> None:
        """Wait until something happens.

        Raises:
            TimeoutError: not within so many seconds.
        """
        self._news.clear()
        async with asyncio.timeout(timeout):
            await self._news.wait()

    async def expect(self, patience: Patience, sign: Callable[[], Awaitable[None]] | None = None) -> None:
        """Wait until something happens, or it is time to call `sign` or to look after the server, which is then done.

        Raises:
            FirstByteTimeoutError: the server does not live.
        """
        interval = inf if sign is None else relay.SIGN_OF_LIFE
        try:
            await self.news(min(patience.left, interval))
        except TimeoutError:
            if sign is not None:
                await sign()
            await patience.look()

    async def events(self, timeout: float | None) -> bytes:
        """Wait for whole events, and take them; b"" at the end, whatever was begun there.

        Raises:
            ContentIdleTimeoutError: nothing came for so many seconds.
        """
        while True:
            boundary = self.body.rfind(b"\n\n")
            end = 0 if boundary < 0 else boundary + 2
            if (self.over and self.error is None) or (not end and len(self.body) > LARGEST_EVENT):
                end = len(self.body)
            if end:
                taken = bytes(self.body[:end])
                del self.body[:end]
                return taken
            if self.over:
                return b""
            try:
                await self.news(timeout)
            except TimeoutError:
                raise ContentIdleTimeoutError(f"{self.url}: nothing came for {timeout:g} s") from None

    async def stale(self, patience: Patience, sign: Callable[[], Awaitable[None]] | None) -> bool:
        """Wait for the first bytes; whether the connection had been closed while it was idle, so that none came. What
        comes over another one is then taken as if this had not been."""
        while not (self.begun or self.over):
            await self.expect(patience, sign)
        if self.begun or not isinstance(self.error, ConnectionLostError):
            return False
        self.over, self.error, self.reader = False, None, ResponseReader()
        return True

    async def header(self, sign: Callable[[], Awaitable[None]] | None, patience: Patience) -> None:
        """Wait for the header of the response; `sign` is called now and then while it does not come.

        Raises:
            LlamaStreamError: there will be none.
        """
        while not (self.reader.header_complete or self.over):
            await self.expect(patience, sign)
        if self.error is not None:
            raise self.error

    async def whole(self, patience: Patience) -> None:
        """Wait for all of the response, or for an error.

        Raises:
            FirstByteTimeoutError: the server does not live.
        """
        while not self.over:
            await self.expect(patience)
