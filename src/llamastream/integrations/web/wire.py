"""What a browser gets to see of a stream: events and errors as JSON, without what is the service's own business.

Addresses of servers, failed attempts and the texts of errors stay on this side; they are in the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeAlias

import msgspec

from llamastream import LlamaStreamError, Stats
from llamastream.errors import (
    BadRequestError,
    ConnectError,
    ContextSizeError,
    InvalidRequestError,
    ModelLoadingError,
    RateLimitedError,
    ServerError,
    StreamTimeoutError,
    UnavailableError,
)
from llamastream.types import StreamEnd, StreamEvent, StreamStart, TextDelta

Item: TypeAlias = StreamEvent | str | Mapping[str, Any]
"""What may be streamed: typed events, pieces of text, or JSON objects of the service's own."""


class MessageChunk(Protocol):
    """What is used of LangChain's `AIMessageChunk` (the rest if it is there)."""

    @property
    def text(self) -> str: ...


_SHOWN_STATS = (
    "time_to_first_token",
    "duration",
    "tokens_per_second",
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
)

LOADING_SECONDS = 5
"""`Retry-After` where the server gave none."""

_encoder = msgspec.json.Encoder()

# Line breaks to Unicode, and thus to clients that read lines with `splitlines`, but not to JSON.
_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def encode(item: Item) -> bytes:
    """One JSON object, in one line for everybody.

    Raises:
        TypeError: the item is nothing that JSON can express.
    """
    data = _encode(item)
    if not data.isascii():
        for character, escaped in _BREAKS:
            data = data.replace(character, escaped)
    return data


def _encode(item: Item) -> bytes:
    if isinstance(item, str):
        item = TextDelta(item)
    elif isinstance(item, StreamStart):
        return b'{"type":"start"}'
    elif isinstance(item, StreamEnd):
        usage = msgspec.to_builtins(item.usage) if item.usage is not None else None
        return end(item.finish_reason, usage, item.stats)
    return _encoder.encode(item)


def end(finish_reason: str | None, usage: Mapping[str, Any] | None = None, stats: Stats | None = None) -> bytes:
    """The last event of a stream that ended well."""
    shown = {name: getattr(stats, name) for name in _SHOWN_STATS} if stats is not None else None
    return _encoder.encode({"type": "end", "finish_reason": finish_reason, "usage": usage, "stats": shown})


def error_event(error: LlamaStreamError) -> bytes:
    """The last event of a stream that broke: the same as the body of a refusal, and a `type`."""
    return _encoder.encode({"type": "error", **_describe(error)})


def refusal(error: LlamaStreamError) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body for an error before the first byte."""
    status = status_of(error)
    headers = {"cache-control": "no-store"}
    if status in (429, 503):
        asked = error.retry_after if isinstance(error, ServerError) else None
        headers["retry-after"] = str(max(1, round(asked if asked is not None else LOADING_SECONDS)))
    return status, headers, _encoder.encode(_describe(error))


def status_of(error: LlamaStreamError) -> int:
    """The status that tells the client whose fault it is: its own (400), nobody's for now (429, 503, 504), or the
    service's (502), which has no business showing a 401 that was meant for itself."""
    if isinstance(error, BadRequestError | InvalidRequestError):
        return 400
    if isinstance(error, RateLimitedError):
        return 429
    if isinstance(error, ConnectError | UnavailableError):
        return 503
    return 504 if isinstance(error, StreamTimeoutError) else 502


def _describe(error: LlamaStreamError) -> dict[str, Any]:
    return {
        "error": {
            "name": type(error).__name__,
            "message": _message(error),
            "status": status_of(error),
            "retryable": error.retryable,
        }
    }


def _message(error: LlamaStreamError) -> str:
    if isinstance(error, ContextSizeError):
        if error.n_prompt_tokens is None or error.n_ctx is None:
            return "The conversation is too long for the model."
        return f"The conversation is too long: {error.n_prompt_tokens} tokens, and {error.n_ctx} fit."
    if isinstance(error, ModelLoadingError):
        return "The model is being loaded; try again in a moment."
    return _MESSAGES[status_of(error)]


_MESSAGES = {
    400: "The model server cannot use this request.",
    429: "Too many requests; try again in a moment.",
    502: "The answer broke off, or the model server gave none.",
    503: "The model server cannot be reached at the moment; try again later.",
    504: "The model server took too long.",
}
