"""What may happen while a stream that broke waits for the answer to a question: the caller leaves, the old connection
breaks or speaks, the time is up."""

from __future__ import annotations

import asyncio
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from drivers import Driver
from faults import each_driver
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.errors import TotalTimeoutError
from llamastream.events import RetryScheduled, StreamBroke
from llamastream.testing import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events
from llamastream.testing.wire import chunk, reset_on_close
from llamastream.types import RetryPolicy, Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = ["Once ", "upon ", "a ", "time"]
RETRY = RetryPolicy(base_delay=0.001)
FAILURE = b'data: {"error":{"code":500,"message":"out of memory","type":"server_error"}}\n\n'


@pytest.fixture(autouse=True)
def _state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))


class Asked(ServerDouble):
    """Its first stream has two texts and an error, and stays open; at the first question, `then` is done with it."""

    def __init__(self, then: str) -> None:
        super().__init__(Script())
        self.then = then
        self.asked = threading.Event()
        self.go_on = threading.Event()
        self.first: socket.socket | None = None
        self.questions: list[bytes] = []
        self.spoken = threading.Event()

    def close(self) -> None:
        self.go_on.set()
        super().close()

    def answer(self, connection: socket.socket, script: Script) -> None:
        request = self.take_request(connection)
        if request.startswith(b"POST /v1/chat"):
            if self.first is None:
                self.first = connection
                events = sse_events(TEXTS[:2], finish_reason=None, done=False, usage=False)
                if self.then == "speaks":  # after a stall: only a clock ended it
                    connection.sendall(chunked(events, end=False))
                else:
                    connection.sendall(chunked([*events, FAILURE], end=False))
                self.go_on.wait(30)
                return
            connection.sendall(sse_answer(TEXTS[2:]))
        elif request.startswith(b"GET /slots"):
            connection.sendall(http_answer("404 Not Found", b"{}"))
        else:
            self.questions.append(request.split(b" ")[1])
            self.ask(connection)

    def ask(self, connection: socket.socket) -> None:
        if len(self.questions) == 1 and self.first is not None:
            if self.then == "resets":
                reset_on_close(self.first)
                self.go_on.set()
                self.wait_for(lambda server: server.first not in server._open)
            elif self.then == "speaks":
                self.first.sendall(chunk(sse_events(["late "])[1]))
                self.spoken.wait(0.2)  # until the client has read it; it says nothing about that
            elif self.then == "silent":
                self.asked.set()
                self.go_on.wait(30)
        connection.sendall(http_answer("200 OK", b'{"prompt":"x","tokens":[1]}'))


@each_driver
@pytest.mark.parametrize("then", ["resets", "speaks"])
def test_the_old_connection_counts_for_nothing(driver: Driver, then: str) -> None:
    heard: list[Any] = []
    with Asked(then) as server:
        options = {"retry": RETRY, "listeners": [heard.append]}
        result = driver.result(server.url, MESSAGES, options, timeouts=Timeouts(content_idle=0.3))
        server.go_on.set()
        assert result.text == "".join(TEXTS)
        assert len([event for event in heard if isinstance(event, StreamBroke)]) == 1
        assert [event for event in heard if isinstance(event, RetryScheduled)] == []
        assert result.stats.recoveries[0].attempts == 1


def test_who_leaves_waits_for_one_question_at_most() -> None:
    with Asked("silent") as server, StreamingClient(server.url, retry=RETRY) as client:
        stream = client.stream_chat(MESSAGES)

        def leave() -> None:
            assert server.asked.wait(30)
            stream.cancel()
            server.go_on.set()

        thread = threading.Thread(target=leave)
        thread.start()
        assert list(stream) == TEXTS[:2]
        thread.join()
        assert stream.finish_reason == "cancelled"
        assert server.questions == [b"/apply-template"]
        assert len([request for request in server.requests if request.startswith(b"POST /v1/chat")]) == 1


@pytest.mark.parametrize("how", ["cancel", "task"])
def test_who_leaves_in_asyncio_waits_for_nothing(how: str) -> None:
    async def work(server: Asked) -> str | None:
        async with AsyncStreamingClient(server.url, retry=RETRY) as client:
            stream = client.stream_chat(MESSAGES)

            async def read() -> list[str]:
                return [text async for text in stream]

            task = asyncio.create_task(read())
            assert await asyncio.to_thread(server.asked.wait, 30)
            if how == "task":
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            else:
                stream.cancel()
                server.go_on.set()
                assert await task == TEXTS[:2]
            return stream.finish_reason

    with Asked("silent") as server:
        assert asyncio.run(asyncio.wait_for(work(server), 30)) == "cancelled"
        server.go_on.set()
        assert server.questions == [b"/apply-template"]


@each_driver
def test_the_total_clock_runs_on(driver: Driver) -> None:
    with Asked("silent") as server:
        with pytest.raises(TotalTimeoutError) as caught:
            driver.texts(server.url, MESSAGES, {"retry": RETRY}, timeouts=Timeouts(total=0.5))
        server.go_on.set()
        assert caught.value.partial is not None
        assert caught.value.partial.text == "".join(TEXTS[:2])
        assert server.questions == [b"/apply-template"]
        assert len([request for request in server.requests if request.startswith(b"POST /v1/chat")]) == 1
