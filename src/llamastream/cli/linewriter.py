"""Lines to stdout or stderr by a thread of their own: whoever does not read them delays nobody else."""

from __future__ import annotations

import io
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TextIO

MAX_LINES = 10_000
_BATCH = 64 * 1024
_GATHER = 0.01
"""Seconds for which lines are gathered: a thread that wakes for each takes turns from the one that makes them."""


class LineWriter:
    """Writes what it is given, in order. Thread-safe; `put` never waits."""

    def __init__(
        self,
        stream: TextIO | None,
        *,
        on_dropped: Callable[[int], bytes],
        on_broken: Callable[[], None] | None = None,
    ) -> None:
        """Args:
        stream: where to, by its descriptor; None (it is closed): nowhere.
        on_dropped: the line that says how many lines are missing. on_broken: called once when nobody can read any more.
        """
        self._descriptor = -1 if stream is None else stream.fileno()
        self._on_dropped = on_dropped
        self._on_broken = on_broken
        self._lines: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self._writing = False
        self._idle = False
        self._closing = False
        self._closed = stream is None
        if not self._closed:
            threading.Thread(target=self._run, name="llamastream-output", daemon=True).start()

    def put(self, line: bytes) -> None:
        """Write a line with its end, or drop it where too many wait already."""
        with self._changed:
            if self._closed:
                return
            if len(self._lines) >= MAX_LINES:
                self._dropped += 1
                return
            if self._dropped:
                self._lines.append(self._on_dropped(self._dropped))
                self._dropped = 0
            self._lines.append(line)
            if self._idle:
                self._changed.notify_all()

    def close(self, patience: float = 1.0) -> None:
        """Write what waits, within `patience` seconds, and nothing more."""
        end = time.monotonic() + patience
        with self._changed:
            self._closing = True
            if self._dropped and not self._closed:
                self._lines.append(self._on_dropped(self._dropped))
                self._dropped = 0
            while (self._lines or self._writing) and not self._closed and (left := end - time.monotonic()) > 0:
                self._changed.notify_all()
                self._changed.wait(left)
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._lines and not self._closed:
                    self._idle = True
                    self._changed.wait()
                    self._idle = False
                if self._closed:
                    return
                batch = bytearray()
                while self._lines and len(batch) < _BATCH:
                    batch += self._lines.popleft()
                self._writing = True
            try:
                self._write(memoryview(batch))
            except OSError:
                with self._changed:
                    self._closed = True
                if self._on_broken is not None:
                    self._on_broken()
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                if not self._closing:
                    self._changed.wait(_GATHER)

    def _write(self, data: memoryview) -> None:
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # whoever shares the terminal with us made it so
                select.select([], [self._descriptor], [], 1.0)


class LineSink(io.TextIOBase):
    """A file for text that goes to a `LineWriter`: for rich's console."""

    def __init__(self, writer: LineWriter, terminal: bool) -> None:
        super().__init__()
        self._writer = writer
        self._terminal = terminal

    def write(self, text: str, /) -> int:
        if text:
            self._writer.put(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def isatty(self) -> bool:
        return self._terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]  # a plain attribute in typeshed
        return "utf-8"
