"""The gateway on an address: in the foreground, or inside another asyncio program (`gateway.thread`: in a thread)."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import math
import signal
import ssl
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import uvicorn
from starlette.applications import Starlette

from llamastream.errors import LlamaStreamError, SettingError
from llamastream.gateway.exposure import check_exposure
from llamastream.gateway.guarded import Guard
from llamastream.gateway.listening import listening_socket, remove_socket, room_for_connections, url_of
from llamastream.gateway.reloading import Takeover, live_part, taken_over
from llamastream.gateway.settings import GatewaySettings
from llamastream.gateway.stalls import StallWatch
from llamastream.gateway.wire import bound, limits_of

logger = logging.getLogger("llamastream.gateway")

BACKLOG = 2048
LAST_WORDS = 2.0
"""Seconds that streams which were ended at shutdown have to tell their clients."""

T = TypeVar("T")


class _Uvicorn(uvicorn.Server):
    """uvicorn without signal handlers: whoever runs us has their own."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.running: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        if not self.running.done():
            self.running.set_result(None)


class GatewayServer:
    """Serves a gateway's application. Belongs to the event loop in which it was started; for `async with`.

    Attributes:
        url: where it listens, with the real port, once it is started. app: what it serves. guard: what may change
            meanwhile, the API keys for one.
    """

    def __init__(
        self,
        app: Starlette,
        settings: GatewaySettings | None = None,
        *,
        host: str = "127.0.0.1",
        port: int = 8080,
        socket: str | None = None,
    ) -> None:
        """Nothing is bound yet.

        Args:
            app: what `create_app` made. settings: the same that it was given.
            host, port: where to listen; port 0: any that is free. socket: path of a Unix socket instead.

        Raises:
            SettingError: others can reach the address and there are no keys, or the TLS files cannot be used.
        """
        self.settings = settings = settings or app.state.gateway.settings
        if socket is None:
            check_exposure(host, keys=len(app.state.guard.keys), allow_open=settings.allow_open)
        self.url = ""
        self.app = app
        self.guard: Guard = app.state.guard
        self._where = (host, port, socket)
        self._config = self._configure()
        self._certificate = _digest(settings)
        self._server: _Uvicorn | None = None
        self._serving: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._last_call: asyncio.TimerHandle | None = None

    def _configure(self) -> uvicorn.Config:
        settings = self.settings
        if (settings.tls_cert_file is None) != (settings.tls_key_file is None):
            raise SettingError("tls_cert_file and tls_key_file are needed both, or none of them")
        config = uvicorn.Config(
            self.app,
            http=bound(limits_of(settings, room_for_connections(settings.max_connections))),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=True,
            workers=1,
            backlog=BACKLOG,
            timeout_keep_alive=math.ceil(settings.idle_timeout),
            timeout_graceful_shutdown=math.ceil(settings.drain_timeout + LAST_WORDS),
            ssl_certfile=settings.tls_cert_file,
            ssl_keyfile=settings.tls_key_file,
        )
        try:
            config.load()
        except (OSError, ssl.SSLError) as error:
            raise _unusable(settings, error) from None
        if config.ssl is not None:
            config.ssl.minimum_version = ssl.TLSVersion.TLSv1_2
        return config

    async def start(self) -> Self:
        """Listen, and serve from now on.

        Raises:
            PortInUseError: the address cannot be bound.
        """
        host, port, path = self._where
        listener = listening_socket(host, port, path, BACKLOG)
        self.url = url_of(listener, host, path, tls=self._config.ssl is not None)
        self._server = server = _Uvicorn(self._config)
        self.guard.closing = False
        self.guard.connections = lambda: len(server.server_state.connections)
        self._serving = asyncio.ensure_future(server.serve(sockets=[listener]))
        await asyncio.wait((self._serving, server.running), return_when=asyncio.FIRST_COMPLETED)
        if not server.running.done():
            listener.close()
            await self._serving
            raise LlamaStreamError("the gateway ended while it started; its log says why")
        watch = StallWatch(lambda: server.server_state.connections, self.settings.stall_timeout)
        self._watch = asyncio.ensure_future(watch.run())
        return self

    async def stop(self) -> None:
        """Take no more connections, let running requests end for `drain_timeout`, tell those that still run, and close
        everything. Idempotent."""
        self.request_stop()
        await self.wait()

    def request_stop(self) -> None:
        """Begin to stop; a second time: do not wait for running requests any more. In the event loop's thread."""
        server = self._server
        if server is None:
            return
        if not server.should_exit:
            server.should_exit = True
            for call in self.guard.on_stop:
                call()
            self.app.state.gateway.lanes.shut()
            loop = asyncio.get_running_loop()
            self._last_call = loop.call_later(self.settings.drain_timeout, self._end_requests)
        else:
            self._end_requests()

    def _end_requests(self) -> None:
        assert self._server is not None
        self.guard.closing = True
        for task in tuple(self._server.server_state.tasks):
            task.cancel("the gateway is shutting down")
        asyncio.get_running_loop().call_later(LAST_WORDS, self._hang_up)

    def _hang_up(self) -> None:
        """On those who do not even listen to that."""
        assert self._server is not None
        for protocol in tuple(self._server.server_state.connections):
            protocol.transport.abort()

    def reload(self, settings: GatewaySettings) -> Takeover:
        """Take over what may change while it serves: the keys and the TLS certificate (both are read anew), the bounds
        of requests and of the line. No connection is dropped, and requests that run are not asked again. From any
        thread.

        Raises:
            SettingError: the keys or the certificate cannot be used; nothing has changed then.
        """
        before = self.settings
        kept, fixed = live_part(before, settings)
        keys = self.guard.read(kept)
        certificate = self._certificate
        if self._config.ssl is not None:
            self._load_certificate(self._config.ssl, kept)
            certificate = _digest(kept)
        taken = taken_over(before, kept, keys=keys != self.guard.keys, certificate=certificate != self._certificate)
        self.guard.keys = keys
        self.settings = kept
        self._certificate = certificate
        self._config.timeout_graceful_shutdown = math.ceil(kept.drain_timeout + LAST_WORDS)
        self.app.state.gateway.reload(kept)
        return Takeover(taken, fixed)

    @staticmethod
    def _load_certificate(context: ssl.SSLContext, settings: GatewaySettings) -> None:
        assert settings.tls_cert_file is not None  # else there were no context
        try:
            context.load_cert_chain(settings.tls_cert_file, settings.tls_key_file)
        except (OSError, ssl.SSLError) as error:
            raise _unusable(settings, error) from None

    async def wait(self) -> None:
        """Until it has ended."""
        server, serving = self._server, self._serving
        if server is None or serving is None:
            return
        try:
            await asyncio.shield(serving)
        finally:
            if serving.done():
                for task in (self._last_call, self._watch):
                    if task is not None:
                        task.cancel()
                self._hang_up()
                remove_socket(self._where[2])

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()


def _digest(settings: GatewaySettings) -> bytes:
    """Tells one certificate with its key from another, without keeping either."""
    found = hashlib.sha256()
    for path in filter(None, (settings.tls_cert_file, settings.tls_key_file)):
        with contextlib.suppress(OSError):
            found.update(Path(path).read_bytes())
    return found.digest()


def _unusable(settings: GatewaySettings, error: Exception) -> SettingError:
    files = f"tls_cert_file = {settings.tls_cert_file!r} and tls_key_file = {settings.tls_key_file!r}"
    return SettingError(f"{files} cannot be used: {error}")


def run_gateway(
    app: Starlette,
    settings: GatewaySettings | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    socket: str | None = None,
    ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve in the foreground until SIGTERM or SIGINT; running requests then have `drain_timeout`, and a second signal
    ends them. For the main thread.

    Args:
        app, settings, host, port, socket: see `GatewayServer`. ready: called with the address once it listens.

    Raises:
        SettingError, PortInUseError: see `GatewayServer`.
    """
    server = GatewayServer(app, settings, host=host, port=port, socket=socket)

    async def work() -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, server.request_stop)
        async with server:
            ready(server.url)
            await server.wait()

    run_loop(work())


def run_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end, on uvloop where it is installed."""
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(work)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
