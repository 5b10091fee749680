"""Responses that are read by an exchange, at once or byte by byte."""

from __future__ import annotations

import msgspec

from llamastream.protocol.exchange import GenerationExchange
from llamastream.testing import chunked, sse_answer
from llamastream.types import (
    Result,
    Stats,
    StreamEvent,
)

TEXTS = ["Grüße", ", ", "Welt 🦙\u2028", "!"]
ANSWER = sse_answer(TEXTS)


def run(
    *pieces: bytes, choices: int = 1, eof: bool = True, limit: int = 1 << 20
) -> tuple[GenerationExchange, list[StreamEvent]]:
    exchange = GenerationExchange("http://x/v1/chat/completions", expected_choices=choices, max_event_bytes=limit)
    events = [event for piece in pieces for event in exchange.feed(piece)]
    if eof:
        exchange.feed_eof()
    return exchange, events


def result(exchange: GenerationExchange) -> Result:
    return exchange.assembler.result(Stats())


def event(**fields: object) -> bytes:
    return b"data: " + msgspec.json.encode(fields) + b"\n\n"


def delta(index: int = 0, finish_reason: str | None = None, **fields: object) -> dict[str, object]:
    return {"index": index, "delta": fields, "finish_reason": finish_reason}


def stream(*events: bytes, done: bool = True) -> bytes:
    return chunked([*events, b"data: [DONE]\n\n"] if done else list(events))
