"""The gateway that `serve` runs, in a thread of its own beside the fleet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from llamastream.backends import BackendSource
from llamastream.errors import SettingError
from llamastream.events import FleetEvent, RequestServed
from llamastream.fleet.behind import Front
from llamastream.fleet.records import Record
from llamastream.gateway.settings import GatewaySettings
from llamastream.observe.access import describe_served

BEAT = 30.0
"""Seconds within which the gateway's event loop has to show that it turns."""


class FrontGateway:
    """A gateway before a source of servers."""

    def __init__(
        self,
        source: BackendSource,
        settings: GatewaySettings,
        front: Front,
        take: Callable[[Record], None],
        *,
        status: Callable[[], Any] | None = None,
        operate: Callable[[str, str], str] | None = None,
        alerts: Callable[[], Sequence[Any]] | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        """Nothing is bound yet.

        Args:
            take: gets a record of each request that is over. status: what `/fleet` says. operate: what the
                dashboard's buttons do. on_end: called when it serves
                no more.

        Raises:
            SettingError: others can reach the address and there are no keys, or keys or certificates cannot be used.
        """
        # here, and not above: who serves without it needs none of its libraries
        try:
            from llamastream.gateway.app import create_app
            from llamastream.gateway.operations import new_metrics
            from llamastream.gateway.server import GatewayServer
            from llamastream.gateway.thread import GatewayThread
        except ImportError as error:
            raise SettingError(
                f"the gateway needs the package {error.name}: pip install 'llamastream[server]', or serve without it "
                "(--no-gateway)"
            ) from None

        metrics = new_metrics()
        app = create_app(
            source,
            settings,
            metrics=metrics,
            listeners=[lambda event: take(record_of(event))],
            status=status,
            operate=operate,
            alerts=alerts,
        )
        self._metrics = metrics
        self._board = None if app.state.dashboard is None else app.state.dashboard.board
        if self._board is not None:
            self._board.telling = True
        server = GatewayServer(app, settings, host=front.host, port=front.port, socket=front.socket)
        self._thread = GatewayThread(server, on_end)
        self._lanes = app.state.gateway.lanes

    @property
    def url(self) -> str:
        """Where it listens; "" before."""
        return self._thread.server.url

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return int(self._lanes.waiting)

    @property
    def alive(self) -> bool:
        """Whether its event loop turns."""
        return self._thread.responds(BEAT)

    def hear(self, event: FleetEvent) -> None:
        """Take an event of the fleet, for metrics and dashboard."""
        self._metrics(event)
        if self._board is not None:
            self._board(event)

    def show(self, record: Record) -> None:
        """Take a line for the dashboard's log, in which no secret may be left."""
        if self._board is not None:
            self._board.log(record.time, record.level, record.message, instance=record.instance, event=record.event)

    def start(self) -> None:
        """Listen, and serve from now on.

        Raises:
            PortInUseError: the address cannot be bound.
        """
        self._thread.start()

    def reload(self, settings: GatewaySettings) -> tuple[str, ...]:
        """See `GatewayServer.reload`."""
        return self._thread.server.reload(settings)

    def request_stop(self) -> None:
        """Take no more requests, and let those that run end; a second time: cut them."""
        self._thread.request_stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return self._thread.join(timeout)


def record_of(event: RequestServed) -> Record:
    """What became of a request, for the log."""
    fields = {name: value for name, value in describe_served(event).items() if name != "time"}
    message = f"{event.method} {event.route} {event.status}"
    if event.model:
        message += f" {event.model}"
    if event.finish_reason:
        message += f" {event.finish_reason}"
    message += f" in {event.duration:.3f} s"
    return Record(
        time=time.time(),
        level="warning" if event.status >= 500 or event.finish_reason == "error" else "info",
        event="request",
        message=message,
        instance=event.instance,
        fields=fields,
    )
