"""What the gateway answers when it does not pass a request on, in the form of the API that was asked."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from llamastream.errors import (
    AuthenticationError,
    LlamaStreamError,
    ServerError,
    StreamTimeoutError,
    TransportError,
)
from llamastream.gateway.asgi import Send
from llamastream.gateway.frames import error_type

_ADDRESS = re.compile(r"\b(?:https?|unix)://[^\s,;'\"]*[^\s,;:.'\")]")


def refusal(path: str, status: int, message: str) -> bytes:
    """The body of an error: Anthropic's form for its endpoints, else OpenAI's."""
    if _is_anthropic(path):
        kind = {400: "invalid_request_error", 413: "request_too_large", 503: "overloaded_error"}.get(
            status, error_type(status) if status < 500 else "api_error"
        )
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": error_type(status), "code": status}})


def _is_anthropic(path: str) -> bool:
    return path.startswith("/v1/messages")


def error_response(path: str, error: LlamaStreamError) -> tuple[int, bytes, list[tuple[bytes, bytes]]]:
    """Status, body and headers for an error before the response began; what a server itself said is passed on."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, AuthenticationError):  # between the gateway and its server: no fault of the client's
        return 502, refusal(path, 502, "the server does not accept the gateway's API key"), headers
    if isinstance(error, ServerError):
        if error.retry_after is not None:
            headers.append((b"retry-after", str(max(1, round(error.retry_after))).encode()))
        if error.body and error.status is not None:
            return error.status, in_form(path, error.body), headers
    status = status_of(error)
    return status, refusal(path, status, public(error)), headers


def status_of(error: LlamaStreamError) -> int:
    """The status of a response that tells of this error."""
    if isinstance(error, AuthenticationError | TransportError):
        return 502
    return 504 if isinstance(error, StreamTimeoutError) else error.status or 500


def in_form(path: str, body: bytes) -> bytes:
    """What a server answered instead of the answer. llama-server reports all errors in OpenAI's form; on Anthropic's
    endpoints they get the mark by which its clients know them."""
    if not _is_anthropic(path):
        return body
    try:
        said = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body
    if not isinstance(said, dict) or "error" not in said or "type" in said:
        return body
    return msgspec.json.encode({"type": "error", **said})


def public(error: LlamaStreamError) -> str:
    """What clients are told of an error: not where the servers are."""
    return _ADDRESS.sub("the server", error.message)


async def respond(
    send: Send,
    status: int,
    body: bytes,
    headers: Sequence[tuple[bytes, bytes]] = (),
    content_type: bytes = b"application/json",
) -> None:
    """Send a whole response."""
    start = [
        (b"content-type", content_type),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
        *headers,
    ]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body, "more_body": False})
