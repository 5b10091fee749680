"""What the gateway writes comes in order and once, whoever is slow and whatever breaks before the first content."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wires import ask

from gateways import serving
from llamastream.client import AsyncStreamingClient
from llamastream.engine import Engine
from llamastream.gateway import Upstreams, relay
from llamastream.gateway.relay import RawRequest, Relay
from llamastream.testing import ChaosProxy, Reset
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]


def frame(delta: dict[str, Any]) -> bytes:
    chunk = {"choices": [{"finish_reason": None, "index": 0, "delta": delta}], "created": 1, "id": "x", "model": "m"}
    event = b"data: " + json.dumps(chunk).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def words(data: bytes) -> list[str]:
    return [
        json.loads(line[6:])["choices"][0]["delta"]["content"]
        for line in data.split(b"\n")
        if line.startswith(b"data: ")
    ]


class SlowClient:
    """A client's connection that can be full at will: a real one is full when the system says so."""

    def __init__(self) -> None:
        self.open = True
        self.write_paused = False
        self.written = b""
        self.flow: Any = self
        self.transport: Any = self

    def write(self, data: bytes) -> None:
        self.written += data

    def hold(self) -> None:
        """What is written is here at once; whether in one piece, nobody looks at."""

    def release(self) -> None:
        """See `hold`."""

    async def send(self, message: dict[str, Any]) -> None:
        body = message.get("body", b"")
        if body:
            self.written += body


@asynccontextmanager
async def relay_to(slow: SlowClient) -> AsyncIterator[Relay]:
    """One that has written "0 ", and is fed by hand."""
    async with AsyncStreamingClient("http://127.0.0.1:1") as client:
        body = {"messages": STORY, "stream": True}
        request = RawRequest("/v1/chat/completions", body, 1, json.dumps(body).encode())
        answer = Relay(client._core, client._pools, request, None, slow.send, slow)
        session = answer.session = client._core.session(request, None, monotonic())
        answer._loop = asyncio.get_running_loop()
        session.prepare(monotonic())
        session.begin(monotonic(), reused_connection=False)
        session.connected(monotonic())
        answer.data_received(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
            + frame({"content": "0 "})
        )
        await answer._write()
        yield answer
        answer.close()


def test_what_waits_for_a_slow_client_is_not_overtaken() -> None:
    async def run() -> list[str]:
        slow = SlowClient()
        async with relay_to(slow) as answer:
            answer.data_received(frame({"content": "1 "}))
            slow.write_paused = True
            answer.data_received(frame({"content": "2 "}) + frame({"content": "3 "}))  # not the short way
            slow.write_paused = False  # it reads again, before anybody has written what waits
            answer.data_received(frame({"content": "4 "}))
            await answer._write()
            answer.data_received(frame({"content": "5 "}))
        return words(slow.written)

    assert asyncio.run(run()) == ["0 ", "1 ", "2 ", "3 ", "4 ", "5 "]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 700), st.booleans(), st.booleans()), max_size=40))
def test_any_reads_and_any_pauses_keep_the_order(steps: list[tuple[int, bool, bool]]) -> None:
    """Each step: bytes that arrive together, whether the client is full, and whether the writer's turn comes."""

    async def run() -> list[str]:
        slow = SlowClient()
        async with relay_to(slow) as answer:
            at = 0
            for size, full, turn in steps:
                slow.write_paused = full
                if at < len(rest):
                    answer.data_received(rest[at : at + size])
                    at += size
                if turn:
                    await answer._write()
            slow.write_paused = False
            if at < len(rest):
                answer.data_received(rest[at:])
            await answer._write()
        return words(slow.written)

    rest = b"".join(frame({"content": f"{number} "}) for number in range(1, 41))
    assert asyncio.run(run()) == [f"{number} " for number in range(41)]


def test_a_client_that_was_told_to_wait_gets_one_beginning(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SIGN_OF_LIFE", 0.001)
    # behind the first event, which names the role, and before any content
    with ChaosProxy(engine.url, Reset(after_events=1), Reset(after_events=1)) as proxy:
        source = Upstreams([proxy.url])
        with serving(source) as gateway:
            wait_for(lambda: bool(source.snapshot()[0].models))
            request = {"messages": STORY, "stream": True, "temperature": 0}
            answer = ask(gateway.url, body=request)
            whole = ask(engine.url, body=request)
    assert b": waiting\n\n" in answer.body
    data = [line[6:] for line in answer.body.split(b"\n") if line.startswith(b"data: {")]
    assert sum('"role"' in line.decode() for line in data) == 1
    assert len({json.loads(line)["id"] for line in data}) == 1
    told = "".join(json.loads(line)["choices"][0]["delta"].get("content") or "" for line in data)
    assert told == whole.joined()
