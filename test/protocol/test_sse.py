"""The SSE decoder against the standard: whole, byte by byte, cut anywhere, truncated anywhere."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.errors import EventTooLargeError
from llamastream.protocol.sse import SseDecoder, SseEvent


def decode(*pieces: bytes) -> list[SseEvent]:
    decoder = SseDecoder()
    return [event for piece in pieces for event in decoder.feed(piece)]


def message(data: bytes, event: str = "message", id_: str = "") -> SseEvent:
    return SseEvent(data, event, id_)


# (input, events), after the examples and the rules of the standard
CASES: dict[str, tuple[bytes, list[SseEvent]]] = {
    "one event": (b"data: hello\n\n", [message(b"hello")]),
    "several events": (b"data: 1\n\ndata: 2\n\ndata: 3\n\n", [message(b"1"), message(b"2"), message(b"3")]),
    "data lines are joined": (b"data: a\ndata: b\n\n", [message(b"a\nb")]),
    "only one space is dropped": (b"data:  x\n\ndata:y\n\n", [message(b" x"), message(b"y")]),
    "data without a colon is an empty line": (b"data\n\ndata\ndata\n\n", [message(b""), message(b"\n")]),
    "comments": (b": ping\n\n:\n\ndata: x\n\n", [message(b"x")]),
    "event type, for one event": (b"event: add\ndata: 1\n\ndata: 2\n\n", [message(b"1", "add"), message(b"2")]),
    "an empty event type is message": (b"event:\ndata: 1\n\n", [message(b"1")]),
    "id stays": (b"id: 7\ndata: 1\n\ndata: 2\n\n", [message(b"1", id_="7"), message(b"2", id_="7")]),
    "an empty id resets": (b"id: 7\ndata: 1\n\nid\ndata: 2\n\n", [message(b"1", id_="7"), message(b"2")]),
    "an id with NUL is ignored": (b"id: a\0b\ndata: 1\n\n", [message(b"1")]),
    "an id alone dispatches nothing": (b"id: 7\n\ndata: 1\n\n", [message(b"1", id_="7")]),
    "retry alone dispatches nothing": (b"retry: 500\n\ndata: 1\n\n", [message(b"1")]),
    "an event type alone dispatches nothing, and is gone": (b"event: x\n\ndata: 1\n\n", [message(b"1")]),
    "unknown fields are ignored": (b"foo: bar\ndata: 1\nDATA: 2\n data: 3\n\n", [message(b"1")]),
    "CR": (b"data: 1\r\rdata: 2\r\r", [message(b"1"), message(b"2")]),
    "CRLF": (b"data: 1\r\n\r\ndata: 2\r\n\r\n", [message(b"1"), message(b"2")]),
    "line ends mixed": (b"data: 1\r\ndata: 2\rdata: 3\n\r\ndata: 4\n\r", [message(b"1\n2\n3"), message(b"4")]),
    "a BOM goes before all": (b"\xef\xbb\xbfdata: 1\n\n", [message(b"1")]),
    "only the first BOM": (b"\xef\xbb\xbf\xef\xbb\xbfdata: 1\n\ndata: 2\n\n", [message(b"2")]),
    "a BOM inside data": (b"data: \xef\xbb\xbfx\n\n", [message(b"\xef\xbb\xbfx")]),
    "U+2028, U+2029, U+0085, VT and FF end no line": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\n\n".encode(),
        [message("a\u2028b\u2029c\x85d\x0be\x0cf".encode())],
    ),
    "UTF-8": ("data: Grüße, 世界 🦙\n\n".encode(), [message("Grüße, 世界 🦙".encode())]),
    "the last event needs its blank line": (b"data: 1\n\ndata: 2\n", [message(b"1")]),
    "nothing": (b"", []),
    "blank lines": (b"\n\n\r\n\r\r\n", []),
    "a colon in the data": (b'data: {"a": "b: c"}\n\n', [message(b'{"a": "b: c"}')]),
    "an error line": (b'error: {"message": "x"}\n\n', []),
}


@pytest.mark.parametrize("name", CASES)
def test_case_whole_and_cut_everywhere(name: str) -> None:
    data, expected = CASES[name]
    assert decode(data) == expected
    assert decode(*(data[i : i + 1] for i in range(len(data)))) == expected, "byte by byte"
    for cut in range(len(data) + 1):
        assert decode(data[:cut], data[cut:]) == expected, f"cut at {cut}"
        assert decode(data[:cut], b"", data[cut:]) == expected, f"cut at {cut}, with an empty read"


@pytest.mark.parametrize("name", CASES)
def test_truncation_gives_a_prefix_of_the_events(name: str) -> None:
    data, expected = CASES[name]
    for cut in range(len(data)):
        got = decode(data[:cut])
        assert got == expected[: len(got)]


def reference(data: bytes) -> list[SseEvent]:
    """The standard's algorithm, word for word and line by line, on the whole input."""
    text = data.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    lines = re.split("\r\n|\n|\r", text)[:-1]  # what follows the last line end is no line
    events, buffer, event_type, last_id = [], "", "", ""
    for line in lines:
        if line == "":
            if buffer:
                raw = buffer.removesuffix("\n").encode("utf-8", "surrogateescape")
                events.append(SseEvent(raw, event_type or "message", last_id))
            buffer = event_type = ""
        elif not line.startswith(":"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "event":
                event_type = value
            elif field == "data":
                buffer += value + "\n"
            elif field == "id" and "\0" not in value:
                last_id = value
    return events


pieces = st.sampled_from(
    [
        b"data",
        b"data:",
        b"data: ",
        b"event: a",
        b"id: 1",
        b"id",
        b"retry: 5",
        b": c",
        b"x",
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        "ü🦙\u2028".encode(),
        b"\xef\xbb\xbf",
        b"data: {}\n\n",
        b"\0",
        b":",
        b" ",
    ]
)


@given(st.lists(pieces, max_size=30).map(b"".join), st.lists(st.integers(0, 200), max_size=8))
def test_any_input_cut_anywhere_is_as_the_standard_says(data: bytes, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    parts = [data[a:b] for a, b in pairwise(edges)]
    assert decode(*parts) == reference(data)


def test_fields_beside_the_events_are_kept() -> None:
    decoder = SseDecoder()
    decoder.feed(b": ping\n\nretry: 1500\n\nretry: soon\n\nerror: bad\n\nid: 9\n\n")
    assert (decoder.comments, decoder.retry_ms, decoder.error_lines, decoder.last_event_id) == (1, 1500, [b"bad"], "9")


def feed_bytewise(decoder: SseDecoder, data: bytes) -> None:
    for i in range(len(data)):
        decoder.feed(data[i : i + 1])


@pytest.mark.parametrize("data", [b"data: " + b"x" * 2000, b"data: " + b"x" * 2000 + b"\n\n", b"data: x\n" * 600])
def test_an_event_over_the_limit_is_an_error_that_names_the_limit(data: bytes) -> None:
    whole, bytewise = SseDecoder(max_event_bytes=1000), SseDecoder(max_event_bytes=1000)
    warm = b"data: warm\n\n"  # after the first event the fast path is open
    whole.feed(warm)
    with pytest.raises(EventTooLargeError, match="1000 bytes"):
        whole.feed(data)
    with pytest.raises(EventTooLargeError, match="1000 bytes"):
        feed_bytewise(bytewise, data)
    assert bytewise.pending_bytes <= 1002, "nothing grows beyond the limit"


def test_many_events_in_one_read_may_exceed_the_limit_of_one() -> None:
    decoder = SseDecoder(max_event_bytes=1000)
    decoder.feed(b"data: warm\n\n")
    assert len(decoder.feed(b"data: small\n\n" * 500)) == 500
