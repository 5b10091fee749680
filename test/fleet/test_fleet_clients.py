"""Clients that follow a fleet: what is drained, restarted or added is known to them, and nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleets import running
from llamastream import AsyncStreamingClient, Fleet, StreamingClient
from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.fleet import Pool

STORY = [{"role": "user", "content": "Tell me a story."}]
STREAMS = 20


def test_a_drained_instance_gets_no_new_requests() -> None:
    with running() as watched, StreamingClient(watched.fleet, temperature=0, recovery="off") as client:
        assert client.base_urls == tuple(backend.url for backend in watched.fleet.snapshot())
        watched.fleet.drain("demo-0").done.result(10)
        for _ in range(5):
            client.chat(STORY, max_tokens=4)
        watched.wait_for(lambda: watched.fleet.status()[1].requests == 5, "five requests")
        assert watched.fleet.status()[0].requests == 0
        watched.fleet.undrain("demo-0").done.result(10)
        client.chat(STORY, max_tokens=4)
        watched.wait_for(lambda: watched.fleet.status()[0].requests == 1, "one request")


def test_one_that_comes_new_is_used_and_one_that_goes_is_not() -> None:
    first = Pool(name="first", options=EngineOptions())
    second = Pool(name="second", options=EngineOptions())
    with running([first]) as watched, StreamingClient(watched.fleet, temperature=0) as client:
        client.chat(STORY, max_tokens=4)
        watched.fleet.reload([second])
        watched.fleet.wait_ready(1, timeout=30)
        watched.wait_for(lambda: watched.fleet.snapshot()[0].state == "ready", "the new one")
        client.chat(STORY, max_tokens=4)
        watched.wait_for(lambda: watched.fleet.status()[0].requests == 1, "one request")
        assert client.base_urls[-1] == watched.fleet.snapshot()[0].url


def test_a_client_of_several_models_goes_to_those_that_serve_its_own() -> None:
    pools = [Pool(name=name, options=EngineOptions(alias=name)) for name in ("a", "b")]
    with running(pools) as watched, StreamingClient(watched.fleet, model="b") as client:
        assert client.base_urls == (watched.fleet.snapshot()[1].url,)
        assert client.chat(STORY, max_tokens=2).model == "b"


def test_the_key_of_the_fleet_is_used() -> None:
    with running(EngineOptions(api_key="a-secret")) as watched, StreamingClient(watched.fleet) as client:
        assert client.chat(STORY, max_tokens=2).finish_reason == "length"
        assert "a-secret" not in repr(watched.fleet.snapshot()) + repr(client)


def test_a_fleet_that_was_not_started_is_refused() -> None:
    with pytest.raises(SettingError, match="start the fleet before"):
        StreamingClient(Fleet())


def test_a_client_that_is_dropped_is_not_kept_by_the_fleet() -> None:
    with running(instances=1) as watched:
        client = StreamingClient(watched.fleet)
        gone = weakref.ref(client._core.servers)
        client.close()
        del client
        gc.collect()
        assert gone() is None


def test_a_rolling_restart_under_streams_fails_none_and_changes_none() -> None:
    # a short time for draining: some streams end in peace, others move
    with running(EngineOptions(parallel=STREAMS), drain_timeout=0.1) as watched:
        with StreamingClient(watched.fleet, temperature=0) as client:
            whole = client.chat(STORY).text
            begun, over = threading.Semaphore(0), threading.Event()

            def stream() -> list[str]:
                found: list[str] = []
                while not over.is_set() or not found:
                    pieces: list[str] = []
                    for text in client.stream_chat(STORY):
                        if not pieces:
                            begun.release()
                        pieces.append(text)
                    found.append("".join(pieces))
                return found

            with ThreadPoolExecutor(STREAMS) as pool:
                streams = [pool.submit(stream) for _ in range(STREAMS)]
                for _ in range(STREAMS):
                    begun.acquire()
                done = [order.done.result(60) for order in watched.fleet.restart_all()]
                over.set()
                answers = [answer for each in streams for answer in each.result(120)]
        assert done == [True, True]
        assert [backend.generation for backend in watched.fleet.snapshot()] == [2, 2]
        assert len(answers) >= STREAMS
        assert set(answers) == {whole}


def test_async_clients_follow_too() -> None:
    async def ask() -> str:
        async with Fleet(instances=2, settings=None) as fleet, AsyncStreamingClient(fleet, temperature=0) as client:
            await asyncio.to_thread(fleet.drain("demo-0").done.result, 10)
            return (await client.chat(STORY, max_tokens=4)).text

    assert asyncio.run(ask())
