"""The keyboard while nobody reads a line: Ctrl-C is heard where it should be, and keys do not show."""

from __future__ import annotations

import contextlib
import signal
import sys
import termios
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


@contextmanager
def without_echo() -> Iterator[None]:
    """Within this, the terminal does not show what is typed: it would stand in the middle of an answer, and an Enter
    would move the lines that are being redrawn. What was typed waits for the next prompt."""
    descriptor = sys.stdin.fileno()
    try:
        before = termios.tcgetattr(descriptor)
        changed = termios.tcgetattr(descriptor)
        changed[3] &= ~termios.ECHO
        termios.tcsetattr(descriptor, termios.TCSADRAIN, changed)
    except termios.error:  # no terminal (any more)
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(termios.error):
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
