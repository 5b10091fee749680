"""Both clients when things go wrong: each fault is one clear error with the partial answer, and nothing leaks."""

from __future__ import annotations

import asyncio
import re

import pytest

from drivers import Driver
from faults import MESSAGES, TEXTS, each_driver
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.engine import EngineOptions, launch
from llamastream.errors import (
    AuthenticationError,
    ConnectError,
    ConnectionLostError,
    LlamaStreamError,
    MidStreamError,
    ModelLoadingError,
    ProtocolError,
    SettingError,
    StreamTruncatedError,
    UnexpectedResponseError,
)
from llamastream.testing import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events
from llamastream.types import Health, RetryPolicy
from ports import free_port

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left", "no_recovery")

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
