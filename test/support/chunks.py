"""Chunks of an answer, as a server sends them."""

from __future__ import annotations

from typing import Any

import msgspec

from llamastream.protocol.chunks import WireChunk, decode_chunk
from llamastream.protocol.resume import ContinuedAnswer, RepeatedAnswer


def wire(*choices: dict[str, Any], **fields: Any) -> WireChunk:
    return decode_chunk(msgspec.json.encode({"choices": list(choices), **fields}))


def said(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def adapted(answer: ContinuedAnswer | RepeatedAnswer, *choices: dict[str, Any], **fields: Any) -> WireChunk:
    chunk = wire(*choices, **fields)
    answer.adapt(chunk)
    return chunk


def delta_of(chunk: WireChunk) -> Any:
    assert chunk.choices is not None
    return chunk.choices[0].delta or chunk.choices[0].message
