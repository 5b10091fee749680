"""Ctrl-C during a conversation."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self


class Interrupts:
    """Ctrl-C raises KeyboardInterrupt where it is allowed, once, and does nothing elsewhere.

    So nobody who presses it twice loses the conversation in the middle of tidying up after the first time.
    """

    def __init__(self) -> None:
        self._allowed = False
        self._previous: Any = None

    def __enter__(self) -> Self:
        self._previous = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._allowed:
            self._allowed = False
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Within this, Ctrl-C is heard."""
        self._allowed = True
        try:
            yield
        finally:
            self._allowed = False
