"""Tools to offer, and streams of a server double that answer with calls."""

from __future__ import annotations

from typing import Any

import msgspec

from llamastream.testing import Script, chunked

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def piece(*, name: str | None = None, arguments: str = "", index: int = 0) -> dict[str, Any]:
    """A delta with a piece of a tool call; the first has its name."""
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    head = {} if name is None else {"id": f"call{index}", "type": "function"}
    return {"tool_calls": [{"index": index, **head, "function": function}]}


def answer(*deltas: dict[str, Any], finish_reason: str | None = None, error: str | None = None) -> Script:
    """A stream of these deltas from a server double, with its finish reason, or an error event as llama-server's."""

    def event(content: dict[str, Any]) -> bytes:
        return b"data: " + msgspec.json.encode(content) + b"\n\n"

    def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return event({"id": "x", "model": "double", "choices": [choice]})

    end = [event({"error": {"code": 500, "message": error, "type": "server_error"}})]
    if finish_reason is not None:
        end = [chunk({}, finish_reason), b"data: [DONE]\n\n"]
    return Script(chunked([*map(chunk, deltas), *end]))
