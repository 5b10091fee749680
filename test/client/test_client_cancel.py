"""Cancelling a stream that has no answer yet."""

from __future__ import annotations

import asyncio
import threading

import pytest

from faults import MESSAGES
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.testing import Script, ServerDouble

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
