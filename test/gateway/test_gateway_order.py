"""What the gateway writes comes in order and once, whoever is slow and whatever breaks before the first content."""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

import pytest
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
    return [json.loads(line[6:])["choices"][0]["delta"]["content"] for line in data.split(b"\n") if line[:1] == b"d"]


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

    async def send(self, message: dict[str, Any]) -> None:
        body = message.get("body", b"")
        if body:
            self.written += body


def test_what_waits_for_a_slow_client_is_not_overtaken() -> None:
    async def run() -> list[str]:
        slow = SlowClient()
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
            answer.data_received(frame({"content": "1 "}))
            slow.write_paused = True
            answer.data_received(frame({"content": "2 "}) + frame({"content": "3 "}))  # not the short way
            slow.write_paused = False  # it reads again, before anybody has written what waits
            answer.data_received(frame({"content": "4 "}))
            await answer._write()
            answer.data_received(frame({"content": "5 "}))
            answer.close()
        return words(slow.written)

    assert asyncio.run(run()) == ["0 ", "1 ", "2 ", "3 ", "4 ", "5 "]


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
