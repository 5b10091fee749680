"""The gateway that `serve` runs, in a thread of its own beside the fleet."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from llamastream.alerts.messages import AlertReport
from llamastream.alerts.settings import RULE_NAMES
from llamastream.alerts.watchman import Watchman
from llamastream.backends import BackendSource
from llamastream.errors import SettingError
from llamastream.events import FleetEvent, GatewayListener, RequestServed
from llamastream.fleet.behind import Front
from llamastream.fleet.records import Record
from llamastream.fleet.report import InstanceReport
from llamastream.gateway.settings import GatewaySettings
from llamastream.heap import settle
from llamastream.observe.access import describe_served
from llamastream.observe.series import Sample

if TYPE_CHECKING:
    from llamastream.gateway.reloading import Takeover

WATCHING = ("/dashboard", "/health")
"""Beginnings of routes whose requests are no news to those who watch: the page's own, and probes."""
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
        on_end: Callable[[], None] = lambda: None,
        alerts: Watchman | None = None,
    ) -> None:
        """Nothing is bound yet.

        Args:
            take: gets a record of each request that is over. status: what `/fleet` says. operate: what
                the dashboard's buttons do. on_end: called when it serves
                no more. alerts: told of each request that is over, and shown in the metrics.

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
        heard: list[GatewayListener] = [lambda event: take(record_of(event))]
        if alerts is not None:
            heard.append(alerts.hear)
            metrics.scrapers.append(lambda: samples_of(alerts))
        app = create_app(
            source,
            settings,
            metrics=metrics,
            listeners=heard,
            status=status,
            operate=operate,
            alerts=None if alerts is None else lambda: active_of(alerts),
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

    def counted(self, reports: Iterable[InstanceReport]) -> tuple[InstanceReport, ...]:
        """The reports, with the gateway's own count of requests where that is larger."""
        from llamastream.gateway.operations import counted  # as above

        return counted(reports, self._lanes.at_work())

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
        """Take a line for the dashboard's log, in which no secret may be left; what only watches is left out."""
        if self._board is not None and not only_watches(record):
            self._board.log(record.time, record.level, record.message, instance=record.instance, event=record.event)

    def start(self) -> None:
        """Listen, and serve from now on.

        Raises:
            PortInUseError: the address cannot be bound.
        """
        self._thread.start()
        settle()

    def reload(self, settings: GatewaySettings) -> Takeover:
        """See `GatewayServer.reload`."""
        return self._thread.server.reload(settings)

    def request_stop(self) -> None:
        """Take no more requests, and let those that run end; a second time: cut them."""
        self._thread.request_stop()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until it has ended; whether it has."""
        return self._thread.join(timeout)


def only_watches(record: Record) -> bool:
    """Whether it is of a request that the dashboard itself makes, or a probe, and that went well."""
    fields = record.fields
    return (
        record.event == "request"
        and record.level == "info"
        and fields["route"].startswith(WATCHING)
        and fields["status"] < 400
    )


def active_of(alerts: Watchman) -> list[AlertReport]:
    """The alerts that are worth a look now."""
    return [
        report
        for report in alerts.reports()
        if report.phase in ("firing", "clearing") and report.silenced_until is None
    ]


def samples_of(alerts: Watchman) -> Iterator[Sample]:
    """Alerts, for the metrics."""
    firing = Counter(report.rule for report in alerts.reports() if report.phase in ("firing", "clearing"))
    for rule in RULE_NAMES:
        yield Sample("alerts_firing", (rule,), firing[rule])
    for receiver in alerts.receivers():
        for outcome in ("sent", "failed", "dropped"):
            yield Sample("alert_messages", (receiver.name, outcome), getattr(receiver, outcome))


def record_of(event: RequestServed) -> Record:
    """What became of a request, for the log."""
    message = f"{event.method} {event.route} {event.status}"
    if event.model:
        message += f" {event.model}"
    if event.finish_reason:
        message += f" {event.finish_reason}"
    message += f" in {event.duration:.3f} s"
    return Record(
        time=time.time(),
        level="warning" if event.status >= 500 or event.failed else "info",
        event="request",
        message=message,
        instance=event.instance,
        fields=describe_served(event),
    )
