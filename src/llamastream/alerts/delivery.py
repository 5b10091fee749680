"""Takes messages to receivers, each in a thread of its own, so that one that is dead or slow holds up nobody."""

from __future__ import annotations

import logging
import random
import threading
from collections import deque
from collections.abc import Callable

from llamastream.alerts.messages import Message, ReceiverReport
from llamastream.alerts.receivers import Receiver, ReceiverError

QUEUED = 100
"""Messages that wait for one receiver; what comes when it is full, is dropped, and counted."""
FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0

logger = logging.getLogger("llamastream.alerts")


class Delivery:
    """One receiver's line, and the thread that works it off. Thread-safe."""

    def __init__(
        self, receiver: Receiver, *, attempts: int = 4, on_failed: Callable[[str, Message, str], None] | None = None,
        pause: Callable[[int], float] | None = None,
    ) -> None:  # fmt: skip
        """Starts the thread.

        Args:
            attempts: for each message. on_failed: told the receiver's name, a message that was given up, and why.
            pause: seconds before the attempt with this number; None: doubled each time, with jitter.
        """
        self._receiver = receiver
        self._attempts = attempts
        self._on_failed = on_failed
        self._pause = pause or backoff
        self._waiting: deque[Message] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._sent = self._failed = self._dropped = 0
        self._busy = False
        self._last_error = ""
        self._thread = threading.Thread(target=self._work, name=f"llamastream-alerts-{receiver.name}", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> bool:
        """Have it told; whether there was room. Waits for nothing."""
        with self._changed:
            if self._closed or len(self._waiting) >= QUEUED:
                self._dropped += 1
                return False
            self._waiting.append(message)
            self._changed.notify_all()
            return True

    def close(self) -> None:
        """Take no more; the one that is under way, and those that wait, have one more attempt each. Does not wait."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait for the end; whether it came. The thread does not keep the process alive."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def report(self) -> ReceiverReport:
        """How it goes."""
        with self._changed:
            return ReceiverReport(
                name=self._receiver.name,
                sent=self._sent,
                failed=self._failed,
                dropped=self._dropped,
                waiting=len(self._waiting) + self._busy,
                last_error=self._last_error,
            )

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                message = self._waiting.popleft()
                self._busy = True
            error = self._tell(message)
            with self._changed:
                self._busy = False
                self._sent += not error
                self._failed += bool(error)
                self._last_error = error
            if error and self._on_failed is not None:
                self._on_failed(self._receiver.name, message, error)

    def _tell(self, message: Message) -> str:
        """Why it could not be told, "" if it was."""
        for attempt in range(1, self._attempts + 1):
            final = attempt == self._attempts or self._closed
            try:
                self._receiver.tell(message)
            except ReceiverError as error:
                said = str(error)
                final = final or error.final
            except Exception:  # a mistake of ours: the next message may go well
                logger.exception("the receiver %s failed", self._receiver.name)
                return "a fault of this program, see the log"
            else:
                return ""
            with self._changed:
                self._last_error = said
                if not final:
                    self._changed.wait_for(lambda: self._closed, self._pause(attempt))
            if final:
                return said
        return said


def backoff(attempt: int) -> float:
    """Seconds after an attempt that failed: doubled each time, with jitter."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
