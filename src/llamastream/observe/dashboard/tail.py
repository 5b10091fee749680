"""The last lines of logs, and what went wrong: bounded, numbered, and read from where a reader stopped."""

from __future__ import annotations

import threading
from collections import deque
from operator import itemgetter

from msgspec import Struct
from msgspec.structs import replace

LONGEST = 2000
"""Characters that are shown of one message."""


class Line(Struct, frozen=True, kw_only=True):
    """One line of a log, or one thing that went wrong.

    Attributes:
        time: seconds since the epoch. level: debug, info, warning or error. instance: whom it is about, "" for the
            whole. event: its kind. message: for people.
    """

    time: float
    level: str
    message: str
    instance: str = ""
    event: str = ""


class Tail:
    """The last lines of each source, numbered in the order in which they came. Thread-safe.

    A source is an instance and a kind (what its server logs, and what happened to it), so that one that says much
    hides nothing of the others.
    """

    def __init__(self, kept: int) -> None:
        """`kept`: lines of each source."""
        self._kept = kept
        self._lock = threading.Lock()
        self._sources: dict[tuple[str, bool], deque[tuple[int, Line]]] = {}
        self.last = 0
        """Number of the last line, 0 before the first."""

    def add(self, line: Line) -> None:
        """One more."""
        if len(line.message) > LONGEST:
            line = replace(line, message=line.message[:LONGEST] + "…")
        with self._lock:
            self.last += 1
            source = self._sources.setdefault((line.instance, line.event == "server_log"), deque(maxlen=self._kept))
            source.append((self.last, line))

    def since(self, number: int, most: int) -> tuple[list[Line], int, int]:
        """Lines after this number, at most so many (the newest); how many of those after it are missing; the number to
        go on from."""
        with self._lock:
            found: list[tuple[int, Line]] = []
            for source in self._sources.values():
                for each in reversed(source):
                    if each[0] <= number:
                        break
                    found.append(each)
            last = self.last
        found.sort(key=itemgetter(0))
        chosen = found[-most:]
        return [line for _, line in chosen], last - number - len(chosen), last
