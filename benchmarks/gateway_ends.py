"""Both ends of the gateway's benchmark: an origin that paces many streams, and a client that reads them.

`python benchmarks/gateway_ends.py origin` prints its port and serves until its standard input ends.
`python benchmarks/gateway_ends.py read '{"port": ..., "streams": ..., "events": ..., "rate": ...}'` prints JSON.

Each event's text is the time at which it was written, so that the reader knows how long it was on its way. The events
of the streams are spread evenly over the period; one timer writes all that are due.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from typing import Any, ClassVar

import uvloop

TICK = 0.001
SPACE = 0.005
"""Seconds between the beginnings of two streams: what one request costs shall not look like latency of the others."""

HEADER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n"
    b"Connection: keep-alive\r\n\r\n"
)
COMMON = (
    '"created":1700000000,"id":"chatcmpl-x","model":"m","system_fingerprint":"b1","object":"chat.completion.chunk"}'
)


def frame(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def delta(text: str) -> bytes:
    return frame('{"choices":[{"finish_reason":null,"index":0,"delta":' + text + "}]," + COMMON)


FIRST = HEADER + delta('{"role":"assistant","content":null}')
LAST = frame('{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],' + COMMON) + frame("[DONE]") + b"0\r\n\r\n"


UNKNOWN = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"


def fact(value: object) -> bytes:
    body = json.dumps(value).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


FACTS = {
    b"/health": fact({"status": "ok"}),
    b"/props": fact({"total_slots": 100_000, "model_alias": "m"}),
    b"/v1/models": fact({"object": "list", "data": [{"id": "m", "object": "model"}]}),
}


class Origin(asyncio.Protocol):
    """A server that answers every POST with `events` events at `rate` a second (in its JSON body), says that it is well
    and has slots enough, and does not know anything else."""

    running: ClassVar[list[Origin]] = []

    def __init__(self) -> None:
        self.data = b""
        self.left = 0
        self.period = 1.0
        self.due = 0.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.data += data
        head, found, body = self.data.partition(b"\r\n\r\n")
        if not found:
            return
        if head.startswith((b"GET", b"DELETE")):
            self.transport.write(FACTS.get(head.split(b" ", 2)[1], UNKNOWN))
            self.data = b""
            return
        length = next(int(x.split(b":")[1]) for x in head.lower().split(b"\r\n") if x.startswith(b"content-length:"))
        if len(body) < length:
            return
        self.data = b""
        request = json.loads(body)
        if "rate" not in request:  # a question of somebody who wants to know what we can do
            self.transport.write(UNKNOWN)
            return
        self.left, self.period = request["max_tokens"], 1.0 / request["rate"]
        self.transport.write(FIRST)
        now = time.monotonic()
        # spread over the period, so that not all streams speak at once
        self.due = now + self.period * (1 + (len(Origin.running) % 97) / 97)
        Origin.running.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        with contextlib.suppress(ValueError):
            Origin.running.remove(self)

    @staticmethod
    def tick() -> None:
        now = time.monotonic()
        for stream in list(Origin.running):
            if now < stream.due:
                continue
            stream.due += stream.period
            if stream.left:
                stream.left -= 1
                stream.transport.write(delta(f'{{"content":"{time.monotonic_ns()}"}}'))
            else:
                stream.transport.write(LAST)
                Origin.running.remove(stream)


async def origin() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Origin, "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)

    def tick() -> None:
        Origin.tick()
        loop.call_later(TICK, tick)

    tick()
    await loop.run_in_executor(None, sys.stdin.read)


class Reader(asyncio.Protocol):
    """Reads one stream and notes how long each event was on its way, in nanoseconds."""

    def __init__(self, request: bytes, delays: list[int], first: list[float]) -> None:
        self.request = request
        self.delays = delays
        self.first = first
        self.rest = b""
        self.done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.asked = time.monotonic()
        self.begun = False
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        now = time.monotonic_ns()
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            at = line.find(b'"content":"')
            if at >= 0:
                if not self.begun:
                    self.begun = True
                    self.first.append(time.monotonic() - self.asked)
                self.delays.append(now - int(line[at + 11 : line.index(b'"', at + 11)]))
            elif line.startswith(b"data: [DONE]"):
                self.finish(True)

    def finish(self, well: bool) -> None:
        if not self.done.done():
            self.done.set_result(well)
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish(False)


async def read(order: dict[str, Any]) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    body = json.dumps(
        {
            "model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": order["events"], "rate": order["rate"],
        }
    ).encode()  # fmt: skip
    request = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode() + body
    delays: list[int] = []
    first: list[float] = []
    readers = []
    print("reading", flush=True)  # from here on the proxy's CPU counts
    for _ in range(order["streams"]):
        _, reader = await loop.create_connection(lambda: Reader(request, delays, first), "127.0.0.1", order["port"])
        readers.append(reader)
        await asyncio.sleep(SPACE)
    whole = await asyncio.gather(*(reader.done for reader in readers))
    delays.sort()
    first.sort()
    count = len(delays)
    return {
        "whole": sum(whole),
        "events": count,
        "p50_ms": delays[count // 2] / 1e6,
        "p99_ms": delays[int(count * 0.99)] / 1e6,
        "max_ms": delays[-1] / 1e6,
        "first_p50_ms": first[len(first) // 2] * 1e3,
    }


if __name__ == "__main__":
    uvloop.install()
    if sys.argv[1] == "origin":
        asyncio.run(origin())
    else:
        print(json.dumps(asyncio.run(read(json.loads(sys.argv[2])))), flush=True)
