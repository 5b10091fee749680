"""What is told to listeners: buffering, a wasted prompt cache, requests and their ends; and long prefills."""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import threading
import time
from typing import Any

import pytest

from drivers import AsyncDriver, Driver, UvloopDriver
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.errors import PrefillTimeoutError
from llamastream.events import (
    AttemptStarted,
    ClientEvent,
    FirstToken,
    Hint,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
)
from llamastream.policy import buffering, silence
from llamastream.testing import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events
from llamastream.types import Timeouts
from scripts import GOOD, MESSAGES, QUICK, TEXTS, UNAVAILABLE, each_driver, failing

# -- buffering where the server gives no times ---------------------------------------------------------------


PLENTY = sse_answer(["a "] * 60)
SILENT = 1.0
"""Seconds: longer than what counts as a silence here."""


@pytest.fixture
def soon_suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less than a second of silence is suspicious, and not only two."""
    monkeypatch.setattr(buffering, "SILENCE", 0.8)
    monkeypatch.setattr(silence, "SILENCE", 0.8)


def release_later(server: ServerDouble, seconds: float) -> None:
    threading.Timer(seconds, server.release, [1]).start()


@pytest.mark.usefixtures("soon_suspicious")
@each_driver
def test_an_answer_that_comes_at_once_after_a_silence_was_buffered(driver: Driver) -> None:
    heard: list[ClientEvent] = []
    with ServerDouble(Script(PLENTY, hold=True)) as server:
        release_later(server, SILENT)
        result = driver.result(server.url, MESSAGES, {"listeners": [heard.append]})
    assert result.stats.buffered
    assert [event.topic for event in heard if isinstance(event, Hint)] == ["buffering"]


@pytest.mark.usefixtures("soon_suspicious")
def test_a_late_reader_is_no_buffering() -> None:
    with ServerDouble(Script(PLENTY)) as server, StreamingClient(server.url) as client:
        with client.stream_chat(MESSAGES) as stream:
            time.sleep(SILENT)  # the reader's own lateness: this is what is tested
            assert len(list(stream)) == 60
        with client.stream_chat(MESSAGES) as other:
            time.sleep(SILENT)
            assert not other.result().stats.buffered
    assert not stream.stats.buffered


@pytest.mark.usefixtures("soon_suspicious")
def test_a_retry_that_took_its_time_is_no_buffering() -> None:
    busy = failing("503 Service Unavailable", b"{}", "Retry-After: 1")
    with ServerDouble(busy, Script(PLENTY)) as server:
        result = StreamingClient(server.url).chat(MESSAGES)
    assert len(result.stats.failed_attempts) == 1
    assert not result.stats.buffered


@pytest.mark.usefixtures("soon_suspicious")
@pytest.mark.parametrize("late_at", [0.0, 0.4])
@pytest.mark.parametrize("loop", [AsyncDriver(), UvloopDriver()], ids=lambda driver: driver.name)
def test_a_late_event_loop_is_no_buffering(loop: AsyncDriver, late_at: float) -> None:
    async def main(url: str) -> bool:
        async with AsyncStreamingClient(url) as client, client.stream_chat(MESSAGES) as stream:
            await asyncio.sleep(late_at)
            server.release(1)
            time.sleep(SILENT)  # noqa: ASYNC251  # late, as a loop is in which something blocks
            return (await stream.result()).stats.buffered

    with ServerDouble(Script(PLENTY, hold=True)) as server:
        assert not loop.run(main(server.url))


# -- hints and listeners --------------------------------------------------------------------------------------


@each_driver
def test_a_buffering_proxy_is_named_with_its_setting(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    events = sse_events(TEXTS, done=False)
    events.insert(-1, b'data: {"choices":[],"timings":{"predicted_n":4,"predicted_ms":9000.0}}\n\n')
    answer = chunked([*events, b"data: [DONE]\n\n"]).replace(b"\r\n", b"\r\nServer: nginx/1.22\r\n", 1)
    heard: list[ClientEvent] = []
    with ServerDouble(Script(answer)) as server, caplog.at_level(logging.WARNING, "llamastream"):
        result = driver.result(server.url, MESSAGES, {"listeners": [heard.append]})
    assert result.stats.buffered
    hints = [event for event in heard if isinstance(event, Hint)]
    assert [hint.topic for hint in hints] == ["buffering"]
    assert "proxy_buffering off" in hints[0].message
    assert "proxy_buffering off" in caplog.text


def test_a_changing_system_prompt_is_hinted_at_on_the_real_server(engine: Any) -> None:
    heard: list[ClientEvent] = []
    rules = "Answer in one short sentence and be friendly to everybody who asks. " * 6
    with StreamingClient(engine.url, listeners=[heard.append]) as client:
        for number in range(6):
            system = {"role": "system", "content": f"Request {number * 7919} begins. {rules}"}
            client.chat([system, *MESSAGES], max_tokens=1)
    hints = [event for event in heard if isinstance(event, Hint)]
    assert [hint.topic for hint in hints] == ["prompt_cache"]


@each_driver
def test_listeners_hear_of_everything_and_cannot_break_anything(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[ClientEvent] = []

    def broken(event: ClientEvent) -> None:
        raise ValueError("a bad listener")

    with ServerDouble(UNAVAILABLE, GOOD) as server:
        options = {"retry": QUICK, "listeners": [broken, heard.append]}
        assert driver.texts(server.url, MESSAGES, options) == TEXTS
    kinds = [type(event) for event in heard]
    assert kinds == [RequestStarted, AttemptStarted, RetryScheduled, AttemptStarted, FirstToken, RequestEnded]
    assert len({event.request_id for event in heard}) == 1
    end = heard[-1]
    assert isinstance(end, RequestEnded)
    assert (end.finish_reason, end.error) == ("stop", None)
    assert "a bad listener" in caplog.text


# -- a long prefill and a stall -------------------------------------------------------------------------------


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Prefilling(ServerDouble):
    """Accepts a chat, stays silent for `looks` looks at `/slots`, and then answers; the slots move on if `progress`."""

    def __init__(self, looks: int, progress: bool) -> None:
        super().__init__(Script())
        self.looks = looks
        self.progress = progress
        self.seen = 0
        self.enough = threading.Event()

    def answer(self, connection: socket.socket, script: Script) -> None:
        request = self.take_request(connection)
        if re.match(rb"GET /slots ", request):
            self.seen += 1
            done = self.seen * 100 if self.progress else 100
            slot = f'[{{"id":0,"id_task":1,"is_processing":true,"n_prompt_tokens_processed":{done}}}]'
            connection.sendall(http_answer("200 OK", slot.encode()))
            if self.seen >= self.looks:
                self.enough.set()
            return
        connection.sendall(HEAD)
        if self.enough.wait(10):
            connection.sendall(sse_answer(TEXTS)[len(HEAD) :])


@each_driver
def test_a_long_prefill_is_told_apart_from_a_stall_by_the_slots(driver: Driver) -> None:
    timeouts = Timeouts(prefill=0.3)
    with Prefilling(looks=4, progress=True) as server:
        assert driver.texts(server.url, MESSAGES, timeouts=timeouts) == TEXTS
        assert server.seen >= 4
    with Prefilling(looks=100, progress=False) as server:
        with pytest.raises(PrefillTimeoutError):
            driver.texts(server.url, MESSAGES, timeouts=timeouts)
        assert server.seen == 2
        server.enough.set()
