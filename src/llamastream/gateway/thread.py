"""The gateway in a thread of its own, for programs that do something else meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from starlette.applications import Starlette

from llamastream.gateway.server import GatewayServer, run_loop
from llamastream.gateway.settings import GatewaySettings


class GatewayThread:
    """A gateway that serves in a thread. Its methods are for other threads.

    Attributes:
        server: what serves; it belongs to the event loop of the thread.
    """

    def __init__(self, server: GatewayServer, on_end: Callable[[], None] = lambda: None) -> None:
        """Nothing is bound yet. `on_end` is called, in the thread, when it serves no more."""
        self.server = server
        self._on_end = on_end
        self._started = threading.Event()
        self._failure: BaseException | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._main, name="llamastream-gateway", daemon=True)
        self._beat_asked = self._beat = monotonic()

    def start(self) -> None:
        """Begin to serve; returns when it listens.

        Raises:
            SettingError, PortInUseError: see `GatewayServer`.
        """
        self._thread.start()
        self._started.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def request_stop(self) -> None:
        """Begin to stop: running requests have `drain_timeout`. A second time: they have no more time."""
        self.call(self.server.request_stop)

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def call(self, function: Callable[[], object]) -> None:
        """Have a function called in its event loop; not if that has ended."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it is closed
                self._loop.call_soon_threadsafe(function)

    def responds(self, within: float) -> bool:
        """Whether its event loop has run within so many seconds of being asked to; asks it anew."""
        now = monotonic()
        if self._beat >= self._beat_asked:
            self._beat_asked = now
            self.call(self._note_beat)
            return self._thread.is_alive()
        return self._thread.is_alive() and now - self._beat_asked < within

    def _note_beat(self) -> None:
        self._beat = monotonic()

    def _main(self) -> None:
        try:
            run_loop(self._serve())
        except BaseException as error:
            self._failure = self._failure or error
            if self._started.is_set():
                raise
        finally:
            self._started.set()
            self._on_end()

    async def _serve(self) -> None:
        await self.server.start()
        self._loop = asyncio.get_running_loop()
        self._started.set()
        await self.server.wait()


@contextmanager
def gateway_thread(
    app: Starlette,
    settings: GatewaySettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    socket: str | None = None,
) -> Iterator[GatewayServer]:
    """With a gateway that serves in a thread of its own, and is stopped at the end of the block.

    Raises:
        SettingError, PortInUseError: see `GatewayServer`.
    """
    thread = GatewayThread(GatewayServer(app, settings, host=host, port=port, socket=socket))
    thread.start()
    try:
        yield thread.server
    finally:
        thread.request_stop()
        thread.join()
