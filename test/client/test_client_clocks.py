"""The five clocks of a stream, on servers that are silent, slow or only ping."""

from __future__ import annotations

import math
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from drivers import Driver
from faults import MESSAGES, TEXTS, each_driver
from llamastream.client import StreamingClient
from llamastream.errors import (
    ConnectTimeoutError,
    ContentIdleTimeoutError,
    FirstByteTimeoutError,
    LlamaStreamError,
    PrefillTimeoutError,
    TotalTimeoutError,
)
from llamastream.testing import Script, ServerDouble, chunked, sse_answer, sse_events
from llamastream.types import Timeouts

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left", "no_recovery")


@pytest.fixture
def full_backlog() -> Iterator[str]:
    """An address whose accept queue is full, so that a connection is neither made nor refused."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        fillers = [socket.socket() for _ in range(3)]
        for filler in fillers:
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
        yield url
        for filler in fillers:
            filler.close()


@each_driver
@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse or queue differently")
def test_connect_clock(driver: Driver, full_backlog: str) -> None:
    with pytest.raises(ConnectTimeoutError, match=r"Timeouts\.connect"):
        driver.texts(full_backlog, MESSAGES, timeouts=Timeouts(connect=0.2))


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
HALF = chunked(sse_events(TEXTS, finish_reason=None, done=False), end=False)


@each_driver
@pytest.mark.parametrize(
    ("response", "timeouts", "kind", "text"),
    [
        (b"", Timeouts(first_byte=0.2), FirstByteTimeoutError, ""),
        (HEAD, Timeouts(first_byte=9, prefill=0.2), PrefillTimeoutError, ""),
        (HALF, Timeouts(first_byte=9, prefill=9, content_idle=0.2), ContentIdleTimeoutError, "".join(TEXTS)),
        (HALF, Timeouts(content_idle=9, total=0.2), TotalTimeoutError, "".join(TEXTS)),
    ],
    ids=["first byte", "prefill", "content idle", "total"],
)
def test_a_silent_server_runs_out_the_clock_that_runs(
    driver: Driver, response: bytes, timeouts: Timeouts, kind: type[LlamaStreamError], text: str
) -> None:
    with ServerDouble(Script(response, stall=True)) as server:
        started = time.monotonic()
        with pytest.raises(kind) as caught:
            driver.texts(server.url, MESSAGES, timeouts=timeouts)
        assert 0.2 <= time.monotonic() - started < 5
        assert caught.value.partial is not None
        assert caught.value.partial.text == text
        assert server.wait_for(lambda double: double.connections == 0), "the connection is closed"


@each_driver
@pytest.mark.parametrize("seconds", [math.inf, 1e12, 1e-9])
def test_clocks_of_any_length(driver: Driver, seconds: float) -> None:
    # With no time at all, an answer that is there at once could still win the race.
    hurry = seconds < 1
    with ServerDouble(Script(stall=True) if hurry else Script(sse_answer(TEXTS), piece=40)) as server:
        connect = 9 if hurry else seconds
        timeouts = Timeouts(connect=connect, first_byte=seconds, prefill=seconds, content_idle=seconds)
        if hurry:
            with pytest.raises(FirstByteTimeoutError):
                driver.texts(server.url, MESSAGES, timeouts=timeouts)
        else:
            assert driver.texts(server.url, MESSAGES, timeouts=timeouts) == TEXTS


class Pinging:
    """Sends half an answer and then only pings, as fast as they are taken, for at most five seconds."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._gone = threading.Event()

    def _serve(self) -> None:
        connection, _ = self._listener.accept()
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(HALF)
                while not self._gone.wait(0.02):
                    connection.sendall(b"3\r\n:\n\n\r\n")
            except OSError:
                pass

    def __enter__(self) -> Pinging:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._gone.set()
        self._thread.join()
        self._listener.close()


@each_driver
def test_pings_do_not_refresh_the_content_idle_clock(driver: Driver) -> None:
    with Pinging() as server, pytest.raises(ContentIdleTimeoutError, match="pings do not count"):
        driver.texts(server.url, MESSAGES, timeouts=Timeouts(content_idle=0.3))


@each_driver
def test_a_port_that_accepts_and_says_nothing_does_not_hang_the_health_check(driver: Driver, monkeypatch: Any) -> None:
    monkeypatch.setattr("llamastream.client.client.UNARY_TIMEOUT", 0.2)
    with ServerDouble(Script(stall=True)) as server, pytest.raises(FirstByteTimeoutError):
        driver.call(server.url, "wait_until_ready", 0.3)


def test_a_slow_reader_is_not_taken_for_a_silent_server() -> None:
    with ServerDouble(Script(HALF + b"".join(chunk_frames()), stall=True)) as server:
        stream = StreamingClient(server.url).stream_chat(MESSAGES, timeouts=Timeouts(content_idle=0.5))
        first = next(stream)
        threading.Event().wait(0.7)  # the reader's own time, longer than the clock
        assert first + "".join(stream) == "".join(TEXTS) + "!"


def chunk_frames() -> list[bytes]:
    tail = b"".join(sse_events(["!"])[1:])
    return [f"{len(tail):x}".encode() + b"\r\n" + tail + b"\r\n"]
