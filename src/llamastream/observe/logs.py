"""Structured logging of requests through the standard library.

    logging.basicConfig(level=logging.INFO)
    client = StreamingClient(listeners=[LoggingListener()])

One record when a request ends (INFO; WARNING if it failed), one for each retry and for each break in the middle that
was mended (WARNING), the rest at DEBUG; never one for a chunk. The figures are in `record.llamastream`, a dict, for
formatters and handlers; `JsonFormatter` writes them.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from llamastream.events import (
    AttemptStarted,
    ClientEvent,
    FirstToken,
    Hint,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
    StreamBroke,
    StreamRecovered,
)


class LoggingListener:
    """A listener that logs. Costs next to nothing where the level is switched off.

    Args:
        logger: where to; None: `logging.getLogger("llamastream.requests")`.
    """

    tells_recoveries = True  # so that the client does not log them as well

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger("llamastream.requests")

    def __call__(self, event: ClientEvent) -> None:
        level = _level(event)
        if self._logger.isEnabledFor(level):
            message, fields = _describe(event)
            fields["event"] = type(event).__name__
            fields["request_id"] = event.request_id
            self._logger.log(level, "%s", message, extra={"llamastream": fields})


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, logger, message, the event's fields, and an exception."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "llamastream", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _level(event: ClientEvent) -> int:
    if isinstance(event, RetryScheduled | StreamRecovered) or (
        isinstance(event, RequestEnded) and event.error is not None
    ):
        return logging.WARNING
    return logging.INFO if isinstance(event, RequestEnded | Hint) else logging.DEBUG


def _describe(event: ClientEvent) -> tuple[str, dict[str, Any]]:
    if isinstance(event, RequestStarted):
        return f"request {event.request_id} to {event.url}", {"url": event.url}
    if isinstance(event, AttemptStarted):
        fields: dict[str, Any] = {"attempt": event.number, "reused_connection": event.reused_connection}
        return f"request {event.request_id}: attempt {event.number}", fields
    if isinstance(event, FirstToken):
        seconds = event.time_to_first_token
        return f"request {event.request_id}: first token after {seconds:.3f} s", {"time_to_first_token": seconds}
    if isinstance(event, RetryScheduled):
        fields = {"attempt": event.number, "error": type(event.error).__name__, "delay": event.delay}
        return (
            f"request {event.request_id}: attempt {event.number} failed, next in {event.delay:.2f} s: {event.error}",
            fields,
        )
    if isinstance(event, StreamBroke):
        fields = {"recovery": event.kind, "error": type(event.error).__name__, "delay": event.delay}
        return f"request {event.request_id} broke in the middle, going on by {event.kind}: {event.error}", fields
    if isinstance(event, StreamRecovered):
        recovery = event.recovery
        fields = {
            "recovery": recovery.kind,
            "error": recovery.error,
            "gap": recovery.gap,
            "verified": recovery.verified,
        }
        return f"request {event.request_id}: {recovery.summary}", fields
    if isinstance(event, Hint):
        return event.message, {"topic": event.topic}
    stats = event.stats
    fields = {
        "finish_reason": event.finish_reason,
        "duration": stats.duration,
        "time_to_first_token": stats.time_to_first_token,
        "tokens_per_second": stats.tokens_per_second,
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "completion_tokens": stats.completion_tokens,
        "failed_attempts": len(stats.failed_attempts),
        "recoveries": len(stats.recoveries),
    }
    if event.error is not None:
        fields["error"] = type(event.error).__name__
        return f"request {event.request_id} failed: {event.error}", fields
    return f"request {event.request_id}: {event.finish_reason} after {stats.duration:.3f} s", fields
