"""Answers to HTTP/1.0, which knows no chunks: where no length is given, the end of the connection is that of the body.

uvicorn sends chunks whatever the client speaks.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle


def end_with_connection(cycle: RequestResponseCycle) -> None:
    """Have this response go out without chunks. For a cycle that has not begun to answer."""
    send = cycle.send
    bare = False

    async def unchunked(message: Any) -> None:
        nonlocal bare
        if message["type"] == "http.response.start":
            bare = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if bare:
                cycle.chunked_encoding = False
                cycle.keep_alive = False
        elif bare and not cycle.disconnected:
            cycle.expected_content_length = len(message.get("body", b""))  # or uvicorn would miss the length
        await send(message)

    cycle.send = unchunked  # type: ignore[method-assign]  # uvicorn asks for it when the application begins
