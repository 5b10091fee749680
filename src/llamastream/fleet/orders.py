"""What an instance's thread is told to do, and how it is woken."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import Literal

from llamastream.engine import EngineOptions

OrderKind = Literal["restart", "replace", "drain", "undrain", "forget", "stop"]


class Order:
    """Something to do.

    Attributes:
        kind: `restart` (as planned, when its turn comes; at once if it has failed), `replace` (the same with other
            options), `drain`, `undrain`, `forget` (a planned restart that waits), `stop`.
        reason: for people. options: for `replace`. drain: for `stop`: let running requests finish.
        instance: whose thread is to do it. done: True when it has been carried out, False when it was called off.
    """

    def __init__(
        self, kind: OrderKind, reason: str, *, options: EngineOptions | None = None, drain: bool = True
    ) -> None:
        self.kind = kind
        self.reason = reason
        self.options = options
        self.drain = drain
        self.instance = ""
        self.done: Future[bool] = Future()

    def finish(self, *, carried_out: bool = True) -> None:
        """It is over."""
        if not self.done.done():
            self.done.set_result(carried_out)


class Inbox:
    """Orders for one thread. Thread-safe."""

    def __init__(self) -> None:
        self._orders: deque[Order] = deque()
        self._changed = threading.Condition()
        self._woken = False
        self.hurry = False
        """Somebody wants the end now: nothing waits for running requests any more."""

    def post(self, order: Order) -> None:
        with self._changed:
            self._orders.append(order)
            self._changed.notify_all()

    def wake(self) -> None:
        """Something happened that the thread should look at."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def hasten(self) -> None:
        """Nothing is to be waited for any more."""
        with self._changed:
            self.hurry = True
            self._changed.notify_all()

    def next(self, timeout: float) -> Order | None:
        """The next order; None if something else happened, or nothing within `timeout` seconds."""
        with self._changed:
            if not self._orders and not self._woken:
                self._changed.wait(timeout)
            self._woken = False
            return self._orders.popleft() if self._orders else None

    def wait(self, seconds: float) -> bool:
        """Wait within an order; True: somebody is in a hurry."""
        end = time.monotonic() + seconds
        with self._changed:
            while not self.hurry and (left := end - time.monotonic()) > 0:
                self._changed.wait(left)
            return self.hurry

    def holds(self, *kinds: OrderKind) -> bool:
        """Whether an order of such a kind waits."""
        with self._changed:
            return any(order.kind in kinds for order in self._orders)

    def stop_wanted(self) -> bool:
        """Whether an order to stop waits."""
        with self._changed:
            return self.hurry or any(order.kind == "stop" for order in self._orders)

    def close(self) -> None:
        """The thread ends: whatever was ordered and not done will not be."""
        with self._changed:
            orders, self._orders = list(self._orders), deque()
        for order in orders:
            order.finish(carried_out=False)
