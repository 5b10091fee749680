"""LangChain's pieces of an answer as our events, known by their shape, so that nothing of it need be imported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from llamastream import Stats, Usage
from llamastream.types import ReasoningDelta, StreamEnd, StreamEvent, TextDelta, ToolCallDelta


def from_message(message: Any) -> Iterator[StreamEvent]:
    """The events of an `AIMessageChunk`.

    Raises:
        TypeError: it is none.
    """
    text = getattr(message, "text", None)
    if not isinstance(text, str):
        raise TypeError(
            f"a stream of {type(message).__name__} cannot be sent; allowed: events of llamastream, str, "
            "dicts, and message chunks of LangChain"
        )
    reasoning = getattr(message, "additional_kwargs", {}).get("reasoning_content")
    if reasoning:
        yield ReasoningDelta(reasoning)
    if text:
        yield TextDelta(str(text))
    for call in getattr(message, "tool_call_chunks", ()):
        yield ToolCallDelta(call["index"] or 0, call["id"] or "", call["name"] or "", call["args"] or "")
    metadata = getattr(message, "response_metadata", {})
    if getattr(message, "chunk_position", None) == "last" and "finish_reason" in metadata:
        yield StreamEnd(metadata["finish_reason"], _usage(message), _stats(metadata.get("stats") or {}))


def _usage(message: Any) -> Usage | None:
    counted = getattr(message, "usage_metadata", None)
    if not counted:
        return None
    cached = counted.get("input_token_details", {}).get("cache_read", 0)
    return Usage(counted["input_tokens"], counted["output_tokens"], counted["total_tokens"], cached)


def _stats(known: dict[str, Any]) -> Stats:
    return Stats(
        time_to_first_token=known.get("time_to_first_token"),
        duration=known.get("duration") or 0.0,
        tokens_per_second=known.get("tokens_per_second"),
    )
