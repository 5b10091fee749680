"""What those say who run servers or a gateway in the foreground: to the log, and to whoever follows."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from llamastream.cli.servelog import ServeLog
from llamastream.fleet.feed import Feed
from llamastream.fleet.records import Level, Record, encodable


class Voice:
    """Where records go. Thread-safe, and waits for nobody.

    Attributes:
        feed: the last of them, for commands. show: gets each of them without secrets, for the dashboard.
    """

    def __init__(self, log: ServeLog) -> None:
        self.feed = Feed()
        self.show: Callable[[Record], None] | None = None
        self._log = log

    def take(self, record: Record) -> None:
        """A record."""
        record = encodable(record)
        self.feed.publish(record)
        self._log.take(record)
        if self.show is not None:
            self.show(self._log.censored(record))

    def say(self, event: str, message: str, level: Level = "info", **fields: Any) -> None:
        """Something of our own."""
        self.take(Record(time=time.time(), level=level, event=event, message=message, fields=fields))
