"""Both clients when things go wrong: each fault is one clear error with the partial answer, and nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import math
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from drivers import DRIVERS, Driver
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    ContentIdleTimeoutError,
    FirstByteTimeoutError,
    LlamaStreamError,
    MidStreamError,
    ModelLoadingError,
    PrefillTimeoutError,
    ProtocolError,
    SettingError,
    StreamTruncatedError,
    TotalTimeoutError,
    UnexpectedResponseError,
)
from llamastream.testing import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events
from llamastream.types import Health, RetryPolicy, Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = ["Once ", "upon ", "a ", "time"]

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


@pytest.fixture(autouse=True, scope="module")
def _warm(engine: Engine) -> None:
    """What a client or a loop opens once for the whole process is open before anything is counted."""
    for driver in DRIVERS:
        driver.call(engine.url, "health")


@pytest.fixture(autouse=True)
def _no_descriptor_is_left(_warm: None) -> Iterator[None]:
    before = descriptors()
    yield
    assert descriptors() <= before


# -- broken streams -----------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_broken_stream_delivers_what_came_and_then_raises(driver: Driver, reset: bool) -> None:
    answer = sse_answer(TEXTS)
    cut = answer.index(b'"time"')
    with ServerDouble(Script(answer, cut_at=cut, reset=reset)) as server:
        with pytest.raises(ConnectionLostError) as caught:
            driver.texts(server.url, MESSAGES)
        partial = caught.value.partial
        assert partial is not None
        assert partial.finish_reason == "error"
        if not reset:  # a reset may throw away what the reader has not read yet
            assert partial.text == "Once upon a "
            assert partial.stats.chunks == 3


@each_driver
@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (chunked(sse_events(TEXTS, finish_reason=None)), StreamTruncatedError),
        (chunked(sse_events(TEXTS, finish_reason=None, done=False)), StreamTruncatedError),
        (
            chunked([*sse_events(TEXTS, finish_reason=None, done=False), b'data: {"error":{"message":"x"}}\n\n']),
            MidStreamError,
        ),
        (chunked([*sse_events(TEXTS, finish_reason=None, done=False), b"data: nonsense\n\n"]), ProtocolError),
        (chunked(sse_events(TEXTS, finish_reason=None, done=False), end=False) + b"zz\r\n", ProtocolError),
    ],
    ids=["no finish reason", "no finish reason, no [DONE]", "error event", "no JSON", "broken framing"],
)
@pytest.mark.parametrize("piece", [0, 1, 7])
def test_text_before_a_fault_reaches_the_reader_first(
    driver: Driver, body: bytes, kind: type[LlamaStreamError], piece: int
) -> None:
    with ServerDouble(Script(body, piece=piece)) as server:
        with pytest.raises(kind) as caught:
            driver.texts(server.url, MESSAGES)
        assert caught.value.partial is not None
        assert caught.value.partial.text == "".join(TEXTS)


def test_the_reader_has_seen_the_text_before_the_error() -> None:
    body = chunked([b"".join([*sse_events(TEXTS, finish_reason=None, done=False), b'data: {"error":"x"}\n\n'])])
    seen: list[str] = []

    def read(url: str) -> None:
        seen.extend(StreamingClient(url).stream_chat(MESSAGES))

    async def aread(url: str) -> None:
        async for text in AsyncStreamingClient(url).stream_chat(MESSAGES):
            seen.append(text)  # noqa: PERF401  # an async comprehension would lose the texts with the exception

    with ServerDouble(Script(body)) as server:
        with pytest.raises(MidStreamError):
            read(server.url)
        with pytest.raises(MidStreamError):
            asyncio.run(aread(server.url))
    assert seen[len(seen) - len(TEXTS) :] == TEXTS


@each_driver
@pytest.mark.parametrize("piece", [0, 1, 13])
def test_however_the_bytes_come_the_answer_is_the_same(driver: Driver, piece: int) -> None:
    with ServerDouble(Script(sse_answer(TEXTS), piece=piece)) as server:
        assert driver.texts(server.url, MESSAGES) == TEXTS


@each_driver
def test_a_body_without_framing_ends_with_the_connection(driver: Driver) -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    with ServerDouble(Script(head + b"".join(sse_events(TEXTS)))) as server:
        assert driver.texts(server.url, MESSAGES) == TEXTS


# -- wrong servers ------------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (http_answer("200 OK", b"<html><title>Hi</title>", "text/html"), UnexpectedResponseError, "web page"),
        (http_answer("302 Found", b"", "text/plain", "Location: /x"), UnexpectedResponseError, "redirects to '/x'"),
        (
            http_answer("200 OK", b"x", "text/event-stream", "Content-Encoding: br"),
            UnexpectedResponseError,
            "compressed",
        ),
        (b"220 smtp ready\r\n", ProtocolError, "does not speak HTTP"),
        (b"", ConnectionLostError, "without an answer"),
    ],
    ids=["HTML", "redirect", "compressed", "another protocol", "nothing"],
)
def test_what_is_no_llama_server_is_told_apart(
    driver: Driver, answer: bytes, kind: type[LlamaStreamError], says: str
) -> None:
    with ServerDouble(Script(answer)) as server:
        with pytest.raises(kind, match=re.escape(says)):
            driver.texts(server.url, MESSAGES)
        with pytest.raises(LlamaStreamError):
            driver.call(server.url, "props")
        assert driver.call(server.url, "check_server_health") is False


@each_driver
def test_loading_and_waiting_until_ready(driver: Driver) -> None:
    loading = Script(http_answer("503 Service Unavailable", b'{"error":{"message":"Loading model","code":503}}'))
    ready = Script(http_answer("200 OK", b'{"status":"ok"}'))
    with ServerDouble(loading, loading, loading, ready) as server:
        health = driver.call(server.url, "health")
        assert (health.status, "Loading model" in health.detail) == ("loading", True)
        with pytest.raises(ModelLoadingError):
            driver.texts(server.url, MESSAGES, {"retry": RetryPolicy(loading_patience=0)})
        assert driver.call(server.url, "wait_until_ready", 10) is None
        assert driver.call(server.url, "health") == Health("ok")
    with ServerDouble(loading) as server, pytest.raises(LlamaStreamError, match=r"not ready after 0\.2 s"):
        driver.call(server.url, "wait_until_ready", 0.2)


@each_driver
def test_a_wrong_key_and_the_right_one(driver: Driver) -> None:
    with launch(EngineOptions(kind="embedded", api_key="sesame-1", parallel=1, ctx_size=512)) as engine:
        for options in ({}, {"api_key": "sesame-2"}):
            with pytest.raises(AuthenticationError, match="api_key") as caught:
                driver.texts(engine.url, MESSAGES, options)
            assert "sesame" not in str(caught.value)
        assert driver.texts(engine.url, MESSAGES, {"api_key": "sesame-1"}, max_tokens=3)


# -- no server ----------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@each_driver
@pytest.mark.parametrize(
    ("url", "kind", "says"),
    [
        ("localhost:8080", SettingError, "did you mean http://localhost:8080"),
        ("http://no-such-host.invalid", ConnectError, "host name 'no-such-host.invalid' is not known"),
        ("http://127.0.0.1:{port}", ConnectError, "nothing listens there"),
        ("unix:///no/such.sock", ConnectError, "nothing listens there"),
    ],
)
def test_unreachable_servers(driver: Driver, url: str, kind: type[LlamaStreamError], says: str) -> None:
    url = url.format(port=free_port())
    with pytest.raises(kind, match=re.escape(says)):
        driver.texts(url, MESSAGES)
    if kind is ConnectError:
        with pytest.raises(kind, match=re.escape(says)):
            driver.call(url, "health")
        assert driver.call(url, "check_server_health") is False


# -- the five clocks ----------------------------------------------------------------------------------------


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


# -- cancelling a stream that has no answer yet -------------------------------------------------------------


def test_cancel_from_another_thread_while_waiting_for_the_header() -> None:
    with ServerDouble(Script(stall=True)) as server:
        stream = StreamingClient(server.url).stream_chat(MESSAGES)

        def cancel_when_asked() -> None:
            assert server.wait_for(lambda double: len(double.requests) == 1)
            stream.cancel()

        thread = threading.Thread(target=cancel_when_asked)
        thread.start()
        assert list(stream) == []
        thread.join()
        assert stream.finish_reason == "cancelled"
        assert server.wait_for(lambda double: double.connections == 0)


def test_cancel_an_async_stream_from_another_thread_while_waiting_for_the_header() -> None:
    async def work(server: ServerDouble) -> None:
        stream = AsyncStreamingClient(server.url).stream_chat(MESSAGES)

        def cancel_when_asked() -> None:
            assert server.wait_for(lambda double: len(double.requests) == 1)
            stream.cancel()

        cancelling = asyncio.create_task(asyncio.to_thread(cancel_when_asked))
        assert [text async for text in stream] == []
        await cancelling
        assert stream.finish_reason == "cancelled"

    with ServerDouble(Script(stall=True)) as server:
        asyncio.run(work(server))
        assert server.wait_for(lambda double: double.connections == 0)


def test_a_cancelled_task_closes_its_connection_while_connecting_and_while_waiting() -> None:
    async def work(server: ServerDouble) -> None:
        client = AsyncStreamingClient(server.url)
        for steps in range(12):  # cancelled at each of the first turns of the loop, before and after connecting
            task = asyncio.create_task(client.chat(MESSAGES))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)

    with ServerDouble(Script(stall=True)) as server:
        asyncio.run(work(server))
        assert server.wait_for(lambda double: double.connections == 0)


# -- transports ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@each_driver
def test_https_with_an_own_authority_and_a_client_certificate(
    driver: Driver, authority: trustme.CA, tmp_path: Path
) -> None:
    ca_file, own = tmp_path / "ca.pem", tmp_path / "own.pem"
    authority.cert_pem.write_to_path(ca_file)
    authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with ServerDouble(Script(sse_answer(TEXTS)), tls=context) as server:
        options = {"ca_file": str(ca_file), "cert_file": str(own)}
        assert driver.texts(server.url, MESSAGES, options) == TEXTS
        with pytest.raises(LlamaStreamError):  # TLS 1.3 tells the client of the missing certificate when it reads
            driver.texts(server.url, MESSAGES, {"ca_file": str(ca_file)})
        with pytest.raises(ConnectError, match="not trusted"):
            driver.texts(server.url, MESSAGES)


@each_driver
def test_plain_and_tls_mixed_up(driver: Driver, authority: trustme.CA) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ServerDouble(Script(sse_answer(TEXTS)), tls=context) as server, pytest.raises(LlamaStreamError):
        driver.texts(server.url.replace("https", "http"), MESSAGES)
    plain = ServerDouble(Script(sse_answer(TEXTS), read_request=False))
    with plain as server, pytest.raises(ConnectError, match="does the server speak https"):
        driver.texts(server.url.replace("http", "https"), MESSAGES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ca_file": "/no/such.pem"}, "ca_file = '/no/such.pem' does not exist"),
        ({"key_file": __file__}, "cert_file is not"),
        ({"cert_file": __file__}, "must be PEM"),
    ],
)
def test_wrong_tls_files_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        StreamingClient("https://localhost", **options)


@each_driver
def test_unix_sockets(driver: Driver, tmp_path: Path) -> None:
    path = str(tmp_path / "server.sock")
    with launch(EngineOptions(kind="embedded", socket=path, parallel=1, ctx_size=512)) as engine:
        assert engine.url == f"unix://{path}"
        assert driver.call(engine.url, "check_server_health") is True
        assert driver.texts(engine.url, MESSAGES, max_tokens=5)


# -- the environment ----------------------------------------------------------------------------------------


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerDouble(Script(sse_answer(TEXTS))) as server:
        monkeypatch.setenv("LLAMASTREAM_BASE_URL", server.url + "/v1")
        monkeypatch.setenv("LLAMASTREAM_API_KEY", "sesame")
        monkeypatch.setenv("LLAMASTREAM_TEMPERATURE", "0")
        monkeypatch.setenv("LLAMASTREAM_MODEL", "m")
        client = StreamingClient()
        assert client.chat(MESSAGES).text == "".join(TEXTS)
        assert client.chat(MESSAGES, temperature=1).text == "".join(TEXTS)
        first, second = server.requests
    assert b"Authorization: Bearer sesame\r\n" in first
    assert b'"temperature":0.0' in first
    assert b'"model":"m"' in first
    assert b'"temperature":1' in second
    assert "sesame" not in repr(client)


@pytest.mark.parametrize("key", ["a\r\nX: y", "schlüssel"])
def test_keys_that_cannot_be_a_header(key: str) -> None:
    with pytest.raises(SettingError, match="api_key") as caught:
        StreamingClient("http://x", api_key=key)
    assert key not in str(caught.value)
