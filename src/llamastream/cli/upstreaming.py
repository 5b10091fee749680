"""The gateway alone in the foreground, before servers that somebody else runs."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from llamastream._version import __version__
from llamastream.alerts.watchman import Watchman
from llamastream.cli.alerting import check_reload, watchman_of
from llamastream.cli.front import FrontGateway
from llamastream.cli.servelog import LoggingBridge, ServeLog
from llamastream.cli.serveplan import UpstreamPlan, secret_keys
from llamastream.cli.signals import STOPPING, Signals
from llamastream.cli.voice import Voice
from llamastream.errors import LlamaStreamError
from llamastream.events import InstanceChanged
from llamastream.fleet import rendezvous
from llamastream.fleet.control import ControlServer
from llamastream.fleet.messages import FleetStatus
from llamastream.fleet.operations import Reloaded, carry_out
from llamastream.fleet.records import of_event
from llamastream.fleet.report import InstanceReport
from llamastream.fleet.systemd import Notifier

if TYPE_CHECKING:
    from llamastream.gateway.upstreams import Upstream

TICK = 5.0


class Upstreaming:
    """Runs the gateway until it is told to stop. `run` is for the main thread; commands come from others (see `Host`).

    It is ready when the first of the servers is; until then it listens, and answers with 503.
    """

    fleet = None
    """There is none: the servers are somebody else's."""

    def __init__(self, configure: Callable[[], UpstreamPlan], log: ServeLog) -> None:
        """Nothing listens yet, but its directory is taken: `close` gives that back.

        Args:
            configure: reads the configuration, also anew. log: takes all that is said.

        Raises:
            SettingError: the configuration is not allowed, or another one with its name runs already.
        """
        self._configure = configure
        self._log = log
        voice = Voice(log)
        self._take, self._say, self.feed = voice.take, voice.say, voice.feed
        self._notifier = Notifier()
        self._inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._phase = "starting"
        self._started = time.time()
        self._reloading = threading.Lock()
        self._told_unreachable = False
        plan = configure()
        self._hide(plan)
        self.name = plan.name
        from llamastream.gateway.upstreams import Upstreams  # here, as in `cli.front`

        self._source = Upstreams(plan.gateway.upstreams, plan.gateway.upstream_api_key, listeners=[self._heard])
        self.alerts: Watchman | None = None
        self._place = rendezvous.settle(plan.name)
        try:
            if plan.alerts.watch:
                self.alerts = watchman_of(plan.alerts, self._source, lambda: self._front, self._take, name=plan.name)
            self._front: FrontGateway = FrontGateway(
                self._source, plan.gateway, plan.front, self._take,
                status=self.status, on_end=lambda: self._inbox.put(("ended", None)), alerts=self.alerts,
            )  # fmt: skip
            voice.show = self._front.show
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give back the directory. Idempotent."""
        if self.alerts is not None:
            self.alerts.close()
        self._place.close()

    def run(self) -> int:
        """Serve until a signal or a command says otherwise; the exit code.

        Raises:
            LlamaStreamError: it could not begin, or ended by itself.
        """
        bridge = LoggingBridge(self._take)
        logging.getLogger("llamastream").addHandler(bridge)
        try:
            with Signals(lambda number: self._inbox.put(("signal", number))):
                control = ControlServer(self._place.path / rendezvous.SOCKET, lambda request: carry_out(request, self))
                with contextlib.closing(control):
                    control.start()
                    self._front.start()
                    if self.alerts is not None:
                        self.alerts.start()
                    self._say("listening", f"the gateway listens on {self._front.url}", url=self._front.url)
                    self._loop(control)
                    self.feed.close()
        finally:
            logging.getLogger("llamastream").removeHandler(bridge)
            self._notifier.close()
            self.close()
        return 0

    def request_stop(self) -> None:
        """Stop as on SIGTERM; from any thread."""
        self._inbox.put(("stop", False))

    # -- the loop -------------------------------------------------------------------------------------------------

    def _loop(self, control: ControlServer) -> None:
        self._look_at_all()
        while True:
            try:
                what, value = self._inbox.get(timeout=min(TICK, self._notifier.watchdog or TICK))
            except Empty:
                self._tick(control)
                continue
            if what == "ended":
                break
            if what == "changed":
                self._look_at_all()
            elif what == "signal" and value not in STOPPING:
                threading.Thread(target=self._reload_quietly, name="llamastream-serve", daemon=True).start()
            else:
                self._told_to_stop(now=what == "stop" and bool(value))
        self._front.join()
        if self._phase != "stopping":
            raise LlamaStreamError("the gateway has ended by itself; the log says why")
        self._say("stopped", "stopped")

    def _tick(self, control: ControlServer) -> None:
        if self._phase == "starting":
            self._notifier.extend(4 * TICK)  # it waits for servers of somebody else, and does its work
        if control.alive and self._front.alive:
            self._notifier.alive()

    def _told_to_stop(self, *, now: bool) -> None:
        if self._phase != "stopping":
            self._phase = "stopping"
            self._say("stopping", "stopping, at once" if now else "stopping")
            self._notifier.stopping("stopping")
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

    def reload(self) -> Reloaded:
        """For commands: read the configuration anew, and take over what can be.

        Raises:
            LlamaStreamError: it is not allowed; nothing has changed then.
        """
        with self._reloading:
            running = self._phase == "running"
            if running:
                self._notifier.reloading()
            try:
                plan = self._configure()
                self._hide(plan)
                check_reload(plan.alerts, self.alerts)
                takeover = self._front.reload(plan.gateway)
                if self.alerts is not None:
                    self.alerts.reload(plan.alerts)
            except LlamaStreamError as error:
                self._say("reload_failed", f"the configuration stays as it was: {error.message}", level="error")
                raise
            finally:
                if running:
                    self._notifier.ready(self._summary())
        fixed = takeover.fixed
        notes = (f"for other values of {', '.join(fixed)} ([gateway]) start `serve` again",) if fixed else ()
        reloaded = Reloaded(notes=notes, taken=takeover.taken)
        self._say("reload", f"the configuration was read anew: {reloaded.summary()}")
        return reloaded

    def _reload_quietly(self) -> None:
        with contextlib.suppress(LlamaStreamError):  # it has been said
            self.reload()

    def stop(self, *, now: bool) -> None:
        """For commands: begin to end."""
        self._inbox.put(("stop", now))

    def _hide(self, plan: UpstreamPlan) -> None:
        settings = plan.gateway
        keys = secret_keys(settings)
        self._log.hide(key for key in (*keys, settings.upstream_api_key, *plan.alerts.secrets) if key)


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
