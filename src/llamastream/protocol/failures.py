"""Errors of the server, from HTTP answers and from events in mid-stream, made into the error tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from llamastream.errors import (
    AuthenticationError,
    BadRequestError,
    ContextSizeError,
    InternalServerError,
    LlamaStreamError,
    MidStreamError,
    ModelLoadingError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    UnavailableError,
    UnexpectedResponseError,
)

MAX_ERROR_BODY = 64 * 1024
"""How much of an error's body is kept, in bytes."""

_BY_STATUS: dict[int, type[ServerError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    413: BadRequestError,
    422: BadRequestError,
    429: RateLimitedError,
    501: NotSupportedError,
    502: UnavailableError,
    503: UnavailableError,
    504: UnavailableError,
}

_ADVICE: dict[type[ServerError], str] = {
    AuthenticationError: "set api_key (or LLAMASTREAM_API_KEY) to the key that the server was started with",
    NotFoundError: "check the path of the base URL and the model's name",
    NotSupportedError: "start the server with the flag that the message names",
}


def response_error(status: int, headers: Mapping[str, str], body: bytes, url: str) -> ServerError:
    """The error for an HTTP answer of 400 and above."""
    details = _details(body)
    message, type_ = _message_and_type(details, headers, body)
    kind: type[ServerError]
    if type_ == "exceed_context_size_error":
        kind = ContextSizeError
    elif status == 503 and "loading model" in message.lower():
        kind = ModelLoadingError
    else:
        kind = _BY_STATUS.get(status, InternalServerError if status >= 500 else BadRequestError)
    text = f"{url} answered {status}: {message}"
    if kind is ContextSizeError:
        prompt, context = _integer(details, "n_prompt_tokens"), _integer(details, "n_ctx")
        text += (
            f" (prompt: {prompt} tokens, context of a slot: {context}); shorten the prompt, "
            "or start the server with a larger context for each slot (llamastream serve --ctx-size)"
        )
        error: ServerError = ContextSizeError(text, status=status)
        assert isinstance(error, ContextSizeError)
        error.n_prompt_tokens, error.n_ctx = prompt, context
    else:
        if kind in _ADVICE:
            text += f"; {_ADVICE[kind]}"
        error = kind(text, status=status)
    error.type = type_
    error.body = body[:MAX_ERROR_BODY]
    error.retry_after = parse_retry_after(headers.get("retry-after"))
    return error


def mid_stream_error(raw: bytes, url: str) -> MidStreamError:
    """The error for an `{"error": ...}` event (or an `error:` line) inside a stream; `raw` is the error's JSON."""
    details = _details(raw) or {"message": raw[:500].decode("utf-8", "replace")}
    message, type_ = _message_and_type(details, {}, raw)
    error = MidStreamError(f"{url} reported an error in mid-stream: {message}", status=_integer(details, "code"))
    error.type = type_
    error.body = raw[:MAX_ERROR_BODY]
    error.retryable = (error.status or 500) >= 500
    return error


def unexpected_response(
    status: int, headers: Mapping[str, str], body: bytes, url: str, expected: str = "an event stream"
) -> UnexpectedResponseError:
    """The error for an answer that is not what was `expected`: say what it is and what to do."""
    content_type = headers.get("content-type", "").split(";")[0].strip().lower()
    if 300 <= status < 400:
        location = headers.get("location", "somewhere it does not say")
        what = f"redirects to {location!r} ({status}); redirects are not followed, use that address as base URL"
    elif content_type == "text/html" or body.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        title = re.search(rb"<title[^>]*>([^<]{0,80})", body, re.IGNORECASE)
        named = f" titled {title.group(1).decode('utf-8', 'replace').strip()!r}" if title else ""
        what = (
            f"answered {status} with a web page{named} instead of {expected}; "
            "is there a proxy or another program at this address?"
        )
    elif encoding := headers.get("content-encoding", ""):
        what = (
            f"answered with a compressed body ({encoding}), which holds chunks back; "
            "switch compression of text/event-stream off in the proxy before the server"
        )
    else:
        quoted = body[:80].decode("utf-8", "replace")
        what = f"answered {status} with {content_type or 'an unnamed type'} instead of {expected}: {quoted!r}"
    return UnexpectedResponseError(f"{url} {what}", status=status)


def streaming_unsupported(error: LlamaStreamError) -> bool:
    """Whether a server's answer means that it, or this model's template, cannot stream."""
    if not isinstance(error, ServerError) or error.status not in (400, 404, 405, 415, 422, 500, 501):
        return False
    text = error.message.lower()
    negated = any(word in text for word in ("not support", "unsupported", "cannot", "not implemented", "not available"))
    return "stream" in text and negated


def parse_retry_after(value: str | None, *, now: float | None = None) -> float | None:
    """`Retry-After` in seconds (RFC 9110 section 10.2.3): a number, or a date if `now` (epoch seconds) is given."""
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    if now is None:
        return None
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None


def _details(body: bytes) -> dict[str, Any]:
    """`error` of an OpenAI-style body as a dict; {} if the body is something else."""
    try:
        decoded = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return {}
    error = decoded.get("error", decoded) if isinstance(decoded, dict) else None
    if isinstance(error, str):
        return {"message": error}
    return error if isinstance(error, dict) else {}


def _message_and_type(details: Mapping[str, Any], headers: Mapping[str, str], body: bytes) -> tuple[str, str]:
    message = details.get("message") or details.get("detail")
    if not isinstance(message, str):
        if "html" in headers.get("content-type", ""):
            message = "a web page, not an error of llama-server; is there a proxy or another program at this address?"
        else:
            message = body[:200].decode("utf-8", "replace").strip() or "no explanation"
    type_ = details.get("type")
    return message[:2000], type_ if isinstance(type_, str) else ""


def _integer(details: Mapping[str, Any], name: str) -> int | None:
    value = details.get(name)
    return value if isinstance(value, int) else None
