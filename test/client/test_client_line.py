"""Waiting in line for a connection: once, with an error that says what to do, and nobody loses a place or the blame."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from faults import MESSAGES, wait_until
from llamastream.address import parse_address
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.pool import ConnectionPool, Place, PoolLimits
from llamastream.client.servers import Server, Servers
from llamastream.errors import PoolTimeoutError, TotalTimeoutError
from llamastream.events import AttemptStarted, RetryScheduled
from llamastream.policy.breaker import BreakerState
from llamastream.testing import Script, ServerDouble, http_answer, sse_answer
from llamastream.types import Health, RetryPolicy, Timeouts

NOWHERE = Server(0, parse_address("http://127.0.0.1:1"), None)
HEALTHY = http_answer("200 OK", b'{"status":"ok"}')
SHORT = Timeouts(first_byte=0.2)
RETRY = RetryPolicy(base_delay=0.001)


class Interrupted(BaseException):
    """What a signal's handler raises, as that of Ctrl-C does."""


@contextmanager
def interruption() -> Iterator[Callable[[], None]]:
    """Gives a function that interrupts the main thread, as Ctrl-C does, once it waits."""

    def interrupt(*_: Any) -> None:
        raise Interrupted

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        yield lambda: signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
    finally:
        signal.signal(signal.SIGALRM, before)


def when(condition: Callable[[], bool], then: Callable[[], None]) -> threading.Thread:
    """Does something in another thread as soon as a pool is in a certain state."""

    def watch() -> None:
        assert wait_until(condition)
        then()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


# -- the pool itself ----------------------------------------------------------------------------------------


def test_a_place_that_was_left_goes_to_the_next() -> None:
    pool = ConnectionPool(NOWHERE, PoolLimits(connections=1))
    first, second, third = Place(), Place(), Place()
    assert pool.acquire(first, 0.0) is not None
    second.leave()
    assert pool.acquire(second, float("inf")) is None
    pool.release(first, None, None)
    pool.release(first, None, None)  # twice is once
    pool.release(second, None, None)
    assert pool.acquire(third, 0.0) is not None
    assert pool.acquire_now(Place()) is None
    pool.release(third, None, None)
    assert pool.acquire_now(Place()) is not None


def test_the_error_says_how_long_and_what_to_do() -> None:
    pool = ConnectionPool(NOWHERE, PoolLimits(connections=1))
    assert pool.acquire(Place(), 0.0) is not None
    with pytest.raises(PoolTimeoutError, match=r"http://127\.0\.0\.1:1: .* 1 .* for 0\.\d s; raise max_connections"):
        pool.acquire(Place(), 0.0)
    assert NOWHERE.waiting == 0

    async def work() -> None:
        pool = AsyncConnectionPool(NOWHERE, PoolLimits(connections=1))
        await pool.acquire(Place(), 0.0, lambda: None)
        with pytest.raises(PoolTimeoutError, match="raise max_connections"):
            await pool.acquire(Place(), 0.0, lambda: None)

    asyncio.run(work())


def test_those_in_line_count_where_a_server_is_chosen() -> None:
    two = Servers([parse_address(f"http://s{index}:80") for index in range(2)], None)
    for server in two.all:
        two.began(server)
    two.all[0].waiting = 1
    assert two.choose(100.0)[0] is two.all[1]


# -- streams ------------------------------------------------------------------------------------------------


def test_a_full_pool_is_waited_for_once_and_no_servers_fault() -> None:
    heard: list[Any] = []
    options: dict[str, Any] = {"max_connections": 1, "listeners": [heard.append], "retry": RETRY}
    with ServerDouble(Script(stall=True)) as one, ServerDouble(Script(stall=True)) as other:
        client = StreamingClient([one.url, other.url], **options)
        with client.stream_chat(MESSAGES), client.stream_chat(MESSAGES):
            heard.clear()
            with pytest.raises(PoolTimeoutError) as caught:
                client.chat(MESSAGES, timeouts=SHORT)
            assert caught.value.partial is not None
            assert caught.value.partial.stats.failed_attempts == ()
            assert not [event for event in heard if isinstance(event, AttemptStarted | RetryScheduled)]
            assert {each.breaker.state(0.0) for each in client._core.servers.all} == {BreakerState.CLOSED}
            with pytest.raises(TotalTimeoutError):
                client.chat(MESSAGES, timeouts=Timeouts(total=0.1))

        async def work() -> None:
            async with (
                AsyncStreamingClient([one.url, other.url], **options) as client,
                client.stream_chat(MESSAGES),
                client.stream_chat(MESSAGES),
            ):
                heard.clear()
                with pytest.raises(PoolTimeoutError):
                    await client.chat(MESSAGES, timeouts=SHORT)
                assert not [event for event in heard if isinstance(event, AttemptStarted | RetryScheduled)]
                with pytest.raises(TotalTimeoutError):
                    await client.chat(MESSAGES, timeouts=Timeouts(total=0.1))

        asyncio.run(work())


def test_short_questions_do_not_wait_in_line() -> None:
    scripts = Script(stall=True), Script(HEALTHY), Script(stall=True), Script(HEALTHY)
    with ServerDouble(*scripts) as server:
        client = StreamingClient(server.url, max_connections=1)
        with client.stream_chat(MESSAGES):
            assert client.check_server_health()

        async def work() -> Health:
            async with AsyncStreamingClient(server.url, max_connections=1) as client, client.stream_chat(MESSAGES):
                return await client.health()

        assert asyncio.run(work()).ok


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_who_is_interrupted_in_line_loses_no_place() -> None:
    with ServerDouble(Script(stall=True), Script(sse_answer(["x"]))) as server:
        client = StreamingClient(server.url, max_connections=1)
        pool = client._pools[0]
        with interruption() as interrupt, client.stream_chat(MESSAGES):
            thread = when(lambda: len(pool._line) == 1, interrupt)
            with pytest.raises(Interrupted):
                client.chat(MESSAGES)
            thread.join()
            assert len(pool._line) == 0
        assert client.chat(MESSAGES, timeouts=SHORT).text == "x"


def test_cancel_in_line_ends_at_once() -> None:
    with ServerDouble(Script(stall=True)) as server:
        client = StreamingClient(server.url, max_connections=1)
        with client.stream_chat(MESSAGES):
            stream = client.stream_chat(MESSAGES, timeouts=Timeouts(first_byte=None))
            thread = when(lambda: len(client._pools[0]._line) == 1, stream.cancel)
            assert list(stream) == []
            thread.join()
            assert stream.finish_reason == "cancelled"
            assert len(client._pools[0]._line) == 0

        async def work() -> None:
            async with AsyncStreamingClient(server.url, max_connections=1) as client, client.stream_chat(MESSAGES):
                stream = client.stream_chat(MESSAGES, timeouts=Timeouts(first_byte=None))
                thread = when(lambda: len(client._pools[0]._line) == 1, stream.cancel)
                assert [text async for text in stream] == []
                thread.join()
                assert stream.finish_reason == "cancelled"
                assert len(client._pools[0]._line) == 0

        asyncio.run(asyncio.wait_for(work(), 30))


def test_who_leaves_as_the_place_comes_gives_it_back() -> None:
    """In asyncio, the stream is cancelled in the same turn of the loop in which the place is handed over."""

    async def work(server: ServerDouble) -> None:
        async with AsyncStreamingClient(server.url, max_connections=1) as client:
            first, second = client.stream_chat(MESSAGES), client.stream_chat(MESSAGES)
            await first.__aenter__()
            reader = asyncio.create_task(second.result())
            assert await asyncio.to_thread(wait_until, lambda: len(client._pools[0]._line) == 1)
            await first.close()
            await second.close()
            assert (await reader).finish_reason == "cancelled"
            assert not client._pools[0]._places
            assert client._core.servers.all[0].in_flight == 0
            assert (await client.chat(MESSAGES, timeouts=SHORT)).text == "x"

    with ServerDouble(Script(stall=True), Script(sse_answer(["x"]))) as server:
        asyncio.run(asyncio.wait_for(work(server), 30))


# -- a client that was closed -------------------------------------------------------------------------------


def test_closing_a_client_leaves_its_streams_alone_and_it_may_be_used_again() -> None:
    answer = sse_answer(["x", "y"])
    with ServerDouble(Script(answer, hold=True, repeat=True)) as server:
        client, another = StreamingClient(server.url), StreamingClient(server.url)
        with client.stream_chat(MESSAGES) as stream, another.stream_chat(MESSAGES) as other:
            client.close()
            server.release(3)
            assert list(stream) == list(other) == ["x", "y"]
            assert client.chat(MESSAGES).text == "xy"
        assert server.wait_for(lambda double: double.connections == 1), "only the open client keeps a connection"
        another.close()

    async def work(server: ServerDouble) -> None:
        client = AsyncStreamingClient(server.url)
        async with client.stream_chat(MESSAGES) as stream:
            await client.close()
            server.release(2)
            assert [text async for text in stream] == ["x", "y"]
        assert (await client.chat(MESSAGES)).text == "xy"
        assert await asyncio.to_thread(server.wait_for, lambda double: double.connections == 0)

    with ServerDouble(Script(answer, hold=True, repeat=True)) as server:
        asyncio.run(work(server))
