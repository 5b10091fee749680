"""The ChaosProxy: untouched where nothing was asked for, and each fault exactly where it was asked for."""

from __future__ import annotations

import gc
import gzip
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wires import CHAT, QUESTION, Heard, ask, chat, dial, hear, numbers, request_bytes

from llamastream.client import StreamingClient
from llamastream.errors import SettingError, UnavailableError
from llamastream.testing import (
    ChaosProxy,
    Duplicate,
    EndlessHeaders,
    Exchange,
    Fault,
    Garbage,
    Gzip,
    HalfClose,
    HtmlError,
    NumberedServer,
    Refuse,
    Reset,
    SlowHeaders,
    Stall,
    Trickle,
    TruncatedChunk,
    Unavailable,
    WrongChunkSize,
)
from llamastream.testing.framing import EventCutter, MessageReader
from llamastream.types import RetryPolicy

TOKENS = 8
EVENTS = TOKENS + 3  # the role, the finish reason, [DONE]
BODY = {"messages": QUESTION, "stream": True}


@pytest.fixture
def server() -> Iterator[NumberedServer]:
    with NumberedServer(tokens=TOKENS) as server:
        yield server


def through(server: NumberedServer, fault: Fault | None, **fields: Any) -> tuple[Heard, Exchange]:
    """A streamed chat through a proxy with one fault, and what the proxy noted."""
    with ChaosProxy(server.url, fault) as proxy:
        heard = chat(proxy.url, **fields)
        assert proxy.wait_for(lambda proxy: proxy.log[0].ended != "")
        assert proxy.log[0].bytes == len(heard.raw)
        return heard, proxy.log[0]


def ends_event(raw: bytes) -> bool:
    return raw.endswith(b"}\n\n")


# -- untouched ----------------------------------------------------------------------------------------------


def test_without_a_fault_every_byte_passes(server: NumberedServer) -> None:
    with ChaosProxy(server.url) as proxy:
        body = ask(proxy.url, body=BODY, X_Conversation_Id="a").raw
        again = ask(server.url, "GET", "/v1/stream?conv_id=a&from=0")
        assert Heard(body, "closed").body == again.body
        assert (proxy.log[0].ended, proxy.log[0].events, proxy.log[0].bytes) == ("complete", EVENTS, len(body))


def test_the_real_client_streams_through_it(server: NumberedServer) -> None:
    with ChaosProxy(server.url) as proxy, StreamingClient(proxy.url) as client:
        assert "".join(client.stream_chat(QUESTION)) == numbers(0, TOKENS)


def test_kept_connections_are_kept_on_both_sides(server: NumberedServer) -> None:
    with ChaosProxy(server.url) as proxy:
        with dial(proxy.url) as connection:
            for _ in range(3):
                connection.sendall(request_bytes("GET", "/health"))
                assert b"ok" in hear(connection, lambda raw: raw.endswith(b"}")).raw
        assert (proxy.accepted, server.accepted, len(proxy.log)) == (1, 1, 3)


# -- which request gets which fault -------------------------------------------------------------------------


def test_faults_go_by_generation_and_leave_side_requests_alone(server: NumberedServer) -> None:
    with ChaosProxy(server.url, [HtmlError(), None, HtmlError()]) as proxy:
        seen = []
        for _ in range(4):
            assert ask(proxy.url, "GET", "/health").status == 200
            seen.append(chat(proxy.url).status)
        numbered = [exchange.number for exchange in proxy.log]
    assert seen == [502, 200, 502, 200]
    assert numbered == [0, 1, 0, 2, 0, 3, 0, 4]


def test_everything_can_be_made_to_fail(server: NumberedServer) -> None:
    with ChaosProxy(server.url, HtmlError(), everything=True) as proxy:
        assert ask(proxy.url, "GET", "/health").status == 502


def test_a_function_can_choose(server: NumberedServer) -> None:
    asked: list[tuple[int, str]] = []

    def choose(number: int, request_line: str) -> Fault | None:
        asked.append((number, request_line))
        return HtmlError() if number == 2 else None

    with ChaosProxy(server.url, choose) as proxy:
        assert [chat(proxy.url).status for _ in range(3)] == [200, 502, 200]
    assert asked == [(number, f"POST {CHAT} HTTP/1.1") for number in (1, 2, 3)]


def test_the_decision_is_made_for_each_request_of_a_kept_connection(server: NumberedServer) -> None:
    with ChaosProxy(server.url, None, Refuse()) as proxy, dial(proxy.url) as connection:
        request = request_bytes("POST", CHAT, {"messages": QUESTION})
        connection.sendall(request)
        assert hear(connection, lambda raw: raw.endswith(b"}}")).status == 200
        connection.sendall(request)
        assert hear(connection) == (b"", "closed")


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Reset(after_events=1, after_bytes=1),
        lambda: Stall(after_events=-1),
        lambda: Garbage(after_events=-1),
        lambda: Duplicate(event=0),
        lambda: ChaosProxy("https://localhost:1"),
        lambda: ChaosProxy("http://localhost:1", lambda number, line: None, Reset()),
    ],
)
def test_what_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(SettingError):
        wrong()


# -- the connection breaks ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "ended"), [(Reset, "reset"), (HalfClose, "closed"), (Stall, "left")], ids=["reset", "close", "stall"]
)
@pytest.mark.parametrize("count", range(EVENTS))
def test_so_many_events_come_and_not_a_byte_more(server: NumberedServer, fault: Any, ended: str, count: int) -> None:
    with ChaosProxy(server.url, fault(after_events=count)) as proxy, dial(proxy.url) as connection:
        connection.sendall(request_bytes("POST", CHAT, BODY))
        # Only when all has been done: then nothing more can come, and a reset finds the reader late.
        assert proxy.wait_for(lambda proxy: bool(proxy.log) and proxy.log[0].fired)
        if fault is Reset:
            assert proxy.wait_for(lambda proxy: proxy.log[0].ended == "fault")
        heard = hear(connection, lambda raw: fault is Stall and len(raw) == proxy.log[0].bytes)
        assert heard.ended == ended
        assert len(heard.events) == count == proxy.log[0].events
        assert ends_event(heard.raw) if count else heard.raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("count", [0, 1, 5, 100, 300, 1000])
@pytest.mark.parametrize("fault", [Reset, HalfClose], ids=["reset", "close"])
def test_so_many_bytes_come(server: NumberedServer, fault: Any, count: int) -> None:
    heard, exchange = through(server, fault(after_bytes=count))
    assert len(heard.raw) == count
    assert heard.ended == ("reset" if fault is Reset else "closed")
    assert (exchange.ended, exchange.fired) == ("fault", True)


def test_a_fault_behind_the_end_does_not_happen(server: NumberedServer) -> None:
    heard, exchange = through(server, Reset(after_events=EVENTS + 1))
    assert heard.joined() == numbers(0, TOKENS)
    assert (exchange.ended, exchange.fired) == ("complete", False)


def test_a_stall_lasts_until_the_client_leaves() -> None:
    with NumberedServer(gate=True) as server, ChaosProxy(server.url, Stall(after_events=2)) as proxy:
        server.release(5)
        with dial(proxy.url) as connection:
            connection.sendall(request_bytes("POST", CHAT, BODY))
            hear(connection, lambda raw: raw.count(b'"content":') == 2)
            assert proxy.wait_for(lambda proxy: proxy.log[0].fired)
            assert (proxy.connections, server.generating, proxy.log[0].ended) == (1, 1, "")
        assert proxy.wait_for(lambda proxy: proxy.connections == 0 and proxy.log[0].ended == "client left")
        assert server.wait_for(lambda server: server.cancelled == 1)


@pytest.mark.parametrize("reset", [False, True])
def test_refused_is_refused_without_asking_the_server(server: NumberedServer, reset: bool) -> None:
    heard, _ = through(server, Refuse(reset=reset))
    assert heard == (b"", "reset" if reset else "closed")
    assert server.requests == []


# -- the framing breaks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 4])
def test_garbage_stands_between_two_chunks(server: NumberedServer, count: int) -> None:
    heard, _ = through(server, Garbage(after_events=count))
    before, _, after = heard.raw.partition(Garbage().data)
    assert len(Heard(before, "").events) == count
    assert before.endswith(b"\r\n")
    assert after.endswith(b"\r\n0\r\n\r\n")


def test_a_chunk_is_shorter_than_it_says(server: NumberedServer) -> None:
    heard, exchange = through(server, TruncatedChunk(after_events=3))
    size, _, data = heard.framed.rpartition(b"\r\n")
    assert len(heard.events) == exchange.events == 3
    assert 0 < len(data) < int(size.rpartition(b"\r\n")[2], 16)
    assert heard.ended == "closed"


@pytest.mark.parametrize("size", [b"zz", b"fffff"])
def test_a_chunk_has_a_wrong_size(server: NumberedServer, size: bytes) -> None:
    heard, exchange = through(server, WrongChunkSize(after_events=3, size=size))
    before, _, after = heard.framed.partition(b"\r\n" + size + b"\r\n")
    assert before.count(b"\n\n") == 3
    assert after.count(b"\n\n") == EVENTS - 3
    assert exchange.fired


# -- the answer is changed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [1, 2, EVENTS])
def test_one_event_comes_twice(server: NumberedServer, event: int) -> None:
    heard, exchange = through(server, Duplicate(event=event))
    assert len(heard.events) == EVENTS + 1
    assert heard.events[event - 1] == heard.events[event]
    assert heard.framed.endswith(b"\r\n0\r\n\r\n")
    assert exchange.events == EVENTS


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_is_compressed(server: NumberedServer, stream: bool) -> None:
    heard, _ = through(server, Gzip(), stream=stream)
    assert b"\r\nContent-Encoding: gzip" in heard.head
    plain = gzip.decompress(heard.body)
    text = plain.decode() if stream else json.loads(plain)["choices"][0]["message"]["content"]
    assert (text.count('"content":"') == TOKENS) if stream else (text == numbers(0, TOKENS))


@pytest.mark.parametrize("fault", [Trickle(), SlowHeaders(delay=0.0001)])
def test_slow_bytes_are_the_same_bytes(server: NumberedServer, fault: Fault) -> None:
    heard, exchange = through(server, fault)
    assert heard.joined() == numbers(0, TOKENS)
    assert (exchange.ended, exchange.fired) == ("complete", True)


def test_the_real_client_does_not_mind_single_bytes(server: NumberedServer) -> None:
    with ChaosProxy(server.url, Trickle()) as proxy, StreamingClient(proxy.url) as client:
        assert "".join(client.stream_chat(QUESTION)) == numbers(0, TOKENS)


# -- another answer comes -----------------------------------------------------------------------------------


def test_a_web_page_comes_and_the_real_client_says_so(server: NumberedServer) -> None:
    heard, _ = through(server, HtmlError())
    assert b"Content-Type: text/html" in heard.head
    assert b"<h1>502" in heard.body
    with (
        ChaosProxy(server.url, HtmlError()) as proxy,
        StreamingClient(proxy.url, retry=RetryPolicy(max_retries=0)) as client,
        pytest.raises(UnavailableError),
    ):
        list(client.stream_chat(QUESTION))
    assert server.requests == []


def test_a_storm_refuses_so_many_requests_and_no_more(server: NumberedServer) -> None:
    with ChaosProxy(server.url, Unavailable(times=3, retry_after=2), HtmlError()) as proxy:
        heard = [chat(proxy.url) for _ in range(5)]
        assert len(server.requests) == 1
    assert [one.status for one in heard] == [503, 503, 503, 502, 200]
    assert b"\r\nRetry-After: 2" in heard[0].head
    assert heard[0].json["error"]["type"] == "unavailable_error"


def test_header_lines_come_until_the_client_leaves(server: NumberedServer) -> None:
    with ChaosProxy(server.url, EndlessHeaders()) as proxy:
        heard = ask(proxy.url, body=BODY, enough=lambda raw: len(raw) > 200_000)
        assert proxy.wait_for(lambda proxy: proxy.log[0].ended == "client left")
    assert b"\r\n\r\n" not in heard.raw
    assert b"\r\nX-Endless-1000: " in heard.raw


# -- leaving ------------------------------------------------------------------------------------------------


def test_the_server_sees_at_once_that_the_client_has_left() -> None:
    with NumberedServer(gate=True) as server, ChaosProxy(server.url) as proxy:
        server.release(1)
        ask(proxy.url, body=BODY, enough=lambda raw: b'"content":"0 "' in raw)
        assert server.wait_for(lambda server: server.cancelled == 1)
        assert proxy.wait_for(lambda proxy: proxy.log[0].ended == "client left")


def test_the_client_sees_at_once_that_the_server_has_left() -> None:
    with NumberedServer(gate=True) as server, ChaosProxy(server.url) as proxy, dial(proxy.url) as connection:
        server.release(1)
        connection.sendall(request_bytes("POST", CHAT, BODY))
        hear(connection, lambda raw: b'"content":"0 "' in raw)
        server.close()
        assert hear(connection).ended == "closed"
        assert proxy.wait_for(lambda proxy: proxy.log[0].ended == "server left")


def test_a_server_that_is_not_there_is_a_closed_connection() -> None:
    with NumberedServer() as server:
        pass
    heard, exchange = through(server, None)
    assert heard == (b"", "closed")
    assert exchange.ended == "server unreachable"


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


@pytest.mark.parametrize("fault", [None, Stall(after_events=1), Trickle(delay=60), EndlessHeaders()])
def test_closing_leaves_no_thread_and_no_socket(fault: Fault | None) -> None:
    before = (threading.active_count(), descriptors())
    with NumberedServer(gate=True) as server, ChaosProxy(server.url, fault) as proxy:
        server.release(1)
        with dial(proxy.url) as idle, dial(proxy.url) as connection:
            idle.sendall(request_bytes("GET", "/health"))
            hear(idle, lambda raw: raw.endswith(b"}"))
            connection.sendall(request_bytes("POST", CHAT, BODY))
            assert proxy.wait_for(lambda proxy: any(exchange.number for exchange in proxy.log))
            proxy.close()
            assert proxy.connections == 0
    assert (threading.active_count(), descriptors()) == before


# -- the parsers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50, 100_000])
def test_messages_are_cut_the_same_however_they_come(server: NumberedServer, size: int) -> None:
    raw = b"HTTP/1.1 100 Continue\r\n\r\n" + chat(server.url).raw
    reader, cutter = MessageReader(), EventCutter()
    spans = [span for at in range(0, len(raw), size) for span in reader.feed(raw[at : at + size])]
    pieces = [piece for span in spans if span.kind == "body" for piece in cutter.cut(span.data)]
    assert b"".join(span.data for span in spans) == raw
    assert [span.last for span in spans].index(True) == len(spans) - 1
    assert sum(whole for _, whole in pieces) == EVENTS


def test_only_blocks_with_data_are_events() -> None:
    cut = EventCutter().cut(b":\n\n: ping\r\n\r\ndata\r\n\r\n\n\nevent: x\n\nid: 1\ndata: 2\n\nretry: 3\n")
    assert [whole for _, whole in cut] == [True, True, False]
    assert cut[0][0] == b":\n\n: ping\r\n\r\ndata\r\n\r\n"
