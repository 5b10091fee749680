"""A gateway for tests, in a thread of its own, on a free port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from llamastream.backends import BackendSource
from llamastream.gateway import GatewaySettings, create_app
from llamastream.gateway.app import Gateway
from llamastream.gateway.wire import SpliceProtocol


class Running:
    """A gateway that runs: `url`, and the gateway itself (of another thread: read, do not change)."""

    def __init__(self, url: str, gateway: Gateway) -> None:
        self.url = url
        self.gateway = gateway


@contextmanager
def serving(source: BackendSource, settings: GatewaySettings | None = None) -> Iterator[Running]:
    """With a gateway before the servers of a source."""
    app = create_app(source, settings)
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: object = None) -> None:
            await super().startup()
            started.set()

    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, http=SpliceProtocol, log_level="warning", access_log=False, proxy_headers=False,
        server_header=False, timeout_graceful_shutdown=5,
    )  # fmt: skip
    server = Server(config)
    thread = threading.Thread(target=server.run, name="gateway")
    thread.start()
    assert started.wait(30)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", app.state.gateway)
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
