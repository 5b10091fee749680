"""Waiting for a server that says nothing until its whole answer is there. That may take as long as it likes, but the
server has to show that it lives: a frozen one would keep its client for ever."""

from __future__ import annotations

from time import monotonic

from llamastream.client import endpoints
from llamastream.client.aunary import call_once
from llamastream.client.core import ClientCore
from llamastream.client.servers import Server
from llamastream.errors import FirstByteTimeoutError, LlamaStreamError

LOOK_AFTER, LOOK_EVERY = 30.0, 10.0
"""Seconds of silence before a server is asked how it is, and from then on between two questions."""
LOOK_TIMEOUT = 5.0
MISSES = 3
"""Questions in a row that a server leaves unanswered before it is given up."""


class Patience:
    """With one server, as long as it answers nothing. Belongs to one request."""

    def __init__(self, core: ClientCore, server: Server) -> None:
        self._core = core
        self._server = server
        self._began = monotonic()
        self._look_at = self._began + LOOK_AFTER
        self._misses = 0

    @property
    def left(self) -> float:
        """Seconds until the server is to be asked."""
        return max(0.0, self._look_at - monotonic())

    async def look(self) -> None:
        """Ask it, if it is time.

        Raises:
            FirstByteTimeoutError: it has not answered several times in a row.
        """
        if self.left:
            return
        self._misses = 0 if await self._lives() else self._misses + 1
        self._look_at = monotonic() + LOOK_EVERY
        if self._misses >= MISSES:
            seconds = monotonic() - self._began
            raise FirstByteTimeoutError(
                f"{self._server.url}: nothing came for {seconds:.0f} s, and it does not answer /health either"
            )

    async def _lives(self) -> bool:
        try:
            await call_once(self._core, self._server, endpoints.health(), LOOK_TIMEOUT)
        except LlamaStreamError as error:
            return error.status is not None  # whatever it said, it said something
        return True
