"""Signals as events for one loop, in a program that must not be torn out of what it does."""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Hands SIGTERM, SIGINT and SIGHUP to a callback, in the main thread; the handlers of before come back afterwards.

    SIGHUP is for daemons "read your configuration", but comes too when the terminal is closed: then it means the end,
    and is handed on as SIGTERM.
    """

    def __init__(self, callback: Callable[[int], None]) -> None:
        """Args:
        callback: called with a signal's number, between any two instructions: it must only put that somewhere.
        """
        self._callback = callback
        self._terminal = _terminal()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for number in (*STOPPING, signal.SIGHUP):
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGHUP and self._terminal is not None and not _is_there(self._terminal):
            number = signal.SIGTERM
        self._callback(number)


def _terminal() -> int | None:
    """The descriptor of our terminal; None if we have none."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if stream is not None and stream.isatty():
            return stream.fileno()
    return None


def _is_there(descriptor: int) -> bool:
    try:
        termios.tcgetattr(descriptor)
        os.ttyname(descriptor)
    except (OSError, termios.error):
        return False
    return True
