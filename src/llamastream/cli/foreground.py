"""What runs in the foreground until a signal or a command ends it, whether it has servers of its own or not."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Generic, Protocol, TypeVar

from llamastream.alerts.watchman import Watchman
from llamastream.cli.front import FrontGateway
from llamastream.cli.servelog import LoggingBridge, ServeLog
from llamastream.cli.signals import Signals
from llamastream.cli.voice import Voice
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.fleet import rendezvous
from llamastream.fleet.control import ControlServer
from llamastream.fleet.fleet import Fleet
from llamastream.fleet.messages import FleetStatus
from llamastream.fleet.operations import Reloaded, carry_out
from llamastream.fleet.systemd import Notifier

TICK = 5.0
"""Seconds between two looks after the whole."""


class Plan(Protocol):
    """What is to run."""

    @property
    def name(self) -> str:
        """By which other commands find it."""

    @property
    def secrets(self) -> frozenset[str]:
        """What must not be shown."""


P = TypeVar("P", bound=Plan)


class Foreground(ABC, Generic[P]):
    """Runs until it is told to stop. `run` is for the main thread; commands come from others (see `Host`).

    Signals, commands and whatever changes only put events in a queue; one loop takes them, so that nothing is torn out
    of what it does.
    """

    fleet: Fleet | None = None
    """The servers, where they are our own."""

    def __init__(self, configure: Callable[[], P], log: ServeLog, notifier: Notifier | None = None) -> None:
        """Nothing runs yet, but its directory is taken: `close` gives that back.

        Args:
            configure: reads the configuration, also anew. log: takes all that is said. notifier: speaks to systemd.

        Raises:
            SettingError: the configuration is not allowed, or another one with its name runs already.
        """
        self._configure = configure
        self._log = log
        self._notifier = notifier or Notifier()
        self._inbox: SimpleQueue[tuple[str, Any]] = SimpleQueue()
        self._phase = "starting"
        self._started = time.time()
        self._tick_at = 0.0
        self._reloading = threading.Lock()
        self._voice = voice = Voice(log)
        self._take, self._say, self.feed = voice.take, voice.say, voice.feed
        self.alerts: Watchman | None = None
        self._front: FrontGateway | None = None
        self._plan = plan = configure()
        log.hide(plan.secrets)
        self.name = plan.name
        self._place = rendezvous.settle(plan.name)

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
        previous, threading.excepthook = threading.excepthook, self._fault
        try:
            with Signals(lambda number: self._inbox.put(("signal", number))):
                control = ControlServer(self._place.path / rendezvous.SOCKET, lambda request: carry_out(request, self))
                with contextlib.closing(control):
                    control.start()
                    if self._front is not None:
                        self._front.start()
                    if self.alerts is not None:
                        self.alerts.start()
                    self._begin()
                    code = self._loop(control)
                    self.feed.close()
        finally:
            threading.excepthook = previous
            logging.getLogger("llamastream").removeHandler(bridge)
            self._notifier.close()
            self.close()
        return code

    def request_stop(self) -> None:
        """Stop as on SIGTERM; from any thread."""
        self._inbox.put(("stop", False))

    # -- what differs -----------------------------------------------------------------------------------------------

    @abstractmethod
    def _begin(self) -> None:
        """Everything listens: the rest may begin."""

    @abstractmethod
    def _loop(self, control: ControlServer) -> int:
        """Take events until the end; the exit code."""

    @abstractmethod
    def _tick(self, control: ControlServer) -> None:
        """What has to be done regularly."""

    @abstractmethod
    def _summary(self) -> str:
        """How the servers are, in a line."""

    @abstractmethod
    def _apply(self, plan: P) -> Reloaded:
        """Take over what can be; if it is not allowed, nothing has changed."""

    def _no_reload(self) -> str | None:
        """Why the configuration cannot be read anew now; None: it can."""
        return None

    # -- what is common ---------------------------------------------------------------------------------------------

    def _next(self, control: ControlServer) -> tuple[str, Any]:
        """What happened next; in the meantime, what has to be done regularly."""
        while True:
            left = self._tick_at - time.monotonic()  # by the clock: many events must not starve the watchdog
            if left <= 0:
                self._tick(control)
                self._tick_at = time.monotonic() + min(TICK, self._notifier.watchdog or TICK)
                continue
            with contextlib.suppress(Empty):
                return self._inbox.get(timeout=left)

    def _in_background(self, work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, name="llamastream-serve", daemon=True)
        thread.start()
        return thread

    def _stopping(self, *, now: bool) -> None:
        self._phase = "stopping"
        self._say("stopping", "stopping, at once" if now else "stopping")
        self._notifier.stopping("stopping")

    def _reload_quietly(self) -> None:
        with contextlib.suppress(LlamaStreamError):  # it has been said
            self.reload()

    def _fault(self, arguments: threading.ExceptHookArgs) -> None:
        """A thread ended by a mistake in this program: nobody else would say so in the log."""
        name = "" if arguments.thread is None else arguments.thread.name
        where = "".join(traceback.format_exception(arguments.exc_value)) if arguments.exc_value is not None else ""
        self._say(
            "fault",
            f"the thread {name} ended by a fault of this program: {arguments.exc_value!r}",
            "error",
            traceback=where,
        )

    # -- what commands ask (see `Host`) ----------------------------------------------------------------------------

    @abstractmethod
    def status(self) -> FleetStatus:
        """For commands: how everything is."""

    def reload(self) -> Reloaded:
        """For commands: read the configuration anew, and apply it.

        Raises:
            LlamaStreamError: it is not allowed; nothing has changed then.
        """
        with self._reloading:
            if (why := self._no_reload()) is not None:
                self._say("reload_failed", why, level="error")
                raise SettingError(why)
            running = self._phase == "running"
            if running:
                self._notifier.reloading()
            try:
                plan = self._configure()
                self._log.hide(plan.secrets)
                reloaded = self._apply(plan)
            except LlamaStreamError as error:
                self._say("reload_failed", f"the configuration stays as it was: {error.message}", level="error")
                raise
            finally:
                if running:
                    self._notifier.ready(self._summary())
        self._say("reload", f"the configuration was read anew: {reloaded.summary()}")
        return reloaded

    def stop(self, *, now: bool) -> None:
        """For commands: begin to end."""
        self._inbox.put(("stop", now))
