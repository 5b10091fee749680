"""One line of JSON for each request of a gateway."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from llamastream.events import RequestServed

ACCESS_LOGGER = "llamastream.access"


class AccessLog:
    """A listener that writes a line when a request is over: never its key, its prompt or its answer.

    The line is the message of the log record; its fields are in `record.llamastream`, a dict.

    Args:
        logger: where to; None: `logging.getLogger("llamastream.access")`.
    """

    def __init__(self, logger: logging.Logger | None = None) -> None:
        self._logger = logger or logging.getLogger(ACCESS_LOGGER)

    def __call__(self, event: RequestServed) -> None:
        if self._logger.isEnabledFor(logging.INFO):
            at = datetime.fromtimestamp(event.time, UTC).isoformat(timespec="milliseconds")
            fields = {"time": at, **describe_served(event)}
            self._logger.info("%s", json.dumps(fields, ensure_ascii=True), extra={"llamastream": fields})


def describe_served(event: RequestServed) -> dict[str, Any]:
    """What is known of a request, but for its time; what is not known, or empty, is left out. Times are in seconds."""
    fields: dict[str, Any] = {
        "request_id": event.request_id,
        "method": event.method,
        "route": event.route,
        "status": event.status,
        "duration": round(event.duration, 6),
    }
    more = {
        "model": event.model,
        "finish_reason": event.finish_reason,
        "error": event.error,
        "streamed": event.streamed or None,
        "queue_wait": None if event.queue_wait is None else round(event.queue_wait, 6),
        "time_to_first_token": None if event.time_to_first_token is None else round(event.time_to_first_token, 6),
        "prompt_tokens": event.prompt_tokens,
        "cached_tokens": event.cached_tokens,
        "completion_tokens": event.completion_tokens,
        "recoveries": len(event.recoveries) or None,
        "cache": event.cache,
        "instance": event.instance,
        "key": event.key,
        "client": event.client,
    }
    return fields | {name: value for name, value in more.items() if value not in ("", None)}
