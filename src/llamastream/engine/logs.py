"""A server's output: always drained, split into bounded lines, parsed into records.

llama-server blocks when nobody reads its log (its queue has 512 entries), so reading must never wait for anyone:
the reader thread only parses and appends; a caller's `on_log` runs in a thread of its own.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from typing import Any, Literal

import msgspec

from llamastream.types import LogRecord

MAX_LINE = 8192
RING_SIZE = 2000
CALLBACK_QUEUE = 10_000

Level = Literal["debug", "info", "warning", "error"]

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
# 0.00.004.296 I srv    load_model: loading model 'x'     (time only with --log-timestamps)
_PREFIXED = re.compile(r"^(?:\d+\.\d\d\.\d{3}\.\d{3} )?([IWED]) (.*)$", re.DOTALL)
# INFO [                    main] model loaded | tid="1" timestamp=1700000000
_BRACKETED = re.compile(r"^(INFO|WARN|WARNING|ERR|ERROR|VERB|DEBUG) +\[ *([\w.:~]*)\] (.*)$", re.DOTALL)
_TAGGED = re.compile(r"^(srv|slot|cmn|que|res|set|spc|tools|mcp|llama) +([\w.:~()]+): (.*)$", re.DOTALL)
_SOURCED = re.compile(r"^([A-Za-z_][\w:.~]*) ?: (.*)$", re.DOTALL)
_LEVELS: dict[str, Level] = {
    "i": "info", "w": "warning", "e": "error", "d": "debug", "info": "info", "warn": "warning", "warning": "warning",
    "err": "error", "error": "error", "fatal": "error", "verb": "debug", "debug": "debug", "cont": "info",
    "none": "info",
}  # fmt: skip
# old builds write plain lines: the level is in the words, if anywhere
_BAD = re.compile(
    r"^(error|fatal)\b|: (error|fatal)\b|\berror loading\b|\bfailed to (load|open|allocate|create|init)"
    r"|couldn't bind|GGML_ASSERT|terminate called|cannot import",
    re.IGNORECASE,
)
_DUBIOUS = re.compile(r"^warn(ing)?\b|: warn(ing)?:", re.IGNORECASE)
# `api_keys: ****abcd`: four characters of a key are four too many
_KEY_TAIL = re.compile(r"(api_keys?: )\*+\S+")


def parse_line(line: str, at: float) -> LogRecord:
    """Turn one line of any llama-server's log into a record; never fails, an unknown form is an info message.

    Args:
        line: the line, without its end.
        at: seconds since the epoch when it was read.
    """
    line = _ANSI.sub("", line).rstrip()
    if line.startswith("{"):
        record = _parse_json(line, at)
        if record is not None:
            return record
    if match := _PREFIXED.match(line):
        level = _LEVELS[match[1].lower()]
        source, message = _split_source(match[2])
        return LogRecord(time=at, level=level, message=message, source=source)
    if match := _BRACKETED.match(line):
        return LogRecord(time=at, level=_LEVELS[match[1].lower()], message=match[3], source=match[2])
    source, message = _split_source(line)
    level = "error" if _BAD.search(line) else "warning" if _DUBIOUS.search(line) else "info"
    return LogRecord(time=at, level=level, message=message, source=source)


def _parse_json(line: str, at: float) -> LogRecord | None:
    try:
        data: Any = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    if not isinstance(data, dict):
        return None
    text = data.get("msg", data.get("message"))
    if not isinstance(text, str):
        # not a log line but a report, such as the memory breakdown
        return LogRecord(time=at, level="debug", message=line, source=str(data.get("type", "")))
    level = _LEVELS.get(str(data.get("level", "info")).lower(), "info")
    if isinstance(function := data.get("function"), str):
        known = {"level", "msg", "message", "function", "line", "tid", "timestamp", "time", "type"}
        rest = " ".join(f"{key}={value}" for key, value in data.items() if key not in known)
        return LogRecord(time=at, level=level, message=f"{text} {rest}".strip(), source=function)
    source, message = _split_source(text.rstrip())
    return LogRecord(time=at, level=level, message=message, source=source)


def _split_source(text: str) -> tuple[str, str]:
    if match := _TAGGED.match(text):
        return f"{match[1]} {match[2]}", match[3]
    if (match := _SOURCED.match(text)) and match[1].lower() not in ("error", "warning", "warn", "fatal", "note"):
        return match[1], match[2]
    return "", text


class LineBuffer:
    """Bytes in, complete lines out; what exceeds `MAX_LINE` bytes of a line is dropped and marked with `…`."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._cut = False

    def feed(self, data: bytes) -> list[str]:
        """Take bytes as they came; return the lines that they complete (a progress bar's `\\r` ends one too)."""
        *complete, rest = data.replace(b"\r", b"\n").split(b"\n")
        lines = []
        for piece in complete:
            self._add(piece)
            if (line := self.flush()) is not None:
                lines.append(line)
        self._add(rest)
        return lines

    def flush(self) -> str | None:
        """The unfinished line, at the end of the stream or of the line; None if there is none."""
        if not self._pending:
            return None
        line = self._pending.decode("utf-8", "replace") + ("…" if self._cut else "")
        self._pending.clear()
        self._cut = False
        return line if line.strip() else None

    def _add(self, piece: bytes) -> None:
        room = MAX_LINE - len(self._pending)
        self._pending += piece[:room]
        self._cut = self._cut or len(piece) > room


class LogRing:
    """The last `RING_SIZE` records of a server, newest last, and a way to wait for the next one. Thread-safe."""

    def __init__(self, on_log: Callable[[LogRecord], None] | None = None, secrets: Iterable[str] = ()) -> None:
        self._records: deque[LogRecord] = deque(maxlen=RING_SIZE)
        self._changed = threading.Condition()
        self._count = 0
        self._version = 0
        self._secrets = tuple(secret for secret in secrets if secret)
        self._callbacks: queue.Queue[LogRecord | None] | None = None
        if on_log is not None:
            self._callbacks = queue.Queue(CALLBACK_QUEUE)
            threading.Thread(
                target=_run_callbacks, args=(self._callbacks, on_log), name="llamastream-on-log", daemon=True
            ).start()

    def add_line(self, line: str) -> LogRecord:
        """Redact, parse and keep one line."""
        for secret in self._secrets:
            line = line.replace(secret, "***")
        record = parse_line(_KEY_TAIL.sub(r"\1***", line), time.time())
        with self._changed:
            self._records.append(record)
            self._count += 1
            self._version += 1
            self._changed.notify_all()
        if self._callbacks is not None:
            # a callback that is slower than the server misses lines; the server must not wait for it
            with suppress(queue.Full):
                self._callbacks.put_nowait(record)
        return record

    def records(self) -> list[LogRecord]:
        """A copy of what is kept."""
        with self._changed:
            return list(self._records)

    def since(self, count: int) -> tuple[list[LogRecord], int]:
        """The records after the first `count` (of those still kept), and the count for the next call."""
        with self._changed:
            new = min(self._count - count, len(self._records))
            return list(islice(self._records, len(self._records) - new, None)), self._count

    def wait(self, version: int, timeout: float) -> int:
        """Wait until something has happened after `version`, at most `timeout` seconds; return the new version."""
        with self._changed:
            self._changed.wait_for(lambda: self._version > version, timeout)
            return self._version

    def wake(self) -> None:
        """End the waits early: something other than a line happened."""
        with self._changed:
            self._version += 1
            self._changed.notify_all()

    def close(self) -> None:
        """No more lines will come: let the callback thread end."""
        if self._callbacks is not None:
            with suppress(queue.Full):  # a daemon thread: it ends with the process at the latest
                self._callbacks.put_nowait(None)


def _run_callbacks(records: queue.Queue[LogRecord | None], on_log: Callable[[LogRecord], None]) -> None:
    while (record := records.get()) is not None:
        try:
            on_log(record)
        except Exception:
            import logging

            logging.getLogger("llamastream.engine").exception("on_log raised; the log goes on")
