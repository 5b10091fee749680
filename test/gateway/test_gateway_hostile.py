"""Clients that mean no good, or cannot help it: nobody else notices, and everything is freed."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psutil
import pytest
from wires import dial, hear

from gateways import Running, serving
from llamastream import StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.stalls import Backlog, StallWatch, backlog
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture(scope="module")
def gateway(engine: Engine) -> Iterator[Running]:
    with serving(Upstreams([engine.url]), GatewaySettings(stall_timeout=1.0)) as running:
        wait_for(lambda: running.gateway.source.snapshot()[0].models != ())
        yield running


def request(tokens: int, stream: bool = True, **more: Any) -> bytes:
    body = {"messages": STORY, "stream": stream, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, **more}
    raw = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw


def idle(gateway: Running) -> bool:
    return gateway.gateway.lanes.active == 0 == gateway.gateway.lanes.waiting


def connections(gateway: Running) -> int:
    count = gateway.server.guard.connections
    assert count is not None
    return count()


@contextmanager
def others_undisturbed(gateway: Running) -> Iterator[None]:
    """Two clients stream all the while: each answer is whole, and none takes long."""
    with StreamingClient(gateway.url, temperature=0, recovery="off") as client:
        whole = client.chat(STORY).text
    over = threading.Event()
    found: list[str] = []
    slowest = [0.0]

    def stream() -> None:
        with StreamingClient(gateway.url, temperature=0, recovery="off") as client:
            while not found or not over.is_set():
                began = time.monotonic()
                found.append("".join(client.stream_chat(STORY)))
                slowest[0] = max(slowest[0], time.monotonic() - began)

    threads = [threading.Thread(target=stream) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert found
    assert set(found) == {whole}
    assert slowest[0] < 10.0


# -- malformed requests -------------------------------------------------------------------------------------------

SEEDS = (
    b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET /v1/models HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n",
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}",
    b"POST /tokenize HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    b'POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 33\r\n\r\n{"prompt": "a", "max_tokens": 1 }',
)


def mutated(chance: random.Random) -> bytes:
    """A request with something wrong in it, most likely."""
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randint(1, 4)):
        kind = chance.randrange(7)
        at = chance.randrange(len(data))
        if kind == 0:
            data[at] = chance.randrange(256)
        elif kind == 1:
            del data[at : at + chance.randint(1, 8)]
        elif kind == 2:
            data[at:at] = chance.randbytes(chance.randint(1, 16))
        elif kind == 3:
            data[at:at] = chance.choice([b"\r\n", b"\n", b"\0", b"\r\n ", b" ", b":", b"%00", b"Content-Length: 7\r\n"])
        elif kind == 4:
            data[at:at] = data[: chance.randrange(len(data))]
        elif kind == 5:
            del data[at:]
        else:
            data += chance.choice(SEEDS)
        if not data:
            data += b"\r\n"
    return bytes(data)


async def attack(port: int, count: int, seed: int) -> tuple[int, set[int]]:
    """Send so many requests, each on a connection of its own, several at a time; how many were answered, and how."""
    chance = random.Random(seed)
    statuses: set[int] = set()
    answered = 0
    gate = asyncio.Semaphore(100)

    async def one(data: bytes) -> None:
        nonlocal answered
        async with gate:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(data)
                writer.write_eof()
                heard = await asyncio.wait_for(reader.read(-1), 20)
                if heard:
                    answered += 1
                    statuses.add(int(heard.split(b" ", 2)[1]))
            except ConnectionError:
                pass
            finally:
                writer.close()

    await asyncio.gather(*(one(mutated(chance)) for _ in range(count)))
    return answered, statuses


@pytest.mark.alone
def test_ten_thousand_malformed_requests(gateway: Running, slots_free: Callable[[], float]) -> None:
    port = int(gateway.url.rpartition(":")[2])
    with others_undisturbed(gateway):
        answered, statuses = asyncio.run(attack(port, 10_000, 1))
    assert answered > 2000
    assert statuses <= {200, 400, 401, 404, 405, 408, 413, 431, 500, 501}
    assert 500 not in {event.status for event in gateway.served if not event.instance}
    wait_for(lambda: idle(gateway))
    wait_for(lambda: connections(gateway) == 0)
    assert slots_free() < 1


# -- clients that do nothing --------------------------------------------------------------------------------------


def test_five_hundred_idle_connections(gateway: Running) -> None:
    before = psutil.Process().num_fds()
    held = [dial(gateway.url) for _ in range(500)]
    wait_for(lambda: connections(gateway) >= 500)
    with others_undisturbed(gateway):
        pass
    for connection in held:
        connection.close()
    wait_for(lambda: connections(gateway) == 0)
    wait_for(lambda: psutil.Process().num_fds() <= before + 10)


def slow_socket(gateway: Running) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", int(gateway.url.rpartition(":")[2])))
    connection.settimeout(20)
    return connection


def test_who_takes_nothing_is_hung_up_on_and_its_slot_is_free(
    gateway: Running, slots_free: Callable[[], float]
) -> None:
    # log probabilities make an answer so large that it fills every buffer on the way
    with slow_socket(gateway) as slow, others_undisturbed(gateway):
        slow.sendall(request(8000, logprobs=True, top_logprobs=20))
        slow.recv(1)
        wait_for(lambda: gateway.gateway.lanes.active > 0)
        hung_up = [event for event in gateway.served if event.finish_reason == "cancelled"]
        deadline = time.monotonic() + 60
        while len([event for event in gateway.served if event.finish_reason == "cancelled"]) == len(hung_up):
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)  # a poll: whoever does not read sees nothing
    wait_for(lambda: idle(gateway))
    assert slots_free() < 1


def test_who_reads_a_byte_a_second_disturbs_nobody(gateway: Running, slots_free: Callable[[], float]) -> None:
    with slow_socket(gateway) as slow:
        slow.sendall(request(3000))
        with others_undisturbed(gateway):
            for _ in range(4):
                assert slow.recv(1)
                threading.Event().wait(1.0)  # the client's own slowness: this is what is tested
    wait_for(lambda: idle(gateway))
    assert slots_free() < 1


def test_a_backlog_counts_from_when_it_stops_shrinking() -> None:
    first = backlog(None, 100, 1.0)
    assert first == Backlog(100, 1.0)
    assert backlog(first, 100, 5.0) == first
    assert backlog(first, 90, 5.0) == Backlog(90, 5.0)
    assert backlog(first, 110, 5.0) == Backlog(110, 5.0)
    assert backlog(first, 0, 5.0) is None


def test_only_who_takes_nothing_for_so_long_is_hung_up_on() -> None:
    class Transport:
        def __init__(self, sizes: list[int]) -> None:
            self.sizes = sizes
            self.aborted = False

        def get_write_buffer_size(self) -> int:
            return self.sizes.pop(0)

        def abort(self) -> None:
            self.aborted = True

    class Protocol:
        def __init__(self, *sizes: int) -> None:
            self.transport = Transport(list(sizes))

    stuck, slow, idle_one = Protocol(9, 9, 9, 9), Protocol(9, 8, 8, 7), Protocol(0, 0, 0, 0)
    watch = StallWatch(lambda: [stuck, slow, idle_one], 2.0)
    for now in (1.0, 2.0, 2.9):
        watch.look(now)
    assert not stuck.transport.aborted
    watch.look(3.0)
    assert [each.transport.aborted for each in (stuck, slow, idle_one)] == [True, False, False]
    assert watch.hung_up == 1


# -- clients that leave -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def narrow() -> Iterator[Engine]:
    """One slot. Small batches: llama-server looks between two of them whether anybody still wants the answer."""
    with launch(EngineOptions(parallel=1, threads=1, extra_args=("--batch-size", "128"))) as engine:
        yield engine


def busy(engine: Engine) -> bool:
    with StreamingClient(engine.url) as client:
        return any(slot["is_processing"] for slot in client.slots())


@pytest.mark.alone
@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("phase", ["queued", "prefill", "streaming"])
def test_who_hangs_up_frees_the_slot_within_a_second(narrow: Engine, phase: str, stream: bool) -> None:
    with serving(Upstreams([narrow.url])) as gateway:
        wait_for(lambda: gateway.gateway.source.snapshot()[0].models != ())
        admission = gateway.gateway.lanes
        if phase == "queued":
            with dial(gateway.url) as first:
                first.sendall(request(8000))
                hear(first, lambda raw: raw.count(b"data: ") > 2)
                second = dial(gateway.url)
                second.sendall(request(8000, stream))
                wait_for(lambda: admission.waiting == 1)
                began = time.monotonic()
                second.close()
                wait_for(lambda: admission.waiting == 0)
                assert time.monotonic() - began < 1.0
                assert busy(narrow)
        else:
            with dial(gateway.url) as connection:
                if phase == "prefill":
                    words = " ".join(str(number) for number in range(500))
                    more: dict[str, Any] = {"messages": [{"role": "user", "content": words}]}
                    connection.sendall(request(8000, stream, cache_prompt=False, **more))
                    wait_for(lambda: admission.active == 1)
                elif stream:
                    connection.sendall(request(8000))
                    hear(connection, lambda raw: raw.count(b"data: ") > 2)
                else:
                    connection.sendall(request(8000, stream))
                    wait_for(lambda: busy(narrow))
        began = time.monotonic()
        wait_for(lambda: admission.active == 0)
        assert time.monotonic() - began < 0.5
        # To ask llama-server for its slots again and again would keep it from looking whether its clients are there,
        # which it does once a second for whole answers; so it is asked once. Undisturbed it would be busy for long.
        if phase != "queued":
            threading.Event().wait(1.0 if stream else 1.5)
            assert not busy(narrow)
        wait_for(lambda: bool(gateway.served) and gateway.served[-1].finish_reason == "cancelled")
