"""Cancelling a stream that has no answer yet, in whatever it waits."""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
import threading

import pytest

from drivers import Driver
from faults import MESSAGES, each_driver, wait_until
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.errors import TotalTimeoutError
from llamastream.testing import Script, ServerDouble
from llamastream.types import Timeouts

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left")


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


def full_backlog() -> tuple[socket.socket, list[socket.socket], str]:
    """A server that takes no connection: whoever connects waits."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(0)
    others = [socket.socket() for _ in range(4)]
    for other in others:
        other.setblocking(False)
        other.connect_ex(listening.getsockname())
    return listening, others, f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
def test_cancel_while_connecting() -> None:
    async def work(url: str) -> str | None:
        async with AsyncStreamingClient(url, timeouts=Timeouts(connect=None)) as client:
            stream = client.stream_chat(MESSAGES)
            reader = asyncio.create_task(stream.result())
            await asyncio.to_thread(wait_until, lambda: stream._runner._connection is not None)
            await asyncio.to_thread(stream.cancel)
            await reader
            return stream.finish_reason

    listening, others, url = full_backlog()
    try:
        assert asyncio.run(asyncio.wait_for(work(url), 30)) == "cancelled"
    finally:
        for each in (listening, *others):
            each.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a full backlog refuses")
@each_driver
def test_the_total_clock_ends_connecting(driver: Driver) -> None:
    listening, others, url = full_backlog()
    try:
        with pytest.raises(TotalTimeoutError, match=r"Timeouts\.total"):
            driver.texts(url, MESSAGES, timeouts=Timeouts(connect=60, total=0.1))
    finally:
        for each in (listening, *others):
            each.close()


def test_cancel_during_the_handshake_of_tls() -> None:
    """The server says nothing at all, so that TLS waits."""
    with ServerDouble(Script(stall=True)) as server:
        url = server.url.replace("http", "https")
        stream = StreamingClient(url, timeouts=Timeouts(connect=None)).stream_chat(MESSAGES)

        def cancel_when_greeted() -> None:
            assert server.wait_for(lambda double: double.connections == 1)
            wait_until(lambda: isinstance(getattr(stream._runner._connection, "_socket", None), ssl.SSLSocket))
            stream.cancel()

        thread = threading.Thread(target=cancel_when_greeted)
        thread.start()
        assert list(stream) == []
        thread.join()
        assert stream.finish_reason == "cancelled"


class Silent(ServerDouble):
    """A prefill without progress, and no answer about the slots."""

    def __init__(self) -> None:
        super().__init__(Script())
        self.asked = threading.Event()

    def answer(self, connection: socket.socket, script: Script) -> None:
        if self.take_request(connection).startswith(b"GET /slots"):
            self.asked.set()
        else:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n")
        while connection.recv(4096):
            pass


def test_cancel_during_a_look_at_the_slots() -> None:
    prefill = Timeouts(prefill=0.1)
    with Silent() as server:
        stream = StreamingClient(server.url).stream_chat(MESSAGES, timeouts=prefill)

        def cancel_when_asked() -> None:
            assert server.asked.wait(30)
            stream.cancel()

        thread = threading.Thread(target=cancel_when_asked)
        thread.start()
        assert list(stream) == []
        thread.join()
        assert stream.finish_reason == "cancelled"
        assert server.wait_for(lambda double: double.connections == 0)

    async def work(server: Silent) -> None:
        stream = AsyncStreamingClient(server.url).stream_chat(MESSAGES, timeouts=prefill)

        async def cancel_when_asked() -> None:
            assert await asyncio.to_thread(server.asked.wait, 30)
            stream.cancel()

        cancelling = asyncio.create_task(cancel_when_asked())
        assert [text async for text in stream] == []
        await cancelling
        assert stream.finish_reason == "cancelled"
        assert await asyncio.to_thread(server.wait_for, lambda double: double.connections == 0)

    with Silent() as server:
        asyncio.run(work(server))
