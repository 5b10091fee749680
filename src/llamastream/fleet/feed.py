"""The last records of a fleet, and those to come, for whoever wants to follow them. Nobody who does can slow it."""

from __future__ import annotations

import heapq
import threading
from collections import deque
from collections.abc import Callable
from operator import attrgetter
from types import TracebackType
from typing import Self

from llamastream.fleet.records import Record

KEPT = 1000
"""Records that are kept of each instance, and as many of what happened to it: a chatty server hides no event."""
QUEUED = 5000
"""Records that wait for one follower; what comes when it is full, is dropped for that follower, and counted."""


class Follower:
    """Records for one reader, in the order in which they came. For `with`; thread-safe."""

    def __init__(self, feed: Feed, wanted: Callable[[Record], bool]) -> None:
        self._feed = feed
        self._wanted = wanted
        self._records: deque[Record] = deque()
        self._changed = threading.Condition()
        self._dropped = 0
        self.ended = False
        """The fleet has ended: nothing more will come."""

    def offer(self, record: Record) -> None:
        """For the feed: put a record in line if it is wanted."""
        if not self._wanted(record):
            return
        with self._changed:
            if len(self._records) >= QUEUED:
                self._dropped += 1
            else:
                self._records.append(record)
                self._changed.notify_all()

    def end(self) -> None:
        """For the feed: nothing more will come."""
        with self._changed:
            self.ended = True
            self._changed.notify_all()

    def take(self, timeout: float) -> tuple[list[Record], int]:
        """What has come since the last time, and how many were dropped after that; waits for something, `timeout`
        seconds at most."""
        with self._changed:
            if not self._records and not self.ended:
                self._changed.wait(timeout)
            records, dropped = list(self._records), self._dropped
            self._records.clear()
            self._dropped = 0
            return records, dropped

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._feed.leave(self)


class Feed:
    """Where records go, and come from. Thread-safe; `publish` waits for nobody."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: dict[tuple[str, bool], deque[Record]] = {}
        self._followers: list[Follower] = []
        self._ended = False

    def publish(self, record: Record) -> None:
        """Keep a record, and hand it to all followers."""
        key = (record.instance, record.event == "server_log")
        with self._lock:
            self._kept.setdefault(key, deque(maxlen=KEPT)).append(record)
            for follower in self._followers:
                follower.offer(record)

    def follow(self, wanted: Callable[[Record], bool], lines: int = 0) -> tuple[list[Record], Follower]:
        """The last `lines` records that are `wanted`, oldest first, and a follower of those after them: none is
        missing in between, and none comes twice."""
        with self._lock:
            found = [record for kept in self._kept.values() for record in kept if wanted(record)]
            follower = Follower(self, wanted)
            if self._ended:
                follower.end()
            self._followers.append(follower)
        return sorted(heapq.nlargest(lines, found, key=attrgetter("time")), key=attrgetter("time")), follower

    def leave(self, follower: Follower) -> None:
        """It takes no more."""
        with self._lock:
            if follower in self._followers:
                self._followers.remove(follower)

    def close(self) -> None:
        """Nothing more will come."""
        with self._lock:
            self._ended = True
            followers = tuple(self._followers)
        for follower in followers:
            follower.end()
