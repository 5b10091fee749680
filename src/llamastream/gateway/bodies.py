"""Reading the bodies of requests, within bounds: of each one, and of all of them together."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from time import monotonic
from typing import Any

from llamastream.gateway.asgi import Receive
from llamastream.gateway.settings import GatewaySettings
from llamastream.heap import trim

SMALL = 64 * 1024
"""Bytes up to which a body counts for nothing: these are always taken."""
TRIM_FROM = 16 * 1024 * 1024
"""Bytes of large bodies that are gone, after which malloc is asked to give memory back."""
TRIM_AFTER = 1.0
"""Seconds that this waits: then what was built of them is gone as well, and it is not done for each one."""
RETRY_AFTER = 2
_HELD = "llamastream.body"


class RequestError(Exception):
    """What a client sent cannot be passed on; `status` says why."""

    def __init__(self, status: int, message: str, headers: tuple[tuple[bytes, bytes], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.headers = headers


class Bodies:
    """The bodies of all requests that are being read, wait in line, or are at work. Belongs to one event loop.

    Attributes:
        held: bytes of those that are large. settings: may be replaced.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.held = 0
        self._gone = 0
        self._last_gone = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def read(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes:
        """The body of a request; `release` is to be called when that is over.

        Raises:
            RequestError: it is too large, packed, does not come, or there is no room for it now.
        """
        settings = self.settings
        self._check_head(scope)
        parts, size = [], 0
        try:
            async with asyncio.timeout(settings.body_timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RequestError(499, "the client left while it sent its request")
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > largest(settings):
                        raise _too_large(settings)
                    if size > SMALL:
                        self._hold(scope, size)
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestError(
                408, f"the request's body did not come within {settings.body_timeout:g} s (body_timeout)"
            ) from None

    def _check_head(self, scope: MutableMapping[str, Any]) -> None:
        """What can be said before the body comes, also before it is asked for (`Expect: 100-continue`)."""
        for name, value in scope["headers"]:
            if name == b"content-length" and value.isdigit() and int(value) > largest(self.settings):
                raise _too_large(self.settings)
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                coding = value.decode("latin-1")[:50]
                raise RequestError(415, f"Content-Encoding: {coding!r} is not understood here: send it as it is")

    def _hold(self, scope: MutableMapping[str, Any], size: int) -> None:
        before = scope.get(_HELD, 0)
        if self.held + size - before > self.settings.max_bodies:
            limit = self.settings.max_bodies
            message = f"the bodies of requests take all the memory that they may ({limit} bytes, max_bodies)"
            raise RequestError(503, message, ((b"retry-after", str(RETRY_AFTER).encode()),))
        scope[_HELD] = size
        self.held += size - before

    def release(self, scope: MutableMapping[str, Any]) -> None:
        """The request is over. Idempotent."""
        size = scope.pop(_HELD, 0)
        self.held -= size
        self._gone += size
        if self._gone >= TRIM_FROM:
            self._last_gone = monotonic()
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(TRIM_AFTER, self._trim)

    def _trim(self) -> None:
        left = self._last_gone + TRIM_AFTER - monotonic()
        if left > 0.1:
            self._timer = asyncio.get_running_loop().call_later(left, self._trim)
            return
        self._timer = None
        self._gone = 0
        trim()

    def close(self) -> None:
        """Nothing more is to be done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def largest(settings: GatewaySettings) -> int:
    """Bytes that one body may have."""
    return min(settings.max_body, settings.max_bodies)


def _too_large(settings: GatewaySettings) -> RequestError:
    return RequestError(413, f"the request is larger than {largest(settings)} bytes (max_body)")
