"""What the gateway writes itself: server-sent events after a recovery, errors, and signs of life."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

from llamastream.types import (
    ChoiceFinish,
    LogprobsDelta,
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
    start = data.find(b"\r\n") + 2
    if start > 2 and start + int(data[:start], 16) + 2 == len(data):  # one of them, as nearly always
        return data[start:-2]
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
        self._pending: dict[str, Any] | None = None

    def write(self, items: Iterable[StreamEvent]) -> bytes:
        """What came of one read, as bytes. One chunk of the server may have made several events: they become one
        again."""
        out = bytearray()
        for item in items:
            out += self._write(item)
        return bytes(out + self._flush())

    def _write(self, item: StreamEvent) -> bytes:
        """What is complete now that this event has come."""
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
        if isinstance(item, LogprobsDelta):
            return self._logprobs(item)
        if isinstance(item, ChoiceFinish):
            return self._choice(item.index, {} if self._chat else "", item.reason)
        if isinstance(item, Usage):
            return self._counts(item)
        if isinstance(item, Timings) and self._pending is not None:
            self._pending["timings"] = _timings(item)
        elif isinstance(item, StreamEnd):
            return self._flush() + DONE
        return b""

    def _flush(self) -> bytes:
        chunk, self._pending = self._pending, None
        return b"" if chunk is None else event(chunk)

    def _delta(self, index: int, delta: Any) -> bytes:
        return self._choice(index, delta, None)

    def _choice(self, index: int, delta: Any, finish_reason: str | None) -> bytes:
        before = self._flush()
        choice: dict[str, Any] = {"finish_reason": finish_reason, "index": index}
        choice["delta" if self._chat else "text"] = delta
        if not self._chat:
            choice["logprobs"] = None
        self._pending = {"choices": [choice], **self._common}
        return before

    def _logprobs(self, item: LogprobsDelta) -> bytes:
        """They belong to the piece of text before them; of one that the client has, or that is held back because it is
        no whole character yet, they come alone."""
        choices = [] if self._pending is None else self._pending["choices"]
        before = b""
        known = choices[0] if choices else None
        if known is None or known["index"] != item.index or known.get("logprobs") or known["finish_reason"]:
            before = self._delta(item.index, {} if self._chat else "")
        assert self._pending is not None
        self._pending["choices"][0]["logprobs"] = item.logprobs
        return before

    def _counts(self, counts: Usage) -> bytes:
        if not self._chat and self._pending is not None:
            self._pending["usage"] = _usage(counts)  # always, and where the reason for the end is
            return b""
        if self._chat and not self._usage:
            return b""
        before = self._flush()
        self._pending = {"choices": [], **self._common, "usage": _usage(counts)}
        return before


def _usage(counts: Usage) -> dict[str, Any]:
    return {
        "completion_tokens": counts.completion_tokens,
        "prompt_tokens": counts.prompt_tokens,
        "total_tokens": counts.prompt_tokens + counts.completion_tokens,
        "prompt_tokens_details": {"cached_tokens": counts.cached_tokens},
    }


def _timings(timings: Timings) -> dict[str, Any]:
    """As llama-server writes them: with the time of one token, and without drafts where there were none."""
    found: dict[str, Any] = msgspec.structs.asdict(timings)
    for kind in ("prompt", "predicted"):
        pace = found[f"{kind}_per_second"]
        found[f"{kind}_per_token_ms"] = 1e3 / pace if pace else 0.0
    if not timings.draft_n:
        del found["draft_n"], found["draft_n_accepted"]
    return found


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
