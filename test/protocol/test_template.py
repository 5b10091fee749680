"""The short way and the long way through a stream give the same, whatever the bytes are."""

from __future__ import annotations

import json
from array import array
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from shortway import short_way

from llamastream.gateway.frames import unchunked
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.steady import MOST, SteadyText
from llamastream.protocol.template import TextTemplate
from llamastream.testing import chunked, sse_events
from llamastream.types import Stats, StreamEvent, TextDelta

TEXTS = [
    "Once",
    " upon",
    " a",
    " time",
    ",",
    ' said "he"',
    " ü🦙",
    "\n",
    "\\",
    "\u2028",
    " end",
    ".",
    " x",
    "1",
    "data: ",
]


def frames(texts: list[str]) -> list[bytes]:
    head = chunked([], end=False)
    pieces = sse_events(texts)
    return [head, *(f"{len(p):x}".encode() + b"\r\n" + p + b"\r\n" for p in pieces), b"0\r\n\r\n"]


def long_way(data: bytes) -> tuple[list[StreamEvent], str, int]:
    exchange = GenerationExchange("u")
    events = []
    for i in range(len(data)):  # byte by byte nothing is ever a whole frame
        events += exchange.feed(data[i : i + 1])
    return events, exchange.assembler.result(Stats()).text, exchange.body_bytes


def either_way(reads: list[bytes]) -> tuple[list[StreamEvent], str, int, int]:
    exchange = GenerationExchange("u")
    events: list[StreamEvent] = []
    short = 0
    for read in reads:
        text = short_way(exchange, read)
        if text is not None:
            events.append(TextDelta(text))
            short += 1
        else:
            events += exchange.feed(read)
    assert exchange.error is None
    return events, exchange.assembler.result(Stats()).text, exchange.body_bytes, short


def test_one_event_in_each_read_takes_the_short_way() -> None:
    reads = frames(TEXTS)
    *got, short = either_way(reads)
    assert tuple(got) == long_way(b"".join(reads))
    assert short >= 12, "all texts but the first"


@given(st.lists(st.text(max_size=8), max_size=12), st.lists(st.integers(0, 4000), max_size=10))
def test_any_texts_in_any_reads(texts: list[str], cuts: list[int]) -> None:
    pieces = frames(texts)
    data = b"".join(pieces)
    for edges in ([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)],):
        *got, _ = either_way([data[a:b] for a, b in pairwise(edges)])
        assert tuple(got) == long_way(data)
    *got, _ = either_way(pieces)
    assert tuple(got) == long_way(data)


@given(st.lists(st.text(max_size=8), max_size=12), st.lists(st.integers(0, 4000), max_size=10))
def test_reads_in_which_several_events_have_gathered(texts: list[str], cuts: list[int]) -> None:
    data = b"".join(frames(texts))
    exchange = GenerationExchange("u")
    text, fed = "", b""
    for a, b in pairwise([0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]):
        gathered = data[a:b]
        taken = 0 if exchange.steady is None else exchange.steady.take_several(gathered, 0.0)
        text += pieces_of(gathered[:taken])
        if rest := gathered[taken:]:
            fed += rest
            text += "".join(event.text for event in exchange.feed(rest) if isinstance(event, TextDelta))
    _, whole, size = long_way(data)
    assert (text, exchange.assembler.result(Stats()).text, exchange.body_bytes) == (whole, whole, size)


def pieces_of(taken: bytes) -> str:
    """The text in whole chunks, read by somebody else."""
    lines = unchunked(taken).decode().split("\n")
    return "".join(json.loads(line[6:])["choices"][0]["delta"]["content"] for line in lines if line)


def test_gathered_events_are_taken_up_to_the_first_that_is_another() -> None:
    taker, texts, _ = steady()
    stranger = framed("x").replace(b"demo", b"omed")
    assert taker.take_several(framed("a") + framed("b") + stranger + framed("c"), 0.0) == len(framed("a") * 2)
    assert taker.take_several(framed("d") + framed("e")[:-1], 0.0) == len(framed("d"))
    for nothing in (b"", b"\r\n", b"zz\r\n" + framed("x"), b"-5\r\n" + framed("x"), framed("x")[1:], stranger):
        assert taker.take_several(nothing, 0.0) == 0
    assert "".join(texts) == "abd"


JSON = '{"choices":[{"index":0,"delta":{"content":"%s"}}],"id":"x","model":"demo"}'


def read(data: bytes) -> str | None:
    choices = json.loads(data)["choices"]
    content: str | None = choices[0]["delta"]["content"]
    return content


def learned(text: str = "abc") -> TextTemplate:
    template = TextTemplate()
    template.learn((JSON % text).encode(), text, read)
    return template


@pytest.mark.parametrize(
    "text", ["x", "Grüße 🦙", "a b", "{}", "</s>", "a\nb", 'say "x"', "\\", "\u2028", "\x7f", "demo"]
)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_the_same_chunk_with_another_text(text: str, ascii_only: bool) -> None:
    assert learned().text((JSON % json.dumps(text, ensure_ascii=ascii_only)[1:-1]).encode()) == text


@pytest.mark.parametrize(
    "text", ['a"}}],"x":[{"y":{"z":"', "a\nb", "a\rb", "", "a\x00", 'x","role":"user', "\\ud800", "\\", "\\x"]
)
def test_what_could_mean_something_else_takes_the_long_way(text: str) -> None:
    assert learned().text((JSON % text).encode()) is None


def test_wrong_utf8_takes_the_long_way() -> None:
    assert learned().text((JSON % "x").encode().replace(b'"x"}}]', b'"\xff"}}]')) is None


@pytest.mark.parametrize("text", ["demo", "content", "x", "index", "", 'a"b'])
def test_a_text_that_stands_elsewhere_too_is_not_learned_from(text: str) -> None:
    template = TextTemplate()
    template.learn((JSON % json.dumps(text)[1:-1]).encode(), text, read)
    assert not template.known


def test_a_text_that_only_happens_to_be_another_value_is_not_learned_from() -> None:
    template = TextTemplate()
    template.learn(b'{"choices":[{"delta":{"content":"\\u0041"}}],"id":"A"}', "A", read)
    assert not template.known


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda frame: frame.replace(b"\r\n", b"1\r\n", 1), "a wrong size"),
        (lambda frame: b"-" + frame, "a negative size"),
        (lambda frame: frame[:-1], "cut"),
        (lambda frame: frame + frame, "two of them"),
        (lambda frame: frame.replace(b"data: ", b"date: "), "another field"),
        (lambda frame: frame.replace(b'"id":"x"', b'"id":"y"'), "another id"),
        (lambda frame: b"", "nothing"),
    ],
)
def test_frames_that_are_not_exactly_one_more_text(change, says: str) -> None:  # type: ignore[no-untyped-def]
    event = b"data: " + (JSON % "hello").encode() + b"\n\n"
    frame = f"{len(event):x}\r\n".encode() + event + b"\r\n"
    assert steady()[0].take(frame, 1.0) == "hello"
    assert steady()[0].take(change(frame), 1.0) is None, says


def steady() -> tuple[SteadyText, list[str], array[float]]:
    """Armed, with where the texts go and when they came."""
    template, texts, arrivals = learned(), list[str](), array("d")
    taker = SteadyText(template.before, template.after, texts.append, arrivals)
    taker.armed = True
    return taker, texts, arrivals


def framed(text: str, line: str | None = None) -> bytes:
    event = b"data: " + (JSON % text).encode() + b"\n\n"
    return (f"{len(event):x}" if line is None else line).encode() + b"\r\n" + event + b"\r\n"


def test_texts_of_every_length_are_taken_and_their_bytes_counted() -> None:
    taker, texts, arrivals = steady()
    expected = 0
    for length in range(1, 5000):
        frame = framed("x" * length)
        if taker.pieces == MOST:
            assert taker.take(frame, 0.0) is None, "it goes the long way, on which the others are counted"
            expected -= taker.body_bytes
            taker.forget()
        assert taker.take(frame, float(length)) == "x" * length
        expected += len(frame) - len(frame.split(b"\r\n")[0]) - 4
        assert taker.body_bytes == expected
    assert [len(text) for text in texts] == list(range(1, 5000)) == list(arrivals)


def test_a_chunk_of_another_length_than_it_says_takes_the_long_way() -> None:
    taker, texts, _ = steady()
    for length in range(1, 5000):
        frame = framed("x" * length)
        size = int(frame.split(b"\r\n")[0], 16)
        for other in (size - 1, size + 1, size - 6, size >> 4, size << 4):
            assert taker.take(framed("x" * length, f"{other:x}"), 0.0) is None
        assert taker.take(framed("x" * length, f"0{size:x}"), 0.0) is None
    assert texts == []


def test_nothing_is_taken_by_one_that_is_not_armed() -> None:
    taker, texts, _ = steady()
    taker.armed = False
    assert taker.take(framed("x"), 0.0) is None
    assert texts == []
