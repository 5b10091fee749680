"""A gateway for tests, in a thread of its own, on a free port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fleets import Watched, running
from llamastream.backends import BackendSource
from llamastream.engine import EngineOptions
from llamastream.events import RequestServed
from llamastream.gateway import GatewaySettings, create_app
from llamastream.gateway.app import Gateway
from llamastream.gateway.server import GatewayServer
from llamastream.gateway.thread import gateway_thread
from llamastream.observe.metrics import Metrics

USER_KEY = "sk-user-0123456789"

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


class Running:
    """A gateway that runs: `url`, and the gateway itself (of another thread: read, do not change).

    Attributes:
        served: what became of each request that is over.
    """

    def __init__(self, server: GatewayServer, gateway: Gateway, served: list[RequestServed]) -> None:
        self.url = server.url
        self.server = server
        self.gateway = gateway
        self.served = served

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """Its event loop."""
        task = self.server._serving
        assert task is not None
        return task.get_loop()

    def busiest(self) -> int:
        """Which of the instances has the most to do, as its number."""
        at_work = self.gateway.lanes.at_work()
        loads = [at_work.get(each.id, 0) for each in self.gateway.source.snapshot()]
        return loads.index(max(loads))

    def busy(self) -> int:
        """Which of the instances works on the only request that there is, as its number."""
        at_work = self.gateway.lanes.at_work()
        (found,) = [n for n, each in enumerate(self.gateway.source.snapshot()) if at_work.get(each.id)]
        return found


@contextmanager
def serving(
    source: BackendSource,
    settings: GatewaySettings | None = None,
    *,
    metrics: Metrics | None = None,
    port: int = 0,
    **more: Any,
) -> Iterator[Running]:
    """With a gateway before the servers of a source; `more` goes to `create_app`."""
    served: list[RequestServed] = []
    app = create_app(source, settings, metrics=metrics, listeners=[served.append], **more)
    with gateway_thread(app, port=port) as server:
        yield Running(server, app.state.gateway, served)


@contextmanager
def before_two(settings: GatewaySettings | None = None) -> Iterator[tuple[Watched, Running]]:
    """With a gateway before two servers that can be killed; it wants `USER_KEY` unless settings say otherwise."""
    settings = settings or GatewaySettings(api_keys=USER_KEY)
    with (
        running(EngineOptions(threads=1, parallel=8), instances=2, wedge_after=30.0) as watched,
        serving(watched.fleet, settings) as gateway,
    ):
        yield watched, gateway
