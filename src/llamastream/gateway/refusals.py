"""What the gateway answers when it does not pass a request on, in the form of the API that was asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from llamastream.gateway.frames import error_type

Send = Callable[[dict[str, Any]], Awaitable[None]]


def refusal(path: str, status: int, message: str) -> bytes:
    """The body of an error: Anthropic's form for its endpoints, else OpenAI's."""
    if path.startswith("/v1/messages"):
        kind = {400: "invalid_request_error", 413: "request_too_large", 503: "overloaded_error"}.get(
            status, error_type(status) if status < 500 else "api_error"
        )
        return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": message}})
    return msgspec.json.encode({"error": {"message": message, "type": error_type(status), "code": status}})


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
