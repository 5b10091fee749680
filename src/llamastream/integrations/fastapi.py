"""Streams as HTTP responses, for FastAPI and everything else that stands on Starlette.

    @app.post("/chat")
    async def chat(question: Question) -> Response:
        return sse_response(client.stream_chat([{"role": "user", "content": question.text}]))

`docs/integrations.md` describes what goes over the wire. Starlette alone is enough; FastAPI is not imported.
"""

from __future__ import annotations

from llamastream.integrations.extras import need

need("starlette", "fastapi")

from llamastream.integrations.web.response import (  # noqa: E402  # only once the library is there
    StreamResponse,
    ndjson_response,
    sse_response,
)

__all__ = ["StreamResponse", "ndjson_response", "sse_response"]
