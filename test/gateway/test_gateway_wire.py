"""A client's connection, byte by byte: strict HTTP, bounds, pipelining, and what uvicorn must go on being."""

from __future__ import annotations

import inspect
import json
import re
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from wires import Heard, dial, hear

from gateways import Running, serving
from llamastream.engine import Engine
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.strict import HeadError, check_head
from llamastream.gateway.wire import EXTENSION, MAX_PIPELINED, SpliceProtocol, WireLimits, bound
from polling import wait_for

HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_HEALTH = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def gateway(engine: Engine) -> Iterator[Running]:
    settings = GatewaySettings(max_head=4096, head_timeout=0.5, idle_timeout=1.0, body_timeout=0.5, max_body=20_000)
    with serving(Upstreams([engine.url]), settings) as running:
        wait_for(lambda: running.gateway.source.snapshot()[0].models != ())
        yield running


def say(gateway: Running, data: bytes, *, end: bool = False) -> Heard:
    """Send bytes and hear everything until the gateway closes."""
    with dial(gateway.url) as connection:
        connection.sendall(data)
        if end:
            connection.shutdown(socket.SHUT_WR)
        return hear(connection)


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/completions") -> bytes:
    lines = [b"POST " + path + b" HTTP/1.1", b"Host: x", *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def completion(tokens: int, *headers: bytes, stream: bool = True) -> bytes:
    body = json.dumps(
        {"prompt": "Once", "stream": stream, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    ).encode()
    return post(body, b"Content-Length: %d" % len(body), *headers)


def idle(gateway: Running) -> bool:
    return gateway.gateway.lanes.active == 0 == gateway.gateway.lanes.waiting


# -- what may not change in uvicorn ---------------------------------------------------------------------------------


def test_uvicorn_is_what_the_wire_was_written_for() -> None:
    assert uvicorn.__version__.startswith("0.54."), "read gateway/wire.py against the new version, then widen the pin"
    cycle = set(inspect.signature(RequestResponseCycle.__init__).parameters)
    assert {"scope", "transport", "flow", "message_event", "keep_alive", "on_response"} <= cycle
    made = inspect.getsource(RequestResponseCycle.__init__)
    for name in (
        "disconnected", "keep_alive", "body", "more_body", "response_started", "response_complete", "chunked_encoding",
    ):  # fmt: skip
        assert f"self.{name}" in made, name
    for name in (
        "connection_made", "connection_lost", "data_received", "eof_received", "on_message_begin", "on_url",
        "on_header", "on_headers_complete", "on_body", "on_message_complete", "on_response_complete",
        "send_400_response", "_unset_keepalive_if_required", "shutdown",
    ):  # fmt: skip
        assert callable(getattr(HttpToolsProtocol, name)), name
    protocol = inspect.getsource(HttpToolsProtocol)
    assert "self.pipeline.appendleft((self.cycle, app))" in protocol
    assert "self.pipeline.pop()" in protocol
    assert "on_response=self.on_response_complete" in protocol
    # what is overridden without a call of the original does what that does, and no more
    assert inspect.getsource(HttpToolsProtocol.data_received).count("self.") == 7
    sent = inspect.getsource(RequestResponseCycle.send)
    assert 'content = [b"%x\\r\\n" % len(body), body, b"\\r\\n"]' in sent  # the framing that the splice continues
    assert "self.on_response()" in sent


def test_a_new_limit_makes_a_class_of_its_own() -> None:
    one, other = bound(WireLimits(connections=1)), bound(WireLimits(connections=2))
    assert (one.limits.connections, other.limits.connections) == (1, 2)
    assert one.addresses is not other.addresses
    assert issubclass(one, SpliceProtocol)
    assert EXTENSION == "llamastream.splice"


# -- what two readers could read in two ways ------------------------------------------------------------------------

SMUGGLED = {
    "both lengths": post(b"0\r\n\r\n", b"Content-Length: 5", b"Transfer-Encoding: chunked"),
    "both, other order": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Content-Length: 5"),
    "two lengths": post(b"abcdef", b"Content-Length: 5", b"Content-Length: 6"),
    "the same length twice": post(b"abcde", b"Content-Length: 5", b"Content-Length: 5"),
    "lengths in a list": post(b"abcde", b"Content-Length: 5, 5"),
    "a signed length": post(b"abcde", b"Content-Length: +5"),
    "a negative length": post(b"abcde", b"Content-Length: -5"),
    "a length in hexadecimal": post(b"abcde", b"Content-Length: 0x5"),
    "a huge length": post(b"abcde", b"Content-Length: 99999999999999999999999999"),
    "an empty length": post(b"abcde", b"Content-Length: "),
    "a folded header": post(b"", b"X-A: 1\r\n Content-Length: 5"),
    "a folded coding": post(b"0\r\n\r\n", b"Transfer-Encoding:\r\n chunked"),
    "a blank before the colon": post(b"0\r\n\r\n", b"Transfer-Encoding : chunked"),
    "another coding": post(b"0\r\n\r\n", b"Transfer-Encoding: xchunked"),
    "two codings": post(b"0\r\n\r\n", b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity"),
    "a list of codings": post(b"0\r\n\r\n", b"Transfer-Encoding: gzip, chunked"),
    "chunked in 1.0": b"POST /v1/completions HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "bare line feeds": HEALTH.replace(b"\r\n", b"\n"),
    "one bare line feed": b"GET /health HTTP/1.1\r\nHost: x\nX-A: b\r\n\r\n",
    "a bare carriage return": b"GET /health HTTP/1.1\r\nHost: x\rX-A: b\r\n\r\n",
    "a NUL in a value": b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: b\0c\r\n\r\n",
    "a NUL in a name": b"GET /health HTTP/1.1\r\nHost: x\r\nX\0A: b\r\n\r\n",
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": b"GET /health HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
    "another version": b"GET /health HTTP/2.0\r\nHost: x\r\n\r\n",
    "a target without a path": b"CONNECT example:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a method that is none": b"G3T /health HTTP/1.1\r\nHost: x\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "a bad chunk size": post(b"5x\r\nabcde\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "a signed chunk size": post(b"+5\r\nabcde\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "a huge chunk size": post(b"fffffffffffffffff\r\nabc", b"Transfer-Encoding: chunked"),
    "a chunk that is longer than it says": post(b"3\r\nabcde\r\n0\r\n\r\n", b"Transfer-Encoding: chunked"),
    "a chunk that ends in a line feed": post(b"5\nabcde\n0\n\n", b"Transfer-Encoding: chunked"),
}


@pytest.mark.parametrize("data", SMUGGLED.values(), ids=SMUGGLED.keys())
def test_what_could_be_read_in_two_ways_is_refused_and_nothing_after_it_is_read(gateway: Running, data: bytes) -> None:
    heard = say(gateway, data + HEALTH + HEALTH)
    assert heard.raw.count(b"HTTP/1.1 ") == 1, heard.raw
    assert heard.status == 400
    assert heard.json["error"]["type"] == "invalid_request_error"
    assert b"connection: close" in heard.head
    assert heard.ended == "closed"
    wait_for(lambda: idle(gateway))


@pytest.mark.parametrize(
    ("version", "url", "headers", "status"),
    [
        ("1.1", b"/x", [(b"host", b"a")], None),
        ("1.0", b"/x", [], None),
        ("1.1", b"http://a/x", [(b"host", b"a"), (b"content-length", b"3")], None),
        ("1.1", b"/x", [(b"host", b"a"), (b"transfer-encoding", b"Chunked")], None),
        ("1.1", b"/x", [(b"host", b"a"), (b"content-length", "٣".encode())], 400),
        ("1.1", b"x", [(b"host", b"a")], 400),
        ("1.1", b"/x", [(b"host", b"a"), *[(b"x", b"y")] * 128], 431),
    ],
)
def test_heads(version: str, url: bytes, headers: list[tuple[bytes, bytes]], status: int | None) -> None:
    if status is None:
        check_head(version, url, headers)
    else:
        with pytest.raises(HeadError) as raised:
            check_head(version, url, headers)
        assert raised.value.status == status


# -- bounds -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"", HEALTH])
@pytest.mark.parametrize(
    "head",
    [
        b"GET /health HTTP/1.1\r\nHost: x\r\nX-A: " + b"a" * 10_000,
        b"GET /" + b"a" * 10_000,
        b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % number for number in range(1000)),
    ],
)
def test_a_head_that_is_too_large_is_a_431(gateway: Running, first: bytes, head: bytes) -> None:
    with dial(gateway.url) as connection:
        if first:
            connection.sendall(first)
            assert hear(connection, lambda raw: raw.endswith(b"}")).status == 200
        connection.sendall(head)
        heard = hear(connection)
    assert (heard.status, heard.ended) == (431, "closed")
    assert "max_head" in heard.json["error"]["message"]


def test_a_large_body_in_the_same_packet_does_not_count_as_head(gateway: Running) -> None:
    body = json.dumps({"prompt": "x" * 15_000, "max_tokens": 1}).encode()
    heard = say(gateway, post(body, b"Content-Length: %d" % len(body), b"Connection: close"))
    assert heard.status in (200, 400)  # perhaps it is too long for the model, but it was read
    assert b"max_head" not in heard.body


@pytest.mark.parametrize("first", [b"", HEALTH])
@pytest.mark.parametrize("start", [b"G", b"GET /health HTTP/1.1\r\nHost:"])
def test_a_head_that_does_not_come_is_not_waited_for(gateway: Running, first: bytes, start: bytes) -> None:
    with dial(gateway.url) as connection:
        if first:
            connection.sendall(first)
            assert hear(connection, lambda raw: raw.endswith(b"}")).status == 200
        connection.sendall(start)
        assert hear(connection).ended == "closed"


def test_a_connection_that_says_nothing_is_closed(gateway: Running) -> None:
    with dial(gateway.url) as connection:
        assert hear(connection).ended == "closed"
    with dial(gateway.url) as connection:
        connection.sendall(HEALTH)
        heard = hear(connection)  # until the idle time is over
    assert (heard.status, heard.ended) == (200, "closed")


def test_a_body_that_does_not_come_is_a_408(gateway: Running) -> None:
    heard = say(gateway, post(b"{", b"Content-Length: 100"))
    assert (heard.status, heard.ended) == (408, "closed")
    assert "body_timeout" in heard.json["error"]["message"]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_a_413_that_arrives(gateway: Running, chunked: bool) -> None:
    size = 1 << 20
    if chunked:
        data = post(b"%x\r\n" % size + b"x" * size + b"\r\n0\r\n\r\n", b"Transfer-Encoding: chunked")
    else:
        data = post(b"x" * size, b"Content-Length: %d" % size)
    heard = say(gateway, data)
    assert (heard.status, heard.ended) == (413, "closed")
    assert "max_body" in heard.json["error"]["message"]


@pytest.mark.parametrize(
    ("header", "status", "words"),
    [
        (b"Content-Length: 33000000", 413, "max_body"),
        (b"Content-Length: 10\r\nContent-Encoding: gzip", 415, "gzip"),
    ],
)
def test_what_the_head_tells_is_refused_before_the_body_comes(
    gateway: Running, header: bytes, status: int, words: str
) -> None:
    for more in ([], [b"Expect: 100-continue"]):
        heard = say(gateway, post(b"", header, *more))
        assert (heard.status, heard.ended) == (status, "closed")
        assert heard.raw.count(b"HTTP/1.1 ") == 1, "no 100 Continue"
        assert words in heard.json["error"]["message"]
    assert gateway.served[-1].status == status


def test_an_endless_body_of_a_request_that_was_answered_ends_the_connection(gateway: Running) -> None:
    with dial(gateway.url) as connection:
        connection.sendall(post(b"5\r\nabcde\r\n", b"Transfer-Encoding: chunked", path=b"/nothing"))
        heard = hear(connection)
    assert (heard.status, heard.ended) == (404, "closed")


def test_more_connections_than_allowed_are_told_so(engine: Engine) -> None:
    with serving(Upstreams([engine.url]), GatewaySettings(max_connections=2)) as gateway:
        held = [dial(gateway.url) for _ in range(2)]
        for connection in held:
            connection.sendall(HEALTH)
            assert hear(connection, lambda raw: raw.endswith(b"}")).raw
        heard = say(gateway, HEALTH)
        assert (heard.status, heard.json["error"]["type"]) == (503, "unavailable_error")
        held.pop().close()
        wait_for(lambda: say(gateway, LAST_HEALTH).status != 503 or False)
        held.pop().close()


def test_more_connections_of_one_client_than_allowed_are_told_so(engine: Engine) -> None:
    with serving(Upstreams([engine.url]), GatewaySettings(max_connections_per_client=1)) as gateway:
        with dial(gateway.url) as connection:
            connection.sendall(HEALTH)
            assert hear(connection, lambda raw: raw.endswith(b"}")).raw
            heard = say(gateway, HEALTH)
            assert (heard.status, heard.json["error"]["type"]) == (429, "rate_limit_error")
        wait_for(lambda: say(gateway, LAST_HEALTH).status != 429)


# -- several requests on one connection ---------------------------------------------------------------------------


def test_pipelined_requests_are_answered_in_order(gateway: Running) -> None:
    ids = [b"one", b"two", b"three"]
    parts = [HEALTH.replace(b"\r\n\r\n", b"\r\nX-Request-Id: " + each + b"\r\n\r\n") for each in ids]
    stream = completion(20, b"X-Request-Id: stream")
    last = LAST_HEALTH.replace(b"\r\n\r\n", b"\r\nX-Request-Id: last\r\n\r\n")
    heard = say(gateway, parts[0] + stream + parts[1] + parts[2] + last)
    assert re.findall(rb"x-request-id: (\w+)", heard.raw) == [b"one", b"stream", b"two", b"three", b"last"]
    assert heard.raw.count(b"HTTP/1.1 200 OK") == 5


@pytest.mark.parametrize("first", [HEALTH, completion(20)])
@pytest.mark.parametrize("together", [True, False])
def test_of_too_many_at_once_the_first_are_answered_and_the_connection_is_closed(
    gateway: Running, first: bytes, together: bool
) -> None:
    with dial(gateway.url) as connection:
        for part in [first + HEALTH * 50] if together else [first, *[HEALTH * 10] * 5]:
            connection.sendall(part)
        heard = hear(connection)
    assert heard.ended == "closed"
    answers = heard.raw.split(b"HTTP/1.1 200 OK")[1:]
    assert len(answers) >= 1 + MAX_PIPELINED
    assert len(answers) == heard.raw.count(b"HTTP/1.1 ")
    assert [b"connection: close" in answer for answer in answers] == [False] * (len(answers) - 1) + [True]
    assert answers[-1].endswith(b"}")
    if together:
        assert len(answers) == 1 + MAX_PIPELINED


@pytest.mark.parametrize("more", [HEALTH, completion(5), completion(5) + HEALTH * 3, HEALTH * 50, b"GET /hea"])
def test_hanging_up_after_pipelined_requests_frees_the_slot(gateway: Running, slots_free: Any, more: bytes) -> None:
    with dial(gateway.url) as connection:
        connection.sendall(completion(8000) + more)
        hear(connection, lambda raw: raw.count(b"data: ") > 3)
    assert slots_free() < 1
    wait_for(lambda: idle(gateway))


@pytest.mark.parametrize("garbage", [b"\0\0\0", b"NOT HTTP\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n"])
def test_garbage_in_the_middle_of_a_stream_is_not_answered_inside_of_it(
    gateway: Running, slots_free: Any, garbage: bytes
) -> None:
    with dial(gateway.url) as connection:
        connection.sendall(completion(8000))
        begun = hear(connection, lambda raw: raw.count(b"data: ") > 3)
        connection.sendall(garbage)
        rest = hear(connection)
    everything = begun.raw + rest.raw
    assert everything.count(b"HTTP/1.1 ") == 1
    assert rest.ended in ("closed", "reset")
    assert slots_free() < 1


def test_a_large_request_behind_a_running_one_ends_the_connection(gateway: Running, slots_free: Any) -> None:
    with dial(gateway.url) as connection:
        connection.sendall(completion(8000))
        begun = hear(connection, lambda raw: raw.count(b"data: ") > 3)
        connection.sendall(post(b"x" * 100_000, b"Content-Length: 100000"))
        rest = hear(connection)
    assert (begun.raw + rest.raw).count(b"HTTP/1.1 ") == 1
    assert slots_free() < 1


def test_half_a_head_behind_a_stream_does_not_cut_the_stream(gateway: Running) -> None:
    with dial(gateway.url) as connection:
        connection.sendall(completion(4000))
        begun = hear(connection, lambda raw: raw.count(b"data: ") > 3)
        connection.sendall(b"GET /he")
        rest = hear(connection)
    assert (begun.raw + rest.raw).count(b"data: [DONE]") == 1
    assert rest.ended == "closed"


def test_an_upgrade_is_not_made_and_the_request_is_answered(gateway: Running) -> None:
    heard = say(gateway, HEALTH.replace(b"\r\n\r\n", b"\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n") + HEALTH)
    assert (heard.status, heard.raw.count(b"HTTP/1.1 ")) == (200, 1)
    assert heard.ended == "closed"
    body = json.dumps({"prompt": "Once", "max_tokens": 2}).encode()
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket"
    heard = say(gateway, post(body, b"Content-Length: %d" % len(body), upgrade))
    assert heard.status == 200
    assert heard.json["choices"]
    upgrade = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nTransfer-Encoding: chunked"
    assert say(gateway, post(b"0\r\n\r\n", upgrade)).status == 400


def test_who_stops_sending_is_taken_to_be_gone(gateway: Running, slots_free: Any) -> None:
    with dial(gateway.url) as connection:
        connection.sendall(completion(8000))
        hear(connection, lambda raw: raw.count(b"data: ") > 3)
        connection.shutdown(socket.SHUT_WR)
        assert hear(connection).ended in ("closed", "reset")
        assert slots_free() < 1
