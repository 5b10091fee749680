"""What the gateway writes itself: server-sent events after a recovery, errors, and signs of life."""

from __future__ import annotations

from typing import Any

import msgspec

from llamastream.types import (
    ReasoningDelta,
    StreamEnd,
    StreamEvent,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)

DONE = b"data: [DONE]\n\n"
WAITING = b": waiting\n\n"


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def unchunked(data: bytes) -> bytes:
    """The body in whole chunks of HTTP/1.1."""
    body, at = b"", 0
    while at < len(data):
        start = data.index(b"\r\n", at) + 2
        end = start + int(data[at:start], 16)
        body += data[start:end]
        at = end + 2
    return body


def chunk(body: bytes) -> bytes:
    """One HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(body), body)


class Continuation:
    """Writes the rest of an answer whose beginning came from another server, as if that had gone on: the same id, time,
    model and fingerprint, no second role, and counts of what the client got altogether."""

    def __init__(
        self,
        *,
        chat: bool,
        id: str,  # noqa: A002  # that is its name everywhere
        created: int,
        model: str,
        fingerprint: str,
        usage: bool,
    ) -> None:
        """`chat`: of the chat endpoint, else of text completions. `usage`: the client asked for token counts."""
        self._chat = chat
        self._common: dict[str, Any] = {
            "id": id,
            "created": created,
            "model": model,
            "object": "chat.completion.chunk" if chat else "text_completion",
        }
        if fingerprint:
            self._common["system_fingerprint"] = fingerprint
        self._usage = usage
        self._timings: Timings | None = None
        self._counts: Usage | None = None

    def write(self, item: StreamEvent) -> bytes:
        """The event as bytes; b"" if there is nothing to write for it."""
        if isinstance(item, TextDelta):
            return self._delta(item.index, {"content": item.text} if self._chat else item.text)
        if isinstance(item, ReasoningDelta):
            return self._delta(item.index, {"reasoning_content": item.text})
        if isinstance(item, ToolCallDelta):
            call: dict[str, Any] = {"index": item.call, "function": {"arguments": item.arguments}}
            if item.id:
                call |= {"id": item.id, "type": "function"}
            if item.name:
                call["function"]["name"] = item.name
            return self._delta(item.index, {"tool_calls": [call]})
        if isinstance(item, Timings):
            self._timings = item
        elif isinstance(item, Usage):
            self._counts = item
        elif isinstance(item, StreamEnd):
            return self._end(item)
        return b""

    def _delta(self, index: int, delta: Any) -> bytes:
        choice: dict[str, Any] = {"finish_reason": None, "index": index}
        choice["delta" if self._chat else "text"] = delta
        return event({"choices": [choice], **self._common})

    def _end(self, end: StreamEnd) -> bytes:
        choice: dict[str, Any] = {"finish_reason": end.finish_reason, "index": 0}
        choice["delta" if self._chat else "text"] = {} if self._chat else ""
        last: dict[str, Any] = {"choices": [choice], **self._common}
        if self._timings is not None:
            last["timings"] = msgspec.structs.asdict(self._timings)
        out = event(last)
        counts = end.usage or self._counts
        if self._usage and counts is not None:
            out += event({"choices": [], **self._common, "usage": _usage(counts)})
        return out + DONE


def _usage(counts: Usage) -> dict[str, Any]:
    return {
        "completion_tokens": counts.completion_tokens,
        "prompt_tokens": counts.prompt_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }


def error_type(status: int) -> str:
    """OpenAI's and llama-server's word for a status."""
    known = {
        400: "invalid_request_error",
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "invalid_request_error",
        429: "rate_limit_error",
        501: "not_supported_error",
        503: "unavailable_error",
    }
    return known.get(status, "invalid_request_error" if 400 <= status < 500 else "server_error")
