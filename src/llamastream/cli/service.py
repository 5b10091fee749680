"""A fleet in the foreground, from its start to its end: signals, commands over the control socket, reloads."""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from functools import partial

import msgspec

from llamastream._version import __version__
from llamastream.backends import ROUTABLE
from llamastream.cli.alerting import check_reload, watchman_of
from llamastream.cli.announce import announce, ready_fields
from llamastream.cli.foreground import TICK, Foreground
from llamastream.cli.front import FrontGateway
from llamastream.cli.operate import operate
from llamastream.cli.servelog import ServeLog
from llamastream.cli.serveplan import ServePlan
from llamastream.cli.signals import STOPPING
from llamastream.errors import EngineCrashedError, LlamaStreamError, SettingError
from llamastream.events import FleetEvent, InstanceChanged
from llamastream.fleet import rendezvous
from llamastream.fleet.control import ControlServer
from llamastream.fleet.fleet import GONE, Fleet
from llamastream.fleet.messages import FleetStatus
from llamastream.fleet.operations import Reloaded
from llamastream.fleet.orphans import Reaper
from llamastream.fleet.records import of_event, of_log
from llamastream.fleet.systemd import Notifier
from llamastream.heap import trim
from llamastream.types import LogRecord


class Service(Foreground[ServePlan]):
    """Runs a fleet until it is told to stop."""

    fleet: Fleet

    def __init__(
        self,
        configure: Callable[[], ServePlan],
        log: ServeLog,
        notifier: Notifier | None = None,
    ) -> None:
        """Nothing runs yet, but its directory is taken: `close` gives that back.

        Args:
            configure: reads the configuration, also anew. log: takes all that is said.

        Raises:
            SettingError: the configuration is not allowed, or a fleet with its name runs already.
        """
        super().__init__(configure, log, notifier)
        self._end: LlamaStreamError | None = None
        self._exit_code = 0
        self._forced = 0
        self._told_failed: list[str] = []
        self._starter: threading.Thread | None = None
        self._reaper = Reaper()
        plan = self._plan
        self.configuration = plan.configuration
        try:
            self.fleet = Fleet(
                plan.pools(self._place.path),
                settings=self.configuration.settings,
                listeners=[self._heard],
                on_log=self._logged,
            )
            if plan.alerts.watch:
                self.alerts = watchman_of(
                    plan.alerts, self.fleet, lambda: self._front, self._take, self.configuration,
                    name=self.configuration.name,
                )  # fmt: skip
            if plan.front is not None:
                self._front = FrontGateway(
                    self.fleet, plan.gateway, plan.front, self._take,
                    status=self.status, operate=partial(operate, self), alerts=self.alerts,
                    on_end=lambda: self._inbox.put(("gateway ended", None)),
                )  # fmt: skip
                self._voice.show = self._front.show
        except BaseException:
            self.close()
            raise

    # -- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Start the fleet, and end it when a signal or a command says so; the exit code.

        Raises:
            LlamaStreamError: it could not be started, or every instance has failed for good.
        """
        code = super().run()
        if self._end is not None:
            raise self._end
        return code

    def _begin(self) -> None:
        self._starter = self._in_background(self._start)

    def _loop(self, control: ControlServer) -> int:
        while True:
            what, value = self._next(control)
            if what == "signal":
                self._signalled(value)
            elif what == "stop":
                self._told_to_stop(now=value)
            elif what == "started" and self._phase == "starting":
                self._ready()
            elif what == "changed" and self._phase == "running":
                self._look_at_all()
            elif what == "failed":
                self._end = value
                self._end_front()
                return self._exit_code
            elif what == "gateway ended" and self._phase != "stopping":
                self._end = LlamaStreamError("the gateway has ended by itself; the log says why")
                self._told_to_stop(now=True)
            elif what == "stopped":
                self._say("stopped", "stopped")
                return self._exit_code

    def _tick(self, control: ControlServer) -> None:
        self._reaper.tick()
        if self._phase != "running":
            self._notifier.extend(4 * TICK)
        # only while all of us is well: systemd starts us anew when it hears nothing
        if control.alive and self.fleet.supervised and (self._front is None or self._front.alive):
            self._notifier.alive()

    def _signalled(self, number: int) -> None:
        if number not in STOPPING:
            self._in_background(self._reload_quietly)
            return
        if self._phase == "starting":
            self._exit_code = 128 + number
        elif self._phase == "stopping":
            self._forced += 1
            if self._forced > 1:
                os._exit(128 + number)  # the servers follow: their guards notice that we are gone
        self._told_to_stop(now=self._forced > 0)

    def _told_to_stop(self, *, now: bool) -> None:
        if self._phase == "stopping":
            if now:
                self._cut()
            return
        starting = self._phase == "starting"
        self._stopping(now=now)
        self._in_background(lambda: self._stop(drain=not (now or starting)))
        if now:
            self._cut()

    def _cut(self) -> None:
        """Wait for no request and no server any more."""
        if self._front is not None:
            self._front.request_stop()
            self._front.request_stop()
        self.fleet.hasten()
        for report in self.fleet.status():
            with contextlib.suppress(LlamaStreamError):  # gone meanwhile
                if (engine := self.fleet.engine(report.id)) is not None:
                    engine.kill()

    def _ready(self) -> None:
        self._phase = "running"
        reports = self.fleet.status()
        engines = {report.id: engine for report in reports if (engine := self.fleet.engine(report.id)) is not None}
        message = f"{len(reports)} instances are ready" if len(reports) > 1 else "the server is ready"
        url = None if self._front is None else self._front.url
        control = str(self._place.path / rendezvous.SOCKET)
        self._say("ready", message, **ready_fields(self.name, control, engines, url))
        announce(engines, self._log, url)
        self._notifier.ready(self._summary())
        self._look_at_all()
        gc.collect()
        trim()  # a start takes some megabytes that are not needed again

    def _look_at_all(self) -> None:
        """After a change of an instance."""
        self._notifier.status(self._summary())
        reports = self.fleet.status()
        failed = [report.id for report in reports if report.state == "failed"]
        if failed and all(report.state in GONE for report in reports):
            reasons = "; ".join(f"{report.id}: {report.reason}" for report in reports if report.state == "failed")
            self._end = EngineCrashedError(f"every instance has failed for good: {reasons}")
            self._told_to_stop(now=True)
        elif set(failed) - set(self._told_failed):
            message = f"{len(failed)} of {len(reports)} instances have failed for good; to try again: "
            self._say("failed", f"{message}llamastream restart {' '.join(failed)}", level="error")
        self._told_failed = failed

    def _summary(self) -> str:
        reports = self.fleet.status()
        ready = sum(report.state in ROUTABLE for report in reports)
        others = [f"{report.id} {report.state}" for report in reports if report.state not in ROUTABLE]
        return ", ".join((f"{ready} of {len(reports)} instances ready", *others[:5]))

    # -- threads of their own -------------------------------------------------------------------------------------

    def _start(self) -> None:
        try:
            self.fleet.start()
        except LlamaStreamError as error:
            if self._phase == "starting":
                self._inbox.put(("failed", error))
        except BaseException as error:
            self._inbox.put(("failed", EngineCrashedError(f"a fault of this program: {error!r}")))
            raise
        else:
            self._inbox.put(("started", None))

    def _end_front(self) -> None:
        if self._front is not None:
            self._front.request_stop()
            self._front.join()

    def _stop(self, *, drain: bool) -> None:
        self._end_front()  # first: what runs there may still need another server
        if self.alerts is not None:
            self.alerts.close()
        self.fleet.stop(drain=drain)
        while self._starter is not None and self._starter.is_alive():  # it may have begun instances after that
            self._starter.join(0.1)
            self.fleet.stop(drain=False)
        self._inbox.put(("stopped", None))

    # -- what commands ask (see `Host`) ----------------------------------------------------------------------------

    def status(self) -> FleetStatus:
        """For commands: how everything is."""
        return FleetStatus(
            name=self.name,
            pid=os.getpid(),
            version=__version__,
            started=self._started,
            phase=self._phase,
            instances=self.fleet.status() if self._front is None else self._front.counted(self.fleet.status()),
            url="" if self._front is None else self._front.url,
            waiting=0 if self._front is None else self._front.waiting,
        )

    def _no_reload(self) -> str | None:
        return None if self._phase == "running" else f"the fleet is {self._phase}: a reload has to wait until it runs"

    def _apply(self, plan: ServePlan) -> Reloaded:
        configuration = plan.configuration
        before = {report.id for report in self.fleet.status()}
        if (plan.front is None) != (self._front is None):
            raise SettingError("the gateway cannot be switched on or off by a reload: start `serve` again")
        check_reload(plan.alerts, self.alerts)
        taken: tuple[str, ...] = ()
        fixed: tuple[str, ...] = ()
        if self._front is not None:
            takeover = self._front.reload(plan.gateway)
            taken, fixed = takeover.taken, takeover.fixed
        try:
            orders = self.fleet.reload(plan.pools(self._place.path))
        except LlamaStreamError:
            if self._front is not None:
                self._front.reload(self._plan.gateway)
            raise
        if self.alerts is not None:
            self.alerts.reload(plan.alerts)
        self._plan = plan
        fresh = tuple(report.id for report in self.fleet.status() if report.id not in before)
        changed = [
            field
            for field in msgspec.structs.asdict(configuration.settings)
            if field != "instances" and getattr(configuration.settings, field) != getattr(self.fleet.settings, field)
        ]
        notes = tuple(
            f"for other values of {', '.join(names)} ([{section}]) start `serve` again"
            for section, names in (("fleet", changed), ("gateway", fixed))
            if names
        )
        self.configuration = msgspec.structs.replace(configuration, settings=self.configuration.settings)
        return Reloaded(tuple(orders), fresh, notes, taken)

    # -- what is said ----------------------------------------------------------------------------------------------

    def _heard(self, event: FleetEvent) -> None:
        if self._front is not None:
            self._front.hear(event)
        if self.alerts is not None:
            self.alerts.hear(event)
        self._take(of_event(event, time.time()))
        if isinstance(event, InstanceChanged):
            self._inbox.put(("changed", None))

    def _logged(self, instance: str, record: LogRecord) -> None:
        self._take(of_log(instance, record))
