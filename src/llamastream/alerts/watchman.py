"""Watches in a thread of its own: takes what happens, looks at the whole each second, and has receivers told."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from llamastream.alerts.book import FOREVER, Book, message_of
from llamastream.alerts.delivery import Delivery
from llamastream.alerts.measures import Instances, Look, Requests, of_look
from llamastream.alerts.messages import AlertReport, Message, Outcome, ReceiverReport, Subject
from llamastream.alerts.receivers import Receiver, ReceiverError, receivers_of
from llamastream.alerts.rules import Rule, rules_of
from llamastream.alerts.settings import AlertSettings, known_rule
from llamastream.alerts.silences import SilenceFile
from llamastream.events import InstanceChanged, RequestServed

TICK = 1.0
"""Seconds between two looks."""
MOST_EVENTS = 100_000
"""That wait for the next look; of more, the oldest are forgotten."""
LAST_WORDS = 3.0
"""Seconds that receivers have at the end."""

logger = logging.getLogger("llamastream.alerts")


class Watchman:
    """Watches from `start` to `close`."""

    def __init__(
        self,
        settings: AlertSettings,
        look: Callable[[], Look],
        tell: Callable[[Message], None],
        *,
        undelivered: Callable[[str, Message, str], None] | None = None,
        memory: int = 1,
        fleet: str = "",
        silences: SilenceFile | None = None,
    ) -> None:
        """Args:
            look: how the whole is; may block for moments. tell: the receiver that is always there, the log; must not
                block. undelivered: told a receiver's name, a message that was given up, and why. memory:
                see `rules_of`. fleet: its name, for messages. silences: where those are kept that somebody asked for,
                and where those are that have not ended since; None: nowhere.

        Raises:
            SettingError: a receiver's settings cannot be used.
        """
        self._look = look
        self._tell = tell
        self._undelivered = undelivered
        self._memory = memory
        self._fleet = fleet
        self._settings = settings
        receivers = receivers_of(settings)
        self._book = Book(self._rules(settings), fleet=fleet, tag=f"{secrets.token_hex(4)}-")
        self._lock = threading.Lock()
        self._events: deque[tuple[float, Any]] = deque(maxlen=MOST_EVENTS)
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._watch, name="llamastream-alerts", daemon=True)
        self._receivers: list[Receiver] = []
        self._deliveries: list[Delivery] = []
        self._apply(settings, receivers)
        self._silences = silences

    # -- from any thread ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Watch from now on, with the silences that are kept."""
        self._take_up_silences()
        self._thread.start()

    def hear(self, event: Any) -> None:
        """A listener for events of fleets and gateways: a microsecond, and waits for nothing."""
        self._events.append((time.monotonic(), event))
        if isinstance(event, InstanceChanged):
            self._wake.set()

    def reload(self, settings: AlertSettings) -> None:
        """Other settings from now on.

        Raises:
            SettingError: a receiver's settings cannot be used; nothing has changed then.
        """
        if settings == self._settings and not _from_files(settings):
            return
        receivers = receivers_of(settings)
        with self._lock:
            before = self._deliveries
            self._apply(settings, receivers)
        for delivery in before:
            delivery.close()

    def silence(self, rule: str, seconds: float | None) -> None:
        """Tell nothing of a rule for so long; 0 ends that, None: until further notice.

        Raises:
            SettingError: there is no such rule.
        """
        known = known_rule(rule)
        with self._lock:
            self._book.silence(known, FOREVER if seconds is None else time.monotonic() + seconds)
            self._keep_silences()

    def reports(self) -> tuple[AlertReport, ...]:
        """The rules, and how everything under them is."""
        with self._lock:
            now = time.monotonic()
            return tuple(self._book.reports(now, time.time() - now))

    def receivers(self) -> tuple[ReceiverReport, ...]:
        """The receivers beside the log."""
        return tuple(delivery.report() for delivery in self._deliveries)

    def test(self, rule: str | None = None) -> tuple[Outcome, ...]:
        """Send a test message to every receiver, the log among them, one attempt each; blocks for their timeouts.

        Raises:
            SettingError: there is no such rule.
        """
        message = example_message(self._rules(self._settings), rule, self._fleet)
        self._tell(message)
        return (Outcome(receiver="log", error=""), *try_all(self._receivers, message))

    def close(self) -> None:
        """Watch no more; what is still to be told has a few seconds. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(LAST_WORDS)
            if not self._thread.is_alive():
                self._look_once(last=True)
        for delivery in self._deliveries:
            delivery.close()
        end = time.monotonic() + LAST_WORDS
        for delivery in self._deliveries:
            delivery.join(max(0.0, end - time.monotonic()))
        with self._lock:
            if FOREVER in self._book.silences.values():
                self._keep_silences(ending=True)

    # -- its own thread -------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        while not self._closing:
            self._wake.wait(TICK)
            self._wake.clear()
            if not self._closing:
                self._look_once()

    def _look_once(self, *, last: bool = False) -> None:
        try:
            self.tick(last=last)
        except Exception:  # a mistake of ours must not end the watch for good
            logger.exception("a look of the alerts failed")

    def tick(self, *, last: bool = False) -> None:
        """One look: what has happened, how everything is, and who is to be told. `last`: none will follow."""
        look = self._look()
        with self._lock:
            book = self._book
            while self._events:
                moment, event = self._events.popleft()
                if isinstance(event, RequestServed):
                    self._requests.add(event, moment)
                elif isinstance(event, InstanceChanged):
                    book.take(self._instances.changed(event, moment), moment)
            now = time.monotonic()
            self._instances.seen(look.instances)
            book.take(self._instances.readings(now), now)
            book.take(self._requests.readings(now), now)
            book.take(of_look(look, sizes=self._settings.memory is not None), now)
            book.absent(now)
            messages = book.messages(now, time.time() - now, last=last)
            deliveries = self._deliveries
        for message in messages:
            self._tell(message)
            for delivery in deliveries:
                delivery.put(message)

    def _apply(self, settings: AlertSettings, receivers: list[Receiver]) -> None:
        before = self._settings
        self._settings = settings
        self._book.change(
            self._rules(settings),
            group_seconds=settings.group_seconds,
            repeat_after=settings.repeat_after,
            silenced=settings.silenced,
        )
        if not hasattr(self, "_requests") or _judged_by(before) != _judged_by(settings):
            self._requests = Requests(*_judged_by(settings))
        if not hasattr(self, "_instances"):
            self._instances = Instances(settings.window, settings.crash_loop_ends)
        self._instances.judge_by(settings.window, settings.crash_loop_ends)
        self._receivers = receivers
        self._deliveries = [
            Delivery(receiver, attempts=settings.attempts, on_failed=self._undelivered) for receiver in receivers
        ]

    def _take_up_silences(self) -> None:
        if self._silences is None:
            return
        shift = time.time() - time.monotonic()
        try:
            for rule, until in self._silences.read(time.time()).items():
                self._book.silence(rule, FOREVER if until is None else until - shift)
        except (OSError, ValueError) as error:
            logger.warning("silences are not taken up: %s cannot be read: %s", self._silences.path, error)

    def _keep_silences(self, *, ending: bool = False) -> None:
        """Write them down, for a process that follows this one. `ending`: those without an end are over."""
        if self._silences is None:
            return
        shift = time.time() - time.monotonic()
        kept = {
            rule: None if until == FOREVER else until + shift
            for rule, until in self._book.silences.items()
            if not (ending and until == FOREVER)
        }
        try:
            self._silences.write(kept, time.time())
        except OSError as error:
            logger.warning("silences end with this process: %s cannot be written: %s", self._silences.path, error)

    def _rules(self, settings: AlertSettings) -> tuple[Rule, ...]:
        return rules_of(settings, memory=self._memory)


def _judged_by(settings: AlertSettings) -> tuple[float, int, str | None]:
    return settings.window, settings.min_requests, settings.tokens_per_second_model


def _from_files(settings: AlertSettings) -> bool:
    secret = (settings.webhook, settings.webhook_header, settings.webhook_key, settings.apprise)
    return any(value is not None and value.startswith("@") for value in secret)


def example_message(rules: Iterable[Rule], rule: str | None, fleet: str) -> Message:
    """What a receiver would be told, marked as a test.

    Raises:
        SettingError: there is no such rule.
    """
    name = known_rule(rule or "instance_down")
    chosen = next(each for each in rules if each.name == name)
    now = time.time()
    subject = Subject(name="", detail="this is a test: nothing is wrong", since=now)
    return message_of(chosen, "test", [subject], f"test-{secrets.token_hex(4)}", now, fleet)


def try_all(receivers: Iterable[Receiver], message: Message) -> list[Outcome]:
    """One attempt at each, all at the same time."""
    outcomes: dict[str, Outcome] = {}

    def attempt(receiver: Receiver) -> None:
        try:
            receiver.tell(message)
            outcomes[receiver.name] = Outcome(receiver=receiver.name, error="")
        except ReceiverError as error:
            outcomes[receiver.name] = Outcome(receiver=receiver.name, error=str(error))

    chosen = list(receivers)
    threads = [threading.Thread(target=attempt, args=(each,), daemon=True) for each in chosen]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    fault = "a fault of this program, see the log"
    return [outcomes.get(each.name, Outcome(receiver=each.name, error=fault)) for each in chosen]
