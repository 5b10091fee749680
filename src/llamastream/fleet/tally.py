"""Requests and tokens of one process, counted from its log: nothing has to be asked for that."""

from __future__ import annotations

import re
import threading
from collections import deque

from llamastream.types import LogRecord

# slot print_timing | id  3 | task 2 |        eval time =      18.40 ms /    97 tokens (...)
_EVAL = re.compile(r"(?<!prompt )\beval time =.*?/\s*(\d+) (?:tokens|runs)")
WINDOW = 5.0
"""Seconds that the speed is averaged over."""


class Tally:
    """Counts of one process. Thread-safe: the log is read in one thread, the figures in another.

    Attributes:
        requests: begun so far. tokens: decoded so far by requests that are over.
    """

    def __init__(self) -> None:
        self.requests = 0
        self.tokens = 0
        self._lock = threading.Lock()
        self._seen: deque[tuple[float, int]] = deque()

    def count(self, record: LogRecord) -> None:
        """Take a line of the server's log."""
        if "processing task" in record.message:
            with self._lock:
                self.requests += 1
        elif "eval time" in record.message and (match := _EVAL.search(record.message)):
            with self._lock:
                self.tokens += int(match[1])

    def tokens_per_second(self, now: float, decoding: int) -> float:
        """Speed over the last seconds.

        Args:
            now: monotonic seconds. decoding: tokens so far of the requests that run now.
        """
        with self._lock:
            total = self.tokens + decoding
            seen = self._seen
            # a request that ends between its last slot and its log line would seem to take tokens back
            seen.append((now, max(total, seen[-1][1] if seen else 0)))
            while len(seen) > 2 and now - seen[1][0] >= WINDOW:
                seen.popleft()
            (begin, first), (_, last) = seen[0], seen[-1]
            return (last - first) / (now - begin) if now > begin else 0.0
