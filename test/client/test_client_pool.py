"""The connection pool: kept where that is real, bounded, fair, safe across threads and tasks, no leaks."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Callable
from time import monotonic
from typing import Any

import pytest

from drivers import DRIVERS, Driver
from faults import descriptors, wait_until
from llamastream.address import parse_address
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.client.astream import AsyncStream
from llamastream.client.connection import Connection
from llamastream.client.pool import ConnectionPool, Place, PoolLimits
from llamastream.client.servers import Server
from llamastream.engine import Engine
from llamastream.engine.demo import demo_questions
from llamastream.events import AttemptStarted, RequestStarted
from llamastream.protocol.http1 import ResponseReader
from llamastream.testing import Script, ServerDouble, http_answer, sse_answer
from llamastream.types import Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]
ANSWERS = {question.question: question.answer for question in demo_questions()}
QUESTIONS = ["Who are you?", "What is a slot?", "Hello!", "What is GGUF?"]
NOWHERE = Server(0, parse_address("http://127.0.0.1:1"), None)
HEALTHY = http_answer("200 OK", b'{"status":"ok"}')

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def test_a_client_that_nobody_closed_closes_its_sockets_even_when_it_ends_within_a_cycle() -> None:
    """Then the sockets, which warn of being open, may be finalized before the pool (here they are older)."""
    with ServerDouble(Script(HEALTHY, repeat=True)) as double:
        server = Server(0, parse_address(double.url), None)
        connection = Connection(server.address, None)
        connection.connect(monotonic() + 10)
        pool, place, reader = ConnectionPool(server, PoolLimits()), Place(), ResponseReader()
        reader.feed(HEALTHY)
        assert pool.acquire_now(place) is not None
        pool.release(place, connection, reader)
        assert (connection.usable, double.wait_for(lambda double: double.connections == 1)) == (True, True)
        knot: list[Any] = [pool, connection]
        knot.append(knot)
        del pool, place, connection, knot
        gc.collect()  # an open socket would warn, and fail the test
        assert double.wait_for(lambda double: double.connections == 0)


# -- keep-alive ---------------------------------------------------------------------------------------------


def test_answers_at_once_share_a_connection() -> None:
    with ServerDouble(Script(HEALTHY, repeat=True)) as server, StreamingClient(server.url) as client:
        for _ in range(5):
            assert client.check_server_health()
        assert (server.accepted, len(server.requests)) == (1, 5)

    async def work(url: str) -> None:
        async with AsyncStreamingClient(url) as client:
            for _ in range(5):
                assert await client.check_server_health()

    with ServerDouble(Script(HEALTHY, repeat=True)) as server:
        asyncio.run(work(server.url))
        assert (server.accepted, len(server.requests)) == (1, 5)


def test_streams_share_a_connection_where_keep_alive_is_real() -> None:
    with ServerDouble(Script(sse_answer(["x"]), repeat=True)) as server, StreamingClient(server.url) as client:
        for _ in range(5):
            assert client.chat(MESSAGES).text == "x"
        assert (server.accepted, len(server.requests)) == (1, 5)
        assert client.chat(MESSAGES).stats.connect_time is None

    async def work(url: str) -> None:
        async with AsyncStreamingClient(url) as client:
            for _ in range(5):
                assert (await client.chat(MESSAGES)).text == "x"

    with ServerDouble(Script(sse_answer(["x"]), repeat=True)) as server:
        asyncio.run(work(server.url))
        assert (server.accepted, len(server.requests)) == (1, 5)


def test_a_connection_that_the_server_closed_meanwhile_is_replaced_without_an_error() -> None:
    with ServerDouble(Script(HEALTHY), Script(sse_answer(["x"]))) as server, StreamingClient(server.url) as client:
        assert client.check_server_health()
        assert server.wait_for(lambda double: double.connections == 0)
        for _ in range(3):
            result = client.chat(MESSAGES)
            assert (result.text, result.stats.failed_attempts) == ("x", ())
            assert server.wait_for(lambda double: double.connections == 0)


def test_a_connection_that_is_closed_as_the_request_arrives_is_replaced_without_an_error() -> None:
    """The race that no look before sending can win: the server closes when the second request reaches it."""
    heard: list[Any] = []
    double = ServerDouble(Script(HEALTHY, repeat=True, requests=1), Script(sse_answer(["x"])))
    with double as server, StreamingClient(server.url, listeners=[heard.append]) as client:
        assert client.check_server_health()
        result = client.chat(MESSAGES)
        assert (result.text, result.stats.failed_attempts) == ("x", ())
        assert server.accepted == 2
    started, first, second, *_ = heard
    assert isinstance(started, RequestStarted)
    assert first == AttemptStarted(first.request_id, 1, True, server.url, "first")
    assert second == AttemptStarted(first.request_id, 2, False, server.url, "restart"), (
        "nothing in between: it is no failure"
    )


@each_driver
def test_llama_server_is_not_believed_its_keep_alive(engine: Engine, driver: Driver) -> None:
    """It announces keep-alive and closes after every stream; each answer comes without a failed attempt."""
    for _ in range(3):
        result = driver.result(engine.url, MESSAGES, max_tokens=2)
        assert result.stats.failed_attempts == ()


def test_idle_connections_expire_and_are_few() -> None:
    pool = ConnectionPool(NOWHERE, PoolLimits(idle=2, idle_seconds=0.0))
    place = Place()
    acquired = pool.acquire(place, 0.0)
    assert acquired is not None
    connection, reused = acquired
    assert isinstance(connection, Connection)
    assert not reused
    pool.release(place, connection, None)
    with ServerDouble(Script(HEALTHY, repeat=True)) as server:
        client = StreamingClient(server.url)
        threads = [threading.Thread(target=client.health) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert server.wait_for(lambda double: double.connections <= 16), "16 idle connections at most"
        client.close()
        assert server.wait_for(lambda double: double.connections == 0)


# -- bounds and fairness ------------------------------------------------------------------------------------


def test_no_more_connections_than_allowed_and_first_come_first_served() -> None:
    with ServerDouble(Script(sse_answer(["x"]), hold=True)) as server:
        client = StreamingClient(server.url, max_connections=2)
        done: list[int] = []
        threads = []

        def ask(number: int) -> None:
            client.chat(MESSAGES)
            done.append(number)

        for number in range(5):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
            if number < 2:
                assert server.wait_for(lambda double, n=number: len(double.requests) == n + 1)  # type: ignore[misc]
            else:
                assert wait_until(lambda n=number: len(client._pools[0]._line) == n - 1)  # type: ignore[misc]
        assert len(server.requests) == 2
        server.release(5)
        for thread in threads:
            thread.join(10)
        assert server.most_unanswered <= 2
        assert sorted(done) == [0, 1, 2, 3, 4]
        client.close()


def test_tasks_wait_in_line_and_a_cancelled_one_leaves_it() -> None:
    async def work(server: ServerDouble) -> None:
        async with AsyncStreamingClient(server.url, max_connections=1) as client:
            order: list[int] = []

            async def ask(number: int) -> None:
                await client.chat(MESSAGES)
                order.append(number)

            tasks = [asyncio.create_task(ask(number)) for number in range(5)]
            await asyncio.to_thread(server.wait_for, lambda double: len(double.requests) == 1)
            tasks[2].cancel()
            server.release(5)
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert order == [0, 1, 3, 4]
            assert isinstance(results[2], asyncio.CancelledError)
            assert server.most_unanswered == 1

    with ServerDouble(Script(sse_answer(["x"]), hold=True)) as server:
        asyncio.run(work(server))


# -- loops, threads and tasks --------------------------------------------------------------------------


def test_a_client_may_be_used_in_one_loop_after_another(engine: Engine) -> None:
    client = AsyncStreamingClient(engine.url)
    for _ in range(3):
        assert asyncio.run(client.check_server_health())
        assert asyncio.run(client.chat(MESSAGES, max_tokens=2)).finish_reason == "length"


def test_what_nobody_closed_is_closed_with_the_loop() -> None:
    async def work(url: str) -> None:
        await AsyncStreamingClient(url).chat(MESSAGES)

    before = descriptors()
    with ServerDouble(Script(sse_answer(["x"]), repeat=True)) as server:
        asyncio.run(work(server.url))
        assert server.wait_for(lambda double: double.connections == 0)
    assert wait_until(lambda: descriptors() <= before)  # what tells the server to let go is another connection


@pytest.mark.parametrize("way", ["texts", "events", "entered"])
def test_a_stream_that_outlives_its_loop_is_left_with_it(
    engine: Engine, way: str, slots_free: Callable[[], float]
) -> None:
    kept: list[tuple[object, ...]] = []

    async def work() -> AsyncStream:
        client = AsyncStreamingClient(engine.url)
        stream = client.stream_chat(MESSAGES, max_tokens=10_000, ignore_eos=True)
        if way == "entered":
            kept.append((client, await stream.__aenter__()))
        else:
            iterator: AsyncIterator[object] = aiter(stream) if way == "texts" else stream.events()
            await anext(iterator)
            kept.append((client, iterator))
        return stream

    before = descriptors()
    stream = asyncio.run(work())
    assert stream.finish_reason == "cancelled"
    slots_free()
    assert wait_until(lambda: descriptors() <= before)  # what tells the server to let go is another connection
    kept.clear()
    gc.collect()  # an unclosed transport would warn, and fail the test


def check(question: str, text: str, left_early: bool) -> None:
    answer = ANSWERS[question]
    assert answer.startswith(text) if left_early else text == answer


def test_64_threads_share_a_client_and_leave_when_they_like(engine: Engine, slots_free: Callable[[], float]) -> None:
    before = descriptors()
    with StreamingClient(engine.url, temperature=0) as client:
        failures: list[BaseException] = []

        def ask(number: int) -> None:
            chance = random.Random(number)
            try:
                for _ in range(3):
                    question = chance.choice(QUESTIONS)
                    limit = chance.choice([1, 5, 20, 10_000])
                    pieces = []
                    for text in client.stream_chat([{"role": "user", "content": question}]):
                        pieces.append(text)
                        if len(pieces) == limit:
                            break
                    check(question, "".join(pieces), len(pieces) == limit)
            except BaseException as error:  # noqa: BLE001  # shown by the main thread
                failures.append(error)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        slots_free()
    assert wait_until(lambda: descriptors() <= before)


@pytest.mark.alone
def test_1000_tasks_share_a_client_and_leave_when_they_like(engine: Engine, slots_free: Callable[[], float]) -> None:
    async def work() -> None:
        async with AsyncStreamingClient(engine.url, temperature=0, timeouts=Timeouts(connect=60)) as client:

            async def ask(number: int) -> None:
                chance = random.Random(number)
                question = chance.choice(QUESTIONS)
                limit = chance.choice([1, 1, 1, 5, 5, 20, 10_000])
                pieces = []
                async for text in client.stream_chat([{"role": "user", "content": question}]):
                    pieces.append(text)
                    if len(pieces) == limit:
                        break
                check(question, "".join(pieces), len(pieces) == limit)

            await asyncio.gather(*(ask(number) for number in range(1000)))

    before = descriptors()
    asyncio.run(work())
    slots_free()
    assert wait_until(lambda: descriptors() <= before)
