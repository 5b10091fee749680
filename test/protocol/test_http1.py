"""Responses of HTTP/1.1: whole, byte by byte, cut anywhere, truncated anywhere, and what is none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.errors import EventTooLargeError, LlamaStreamError, ProtocolError
from llamastream.protocol.http1 import MAX_HEADER_BYTES, ResponseReader, build_request

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nTrailer: x\r\n\r\n"
)
SIZED = b"HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\nX-A: 1\r\nx-a: 2\r\n\r\ngone"
INTERIM = b"HTTP/1.1 100 Continue\r\nX-B: 0\r\n\r\n" + SIZED


def read(*pieces: bytes) -> tuple[ResponseReader, bytes]:
    reader = ResponseReader()
    body = b"".join(part for piece in pieces for part in reader.feed(piece))
    if reader.failure is not None:
        raise reader.failure
    return reader, body


@pytest.mark.parametrize(
    ("data", "status", "body"),
    [(CHUNKED, 200, b"hello world"), (SIZED, 404, b"gone"), (INTERIM, 404, b"gone")],
    ids=["chunked", "sized", "after 100 Continue"],
)
def test_responses_whole_bytewise_and_cut_everywhere(data: bytes, status: int, body: bytes) -> None:
    cuts = [[data], [data[i : i + 1] for i in range(len(data))]] + [[data[:i], data[i:]] for i in range(len(data))]
    for pieces in cuts:
        reader, got = read(*pieces)
        assert (reader.status, got, reader.complete, reader.trailing) == (status, body, True, False)
        assert reader.body_bytes == len(body)
        assert "x-b" not in reader.headers, "fields of an interim response are not those of the answer"


@pytest.mark.parametrize("data", [CHUNKED, SIZED], ids=["chunked", "sized"])
def test_truncated_at_every_byte_is_never_complete(data: bytes) -> None:
    for cut in range(len(data)):
        reader, _ = read(data[:cut])
        assert not reader.complete
        assert not reader.feed_eof()


def test_repeated_fields_are_joined() -> None:
    assert read(SIZED)[0].headers["x-a"] == "1, 2"


def test_a_body_without_length_ends_with_the_connection() -> None:
    reader, body = read(b"HTTP/1.1 200 OK\r\n\r\nall of", b" it")
    assert (body, reader.complete) == (b"all of it", False)
    assert reader.feed_eof()
    assert reader.complete


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"SSH-2.0-OpenSSH_9.2p1\r\n", "does not speak HTTP"),
        (b"\x15\x03\x01\x00\x02\x02\x28", "https://"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "framed"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", "101"),
    ],
)
def test_what_is_no_answer_is_a_clear_error(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        read(data)


def test_the_body_before_a_fault_is_handed_out() -> None:
    reader = ResponseReader()
    body = reader.feed(CHUNKED.partition(b"6;ext")[0] + b"zz\r\n")
    assert body == [b"hello"]
    assert isinstance(reader.failure, ProtocolError)
    assert reader.feed(b"more") == []


def test_endless_headers_are_cut_off() -> None:
    fields = [b"X-Filler: " + b"x" * 1000 + b"\r\n"] * (MAX_HEADER_BYTES // 1000 + 2)
    with pytest.raises(EventTooLargeError, match="header"):
        read(b"HTTP/1.1 200 OK\r\n", *fields)


def test_bytes_after_the_response_are_noticed() -> None:
    reader, body = read(SIZED + b"HTTP/1.1 200 OK\r\n\r\n")
    assert (body, reader.trailing) == (b"gone", True)


@given(st.binary(max_size=300))
def test_arbitrary_bytes_never_end_in_another_kind_of_error(data: bytes) -> None:
    try:
        reader, _ = read(data)
    except LlamaStreamError:
        return
    assert not reader.header_complete or reader.status >= 100


def test_a_request_is_written_in_full() -> None:
    request = build_request("POST", "/v1/x", "h:1", {"A": "b"}, b"{}")
    assert request.split(b"\r\n") == [
        b"POST /v1/x HTTP/1.1", b"Host: h:1", b"User-Agent: llamastream", b"A: b", b"Content-Length: 2", b"", b"{}",
    ]  # fmt: skip


@pytest.mark.parametrize("headers", [{"A": "b\r\nEvil: 1"}, {"A\n": "b"}, {"A": "ü€"}, {"": "x"}, {"a:b": "c"}])
def test_headers_that_would_split_the_request_are_refused(headers: dict[str, str]) -> None:
    with pytest.raises(ProtocolError):
        build_request("GET", "/", "h", headers)
