"""Errors of the server, from HTTP answers and from events in mid-stream, made into the error tree."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any

import msgspec

from llamastream.errors import (
    AuthenticationError,
    BadRequestError,
    ContextSizeError,
    InternalServerError,
    LlamaStreamError,
    MalformedOutputError,
    MidStreamError,
    ModelLoadingError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    ToolsUnsupportedError,
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
    ToolsUnsupportedError: "start the server with --jinja, or remove the tools from the request",
    MalformedOutputError: "the model did not keep to its format; ask again, with another seed or a lower temperature",
}

_UNREADABLE = ("does not match the expected", "failed to parse input at pos", "invalid diff:")
"""How llama-server reports output that its parser for tool calls and reasoning cannot read; builds differ."""


def reported(body: bytes) -> str:
    """What the body of an error says."""
    return _message_and_type(_details(body), {}, body)[0]


def response_error(status: int, headers: Mapping[str, str], body: bytes, url: str) -> ServerError:
    """The error for an HTTP answer of 400 and above."""
    details = _details(body)
    message, type_ = _message_and_type(details, headers, body)
    kind: type[ServerError]
    if type_ == "exceed_context_size_error":
        kind = ContextSizeError
    elif status == 503 and "loading model" in message.lower():
        kind = ModelLoadingError
    elif status >= 400 and (told := _of_tools(message)):
        kind = told
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
        elif status >= 500 and kind is BadRequestError:
            text += (
                "; a tool call of the conversation has arguments that are not JSON: take `Result.to_message()` for it"
            )
        error = kind(text, status=status)
    error.type = type_
    error.body = body[:MAX_ERROR_BODY]
    asked = headers.get("retry-after")
    error.retry_at = _date(asked)
    # A date and the server's own clock, if it tells it, make seconds; else whoever has a clock makes them of retry_at.
    error.retry_after = parse_retry_after(asked, now=_date(headers.get("date")))
    return error


def _of_tools(message: str) -> type[ServerError] | None:
    """What an error with the status 500 means where it is about tools, or the form of the model's output."""
    text = message.lower()
    if "requires --jinja" in text and "tool" in text:
        return ToolsUnsupportedError
    if any(sign in text for sign in _UNREADABLE):
        return MalformedOutputError
    if "failed to parse tool call arguments as json" in text:
        return BadRequestError  # of a call in the history
    return None


def mid_stream_error(raw: bytes, url: str, *, begun: bool = True, whole: bool = False) -> ServerError:
    """The error for an `{"error": ...}` event (or an `error:` line) inside a stream; `raw` is the error's JSON.

    `begun`: content had come; `whole`: the answer was no stream at all.
    """
    details = _details(raw) or {"message": raw[:500].decode("utf-8", "replace")}
    message, type_ = _message_and_type(details, {}, raw)
    where = "in mid-stream" if begun else "in place of an answer" if whole else "before any content"
    text, status = f"{url} reported an error {where}: {message}", _integer(details, "code")
    error: ServerError
    if _of_tools(message) is MalformedOutputError:
        error = MalformedOutputError(f"{text}; {_ADVICE[MalformedOutputError]}", status=status)
    else:
        error = MidStreamError(text, status=status)
        error.retryable = (status or 500) >= 500
    error.type = type_
    error.body = raw[:MAX_ERROR_BODY]
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
            f"answered with a compressed body ({encoding}), though none was asked for"
            f"{'; that holds chunks back' if content_type == 'text/event-stream' else ''}; "
            + _compression_advice(headers, content_type or "this path")
        )
    else:
        quoted = body[:80].decode("utf-8", "replace")
        what = f"answered {status} with {content_type or 'an unnamed type'} instead of {expected}: {quoted!r}"
    return UnexpectedResponseError(f"{url} {what}", status=status)


def _compression_advice(headers: Mapping[str, str], what: str) -> str:
    """Where to switch compression off, going by who says to have answered; as in `policy.buffering`."""
    server = f"{headers.get('server', '')} {headers.get('via', '')}".lower()
    if "cf-ray" in headers or "cloudflare" in server:
        return "Cloudflare: send `Cache-Control: no-transform` from the origin, or a compression rule that excludes it"
    if "nginx" in server or "openresty" in server:
        return "nginx: set `gzip off;` (and `brotli off;`) in the location of the API"
    if "uvicorn" in server or "starlette" in server:
        return f"uvicorn, Starlette, FastAPI: remove GZipMiddleware, or exclude {what} from it"
    return (
        f"switch compression of {what} off in the proxy or the middleware before the server "
        "(nginx: `gzip off;`, Cloudflare: `no-transform`, Starlette: no GZipMiddleware)"
    )


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
    date = None if now is None else _date(text)
    return None if now is None or date is None else max(0.0, date - now)


def _date(value: str | None) -> float | None:
    """An HTTP date in seconds since the epoch; None if it is something else."""
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value.strip())
        if date.tzinfo is None:  # "-0000", or none: a date in HTTP is GMT in any case
            date = date.replace(tzinfo=UTC)
        return date.timestamp()
    except (ValueError, OverflowError, TypeError, IndexError):
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
