"""The gateway alone in the foreground, before servers that somebody else runs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from llamastream.alerts.settings import AlertSettings
from llamastream.alerts.watchman import Watchman
from llamastream.cli.alerting import watchman_of
from llamastream.cli.front import FrontGateway
from llamastream.cli.servelog import LoggingBridge, ServeLog
from llamastream.cli.signals import STOPPING, Signals
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.fleet.behind import Front
from llamastream.fleet.records import Level, Record
from llamastream.fleet.systemd import Notifier
from llamastream.gateway.settings import GatewaySettings

TICK = 5.0


class Upstreaming:
    """Runs the gateway until it is told to stop. `run` is for the main thread."""

    def __init__(self, configure: Callable[[], tuple[GatewaySettings, Front, AlertSettings]], log: ServeLog) -> None:
        """Args:
            configure: reads the configuration, also anew. log: takes all that is said.

        Raises:
            SettingError: the configuration is not allowed.
        """
        self._configure = configure
        self._log = log
        self._notifier = Notifier()
        self._inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._stopping = False
        settings, front, alerts = configure()
        self._hide(settings, alerts)
        from llamastream.gateway.upstreams import Upstreams  # here, as in `cli.front`

        self._urls = settings.upstreams
        source = Upstreams(settings.upstreams, settings.upstream_api_key)
        self._alerts: Watchman | None = None
        if alerts.watch:
            self._alerts = watchman_of(alerts, source, lambda: self._front, self._take)
        self._front: FrontGateway = FrontGateway(
            source, settings, front, self._take, on_end=lambda: self._inbox.put(("ended", None)), alerts=self._alerts
        )

    def run(self) -> int:
        """Serve until a signal says otherwise; the exit code.

        Raises:
            LlamaStreamError: it could not begin, or ended by itself.
        """
        bridge = LoggingBridge(self._take)
        logging.getLogger("llamastream").addHandler(bridge)
        try:
            with Signals(lambda number: self._inbox.put(("signal", number))):
                self._front.start()
                if self._alerts is not None:
                    self._alerts.start()
                self._say("ready", f"the gateway listens on {self._front.url}", url=self._front.url)
                there = ", ".join(self._urls)
                if self._log.form == "human":
                    self._announce(there)
                self._log.announced = True
                self._notifier.ready(f"before {there}")
                self._loop()
        finally:
            if self._alerts is not None:
                self._alerts.close()
            logging.getLogger("llamastream").removeHandler(bridge)
            self._notifier.close()
        return 0

    def _announce(self, there: str) -> None:
        from rich.text import Text  # megabytes, for people alone

        self._log.console.print(Text.assemble("serving ", (there, "bold"), " on ", (self._front.url, "bold")))
        self._log.console.print(Text("Ctrl-C stops.", style="dim"))

    def request_stop(self) -> None:
        """Stop as on SIGTERM; from any thread."""
        self._inbox.put(("stop", None))

    def _loop(self) -> None:
        while True:
            try:
                what, value = self._inbox.get(timeout=min(TICK, self._notifier.watchdog or TICK))
            except Empty:
                if self._front.alive:
                    self._notifier.alive()
                continue
            if what == "ended":
                break
            if what == "signal" and value not in STOPPING:
                self._reload()
            else:
                if not self._stopping:
                    self._stopping = True
                    self._say("stopping", "stopping")
                    self._notifier.stopping("stopping")
                self._front.request_stop()
        self._front.join()
        if not self._stopping:
            raise LlamaStreamError("the gateway has ended by itself; the log says why")
        self._say("stopped", "stopped")

    def _reload(self) -> None:
        self._notifier.reloading()
        try:
            settings, _, alerts = self._configure()
            self._hide(settings, alerts)
            if self._alerts is not None:
                self._alerts.reload(alerts)
            fixed = self._front.reload(settings)
        except SettingError as error:
            self._say("reload_failed", f"the configuration stays as it was: {error.message}", level="error")
        else:
            note = f"; for other values of {', '.join(fixed)} start `serve` again" if fixed else ""
            self._say("reload", f"the configuration was read anew{note}")
        finally:
            self._notifier.ready(f"before {', '.join(self._urls)}")

    def _hide(self, settings: GatewaySettings, alerts: AlertSettings) -> None:
        keys = {word.rpartition(":")[2] for word in (settings.api_keys or "").split()}
        self._log.hide(key for key in (*keys, settings.upstream_api_key, *alerts.secrets) if key)

    def _say(self, event: str, message: str, level: Level = "info", **fields: Any) -> None:
        self._take(Record(time=time.time(), level=level, event=event, message=message, fields=fields))

    def _take(self, record: Record) -> None:
        self._log.take(record)
        self._front.show(self._log.censored(record))
