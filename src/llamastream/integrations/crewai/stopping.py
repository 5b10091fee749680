"""A way to end what the model does for whoever has left: from any thread, for all calls of one run."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from llamastream.integrations.crewai.failures import StoppedError

LEFT = "whoever watched this task has left, so no more of it is generated"

_current: ContextVar[Stop | None] = ContextVar("llamastream_stop", default=None)


class Stop:
    """Ends the answers that run in its scope, and those that would begin later. CrewAI copies the context into its
    threads, so the scope of a run is that of its calls."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cancels: list[Callable[[], None]] = []
        self._stopped = False

    @property
    def stopped(self) -> bool:
        return self._stopped

    def stop(self) -> None:
        """Have all answers end; more than once has no effect."""
        with self._lock:
            self._stopped = True
            cancels = list(self._cancels)
        for cancel in cancels:
            cancel()

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Calls of the model that begin in this context belong to this stop."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def holding(self, cancel: Callable[[], None]) -> Iterator[None]:
        """While this lasts, `stop` calls `cancel`.

        Raises:
            StoppedError: it has been called before.
        """
        with self._lock:
            self._cancels.append(cancel)
        try:
            if self._stopped:
                raise StoppedError(LEFT)
            yield
        finally:
            with self._lock:
                self._cancels.remove(cancel)


def stoppable(cancel: Callable[[], None]) -> AbstractContextManager[None]:
    """An answer that the stop of this context, if there is one, ends by calling `cancel`. Raises as `Stop.holding`."""
    stop = _current.get()
    return nullcontext() if stop is None else stop.holding(cancel)
