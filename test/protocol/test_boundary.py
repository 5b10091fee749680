"""Where a stream was left: which events were complete, to the byte."""

from __future__ import annotations

import random
from typing import Any

import pytest
from shortway import short_way

from llamastream.protocol.assembler import Assembler
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.sse import SseDecoder
from llamastream.testing import chunked, sse_answer
from llamastream.types import StreamEvent, StreamStart, TextDelta

# -- where a stream was left ------------------------------------------------------------------------------------


EVENTS = {
    "events": [b"data: a\n\n", b"data: b\n\n", b"data: c\n\n"],
    "pings": [b": ping\n\n", b"data: a\n\n", b":\n\n", b":\n\n", b"data: b\n\n", b": ping\n\n"],
    "several lines": [b"data: a\ndata: b\n\n", b"event: x\nid: 7\ndata: c\n\n", b"retry: 5\n\n", b"data: d\n\n"],
    "a comment inside": [b": hello\ndata: a\n\n", b"data: b\n: in between\n\n", b": x\n: y\ndata: c\n\n"],
    "blank lines": [b"\n\n", b"data: a\n\n", b"\n", b"data: b\n\n"],
    "a BOM": [b"\xef\xbb\xbfdata: a\n\n", b"data: b\n\n"],
}
LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_what_is_unfinished_is_what_must_come_again(events: list[bytes], end: bytes, step: int) -> None:
    stream = b"".join(events).replace(b"\n", end)
    whole = [event.data for event in SseDecoder().feed(stream)]
    for cut in range(len(stream) + 1):
        decoder = SseDecoder()
        before = [event.data for at in range(0, cut, step) for event in decoder.feed(stream[at : min(cut, at + step)])]
        boundary = cut - decoder.unfinished_bytes
        assert 0 <= boundary <= cut
        after = [event.data for event in SseDecoder().feed(stream[boundary:])]
        assert before + after == whole, f"cut at {cut}, taken up at {boundary}"


@pytest.mark.parametrize("seed", range(200))
def test_what_is_unfinished_whatever_the_reads(seed: int) -> None:
    rng = random.Random(seed)
    lines = [b"data: x\n", b"data: yy\n", b"\n", b"\n", b": c\n", b": a longer comment\n", b"id: 3\n"]
    stream = b"".join(rng.choice(lines) for _ in range(30)) + b"\n"
    if seed % 2:
        stream = stream.replace(b"\n", rng.choice([b"\r\n", b"\r"]))
    whole = [event.data for event in SseDecoder().feed(stream)]
    decoder, position, got = SseDecoder(), 0, []
    while position < len(stream):
        step = rng.randint(1, 12)
        got += [event.data for event in decoder.feed(stream[position : position + step])]
        position = min(len(stream), position + step)
        boundary = position - decoder.unfinished_bytes
        assert got + [event.data for event in SseDecoder().feed(stream[boundary:])] == whole


TEXTS = ["Once ", "upon ", "a ", "🦙 time", " there", "\n\n", "was"]
PING = b":\n\n"


def bodies() -> dict[str, list[bytes]]:
    """The de-chunked events of an answer, in several dresses."""
    plain = [event + b"\n\n" for event in dechunked(sse_answer(TEXTS)).split(b"\n\n")[:-1]]
    return {
        "plain": plain,
        "pings": [piece for event in plain for piece in (PING, event)],
        "CRLF": [event.replace(b"\n", b"\r\n") for event in plain],
        "CRLF and pings": [piece.replace(b"\n", b"\r\n") for event in plain for piece in (event, b": ping\n\n")],
    }


def dechunked(answer: bytes) -> bytes:
    framed = answer.partition(b"\r\n\r\n")[2]
    body = b""
    while framed and (size := int(framed[: framed.index(b"\r\n")], 16)):
        start = framed.index(b"\r\n") + 2
        body += framed[start : start + size]
        framed = framed[start + size + 2 :]
    return body


def texts(events: list[StreamEvent]) -> list[Any]:
    return [event.text if isinstance(event, TextDelta) else type(event).__name__ for event in events]


@pytest.mark.parametrize("dress", ["plain", "pings", "CRLF", "CRLF and pings"])
@pytest.mark.parametrize("split", ["whole events", "all in one chunk", "cut anywhere"])
@pytest.mark.parametrize("reads", ["at once", "bytewise"])
def test_an_answer_is_taken_up_again_where_it_was_left(dress: str, split: str, reads: str) -> None:
    pieces = bodies()[dress]
    body = b"".join(pieces)
    if split == "all in one chunk":
        pieces = [body]
    elif split == "cut anywhere":
        pieces = [body[at : at + 13] for at in range(0, len(body), 13)]
    wire_bytes = chunked(pieces)
    reference = GenerationExchange("http://x")
    expected = texts(reference.feed(wire_bytes))
    head = wire_bytes.index(b"\r\n\r\n") + 4
    cuts = range(head, len(wire_bytes)) if reads == "at once" else range(head, len(wire_bytes), 17)
    for cut in cuts:
        assembler = Assembler()
        first = GenerationExchange("http://x", assembler=assembler)
        events: list[StreamEvent] = []
        for part in [wire_bytes[:cut]] if reads == "at once" else [wire_bytes[at : at + 1] for at in range(cut)]:
            text = short_way(first, part)
            events += [TextDelta(text)] if text is not None else first.feed(part)
        if first.done:
            break
        boundary = first.event_boundary
        assert boundary is not None
        second = GenerationExchange("http://x", assembler=assembler)
        rest = second.feed(chunked([body[boundary:]]) if body[boundary:] else chunked([]))
        assert type(rest.pop(0)) is StreamStart
        assert texts(events + rest) == expected, f"cut at {cut}, taken up at {boundary}"
        assert assembler.text(0) == "".join(TEXTS)
        assert (second.error, second.done) == (None, True)


def test_where_an_event_was_left_in_the_middle_nothing_can_be_said() -> None:
    exchange = GenerationExchange("http://x")
    exchange.feed(chunked([b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b"data: {nonsense}\n\n"], end=False))
    assert exchange.error is not None
    assert exchange.event_boundary is None


def test_broken_framing_leaves_what_came_before_it() -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    exchange = GenerationExchange("http://x")
    exchange.feed(chunked([event], end=False) + b"this is no chunk\r\n")
    assert exchange.error is not None
    assert exchange.event_boundary == len(event)


def test_a_whole_answer_has_no_events() -> None:
    exchange = GenerationExchange("http://x", accept_whole=True)
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
    assert exchange.event_boundary is None
