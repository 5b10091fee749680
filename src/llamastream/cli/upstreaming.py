"""The gateway alone in the foreground, before servers that somebody else runs."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from msgspec.structs import replace

from llamastream._version import __version__
from llamastream.cli.alerting import check_reload, watchman_of
from llamastream.cli.foreground import TICK, Foreground
from llamastream.cli.front import FrontGateway
from llamastream.cli.servelog import ServeLog
from llamastream.cli.serveplan import UpstreamPlan
from llamastream.cli.signals import STOPPING
from llamastream.errors import LlamaStreamError
from llamastream.events import InstanceChanged
from llamastream.fleet import rendezvous
from llamastream.fleet.control import ControlServer
from llamastream.fleet.messages import FleetStatus
from llamastream.fleet.operations import Reloaded
from llamastream.fleet.records import of_event
from llamastream.fleet.report import InstanceReport

if TYPE_CHECKING:
    from llamastream.gateway.upstreams import Upstream


class Upstreaming(Foreground[UpstreamPlan]):
    """Runs the gateway until it is told to stop.

    It is ready when the first of the servers is; until then it listens, and answers with 503.
    """

    _front: FrontGateway

    def __init__(self, configure: Callable[[], UpstreamPlan], log: ServeLog) -> None:
        """Nothing listens yet, but its directory is taken: `close` gives that back.

        Args:
            configure: reads the configuration, also anew. log: takes all that is said.

        Raises:
            SettingError: the configuration is not allowed, or another one with its name runs already.
        """
        super().__init__(configure, log)
        self._told_unreachable = False
        plan = self._plan
        from llamastream.gateway.upstreams import Upstreams  # here, as in `cli.front`

        self._source = Upstreams(plan.gateway.upstreams, plan.gateway.upstream_api_key, listeners=[self._heard])
        try:
            if plan.alerts.watch:
                self.alerts = watchman_of(plan.alerts, self._source, lambda: self._front, self._take, name=plan.name)
            self._front = FrontGateway(
                self._source, plan.gateway, plan.front, self._take,
                status=self.status, on_end=lambda: self._inbox.put(("gateway ended", None)), alerts=self.alerts,
            )  # fmt: skip
            self._voice.show = self._front.show
        except BaseException:
            self.close()
            raise

    # -- the loop -------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        self._say("listening", f"the gateway listens on {self._front.url}", url=self._front.url)

    def _loop(self, control: ControlServer) -> int:
        self._look_at_all()
        while True:
            what, value = self._next(control)
            if what == "gateway ended":
                break
            if what == "changed":
                self._look_at_all()
            elif what == "signal" and value not in STOPPING:
                self._in_background(self._reload_quietly)
            else:
                self._told_to_stop(now=what == "stop" and bool(value))
        self._front.join()
        if self._phase != "stopping":
            raise LlamaStreamError("the gateway has ended by itself; the log says why")
        self._say("stopped", "stopped")
        return 0

    def _tick(self, control: ControlServer) -> None:
        if self._phase == "starting":
            self._notifier.extend(4 * TICK)  # it waits for servers of somebody else, and does its work
        if control.alive and self._front.alive:
            self._notifier.alive()

    def _told_to_stop(self, *, now: bool) -> None:
        if self._phase != "stopping":
            self._stopping(now=now)
            self._front.request_stop()
            if not now:
                return
        self._front.request_stop()  # a second time: requests have no more time

    def _look_at_all(self) -> None:
        """After a change of a server."""
        found = self._source.found()
        if self._phase == "starting":
            if any(each.backend.routable for each in found):
                self._ready()
            elif not self._told_unreachable and all(each.backend.state != "starting" for each in found):
                self._told_unreachable = True
                why = "; ".join(
                    f"{each.backend.id} ({each.url}) is {each.backend.state}: {each.reason}" for each in found
                )
                where = f"the gateway listens on {self._front.url}"
                message = f"{where}, but answers with 503 until a server takes requests: {why}"
                self._say("unreachable", message, level="warning", url=self._front.url)
        self._notifier.status(self._summary())

    def _ready(self) -> None:
        self._phase = "running"
        url, found = self._front.url, self._source.found()
        there = [{"id": each.backend.id, "url": each.url, "state": each.backend.state} for each in found]
        control = str(self._place.path / rendezvous.SOCKET)
        self._say(
            "ready", f"the gateway serves on {url}: {self._summary()}",
            url=url, name=self.name, control=control, instances=there,
        )  # fmt: skip
        if self._log.form == "human":
            self._announce(", ".join(each.url for each in found))
        self._log.announced = True
        self._notifier.ready(self._summary())

    def _announce(self, there: str) -> None:
        from rich.text import Text  # megabytes, for people alone

        self._log.console.print(Text.assemble("serving ", (there, "bold"), " on ", (self._front.url, "bold")))
        self._log.console.print(Text("Try: llamastream status. Ctrl-C stops.", style="dim"))

    def _summary(self) -> str:
        found = self._source.found()
        ready = sum(each.backend.routable for each in found)
        others = [f"{each.backend.id} {each.backend.state}" for each in found if not each.backend.routable]
        return ", ".join((f"{ready} of {len(found)} servers ready", *others[:5]))

    def _heard(self, event: InstanceChanged) -> None:
        """In the gateway's thread."""
        self._front.hear(event)
        record = of_event(event, time.time())
        back = event.before in ("failed", "loading", "starting") and event.after in ("ready", "loading")
        if not back:
            record = replace(record, level="warning")  # it may come back: an error is what stays
        elif event.after == "loading":
            record = replace(record, level="info")
        self._take(record)
        self._inbox.put(("changed", None))

    # -- what commands ask (see `Host`) ----------------------------------------------------------------------------

    def status(self) -> FleetStatus:
        """For commands: how everything is."""
        return FleetStatus(
            name=self.name,
            pid=os.getpid(),
            version=__version__,
            started=self._started,
            phase=self._phase,
            instances=self._front.counted(report_of(each) for each in self._source.found()),
            url=self._front.url,
            waiting=self._front.waiting,
        )

    def _apply(self, plan: UpstreamPlan) -> Reloaded:
        check_reload(plan.alerts, self.alerts)
        takeover = self._front.reload(plan.gateway)
        if self.alerts is not None:
            self.alerts.reload(plan.alerts)
        fixed = takeover.fixed
        notes = (f"for other values of {', '.join(fixed)} ([gateway]) start `serve` again",) if fixed else ()
        return Reloaded(notes=notes, taken=takeover.taken)


def report_of(upstream: Upstream) -> InstanceReport:
    """A server as `status` shows it; of its process nothing is known."""
    backend = upstream.backend
    return InstanceReport(
        id=backend.id,
        model=backend.models[0] if backend.models else "",
        url=upstream.url,
        pid=0,
        state=backend.state,
        reason=upstream.reason,
        since=upstream.since,
        slots=backend.slots,
        in_flight=backend.in_flight,
        requests=0,
        restarts=0,
        last_exit=None,
        rss_bytes=0,
        memory_slope=None,
        tokens_per_second=0.0,
        kind="upstream",
        build=upstream.build,
        start_seconds=0.0,
    )
