"""One client in a process of its own: `python benchmarks/clients.py '{"client": ..., ...}'`. A line of standard input
is an order in JSON, and the answer a line of standard output. Memory is one measurement, without further orders.

Each function reads a stream through its client's normal interface and counts pieces of text and characters. The loops
are written out, not shared, so that none pays for a helper. `taken[0] = count` tells the origin that the piece is here.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import json
import mmap
import resource
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

MESSAGES = [{"role": "user", "content": "Tell me a story."}]


class Job:
    """One stream to read, and what was found.

    Attributes:
        port, model, chunks: where, how and how many (see origin.py).
        taken: where the pieces are counted for the origin.
        sample: called after every `sample_every` chunks, for the memory's sake.
    """

    def __init__(self, port: int, model: str, chunks: int, taken: memoryview) -> None:
        self.port = port
        self.model = model
        self.chunks = chunks
        self.taken = taken
        self.sample: Callable[[int], None] = lambda count: None
        self.sample_every = 1 << 60
        self.reads = 0
        self.bytes = 0
        self._began = self._ended = 0.0
        taken[0] = 0

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def body(self) -> dict[str, Any]:
        """The request's body."""
        return {"model": self.model, "messages": MESSAGES, "max_tokens": self.chunks, "stream": True}

    @property
    def request(self) -> bytes:
        """The whole request, for those that write it themselves."""
        body = json.dumps(self.body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def started(self) -> None:
        """The first piece is here: what came before is not counted."""
        self._began = cpu_seconds()

    def finished(self) -> None:
        """The last piece is here, or the stream is over: what comes after it is not counted either."""
        if not self._ended:
            self._ended = cpu_seconds()

    @property
    def cpu_us(self) -> float:
        """CPU per chunk in microseconds, user and system."""
        return (self._ended - self._began) / max(1, self.chunks - 1) * 1e6


Count: TypeAlias = tuple[int, int]
"""Pieces of text, characters."""


def cpu_seconds() -> float:
    """CPU time of this process so far, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


# -- floors -------------------------------------------------------------------------------------------------


def raw(job: Job) -> Count:
    """A blocking socket: read and count bytes, nothing else."""
    taken = job.taken
    with socket.create_connection(("127.0.0.1", job.port)) as sock:
        sock.sendall(job.request)
        data = sock.recv(65536)
        taken[0] = count = _texts_in(data)
        size, reads, last = len(data), 1, job.chunks
        job.started()
        while data := sock.recv(65536):
            size += len(data)
            reads += 1
            count += 1
            taken[0] = count
            if count == last:
                job.finished()
    job.finished()
    job.reads, job.bytes = reads, size
    return 0, 0


def _texts_in(first: bytes) -> int:
    """How many pieces came with the header already (none, unless this process was slow to read)."""
    return first.count(b'"content":"')


class _Counting(asyncio.Protocol):
    def __init__(self, job: Job) -> None:
        self._job = job
        self._taken = job.taken
        self._last = job.chunks
        self._reads = 0
        self._count = 0
        self._bytes = 0
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(self._job.request)

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        self._reads += 1
        if self._reads == 1:
            self._count = _texts_in(data)
            self._job.started()
        else:
            self._count += 1
        self._taken[0] = self._count
        if self._count == self._last:
            self._job.finished()

    def connection_lost(self, exc: Exception | None) -> None:
        self._job.finished()
        self._job.reads, self._job.bytes = self._reads, self._bytes
        self.over.set_result(None)


async def raw_async(job: Job) -> Count:
    """An `asyncio.Protocol`: count bytes, nothing else."""
    _, protocol = await asyncio.get_running_loop().create_connection(lambda: _Counting(job), "127.0.0.1", job.port)
    await protocol.over
    return 0, 0


# -- others -------------------------------------------------------------------------------------------------


def stdlib(job: Job) -> Count:
    """`http.client` and `json`, line by line."""
    import http.client

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    connection = http.client.HTTPConnection("127.0.0.1", job.port)
    connection.request(
        "POST", "/v1/chat/completions", json.dumps(job.body).encode(), {"Content-Type": "application/json"}
    )
    for line in connection.getresponse():
        if line.startswith(b"data: ") and line != b"data: [DONE]\n":
            text = json.loads(line[6:])["choices"][0]["delta"].get("content")
            if text:
                count += 1
                characters += len(text)
                taken[0] = count
                if count == 1:
                    job.started()
                elif count == last:
                    job.finished()
    job.finished()
    connection.close()
    return count, characters


def requests(job: Job) -> Count:
    """`requests` with `iter_lines` and `json`, as most code in the wild has it."""
    import requests as library

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    with library.post(f"{job.url}/v1/chat/completions", json=job.body, stream=True, timeout=60) as response:
        for line in response.iter_lines():
            if line.startswith(b"data: ") and line != b"data: [DONE]":
                text = json.loads(line[6:])["choices"][0]["delta"].get("content")
                if text:
                    count += 1
                    characters += len(text)
                    taken[0] = count
                    if count == 1:
                        job.started()
                    elif count == last:
                        job.finished()
    job.finished()
    return count, characters


def httpx_sse(job: Job) -> Count:
    """`httpx` with `httpx-sse`."""
    import httpx
    from httpx_sse import connect_sse

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    with (
        httpx.Client() as client,
        connect_sse(client, "POST", f"{job.url}/v1/chat/completions", json=job.body) as source,
    ):
        for event in source.iter_sse():
            if event.data != "[DONE]":
                text = json.loads(event.data)["choices"][0]["delta"].get("content")
                if text:
                    count += 1
                    characters += len(text)
                    taken[0] = count
                    if count == 1:
                        job.started()
                    elif count == last:
                        job.finished()
    job.finished()
    return count, characters


def openai(job: Job) -> Count:
    """openai-python."""
    from openai import OpenAI

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    messages: Any = MESSAGES
    with OpenAI(base_url=f"{job.url}/v1", api_key="none") as client:
        for chunk in client.chat.completions.create(
            model=job.model, messages=messages, max_tokens=job.chunks, stream=True
        ):
            text = chunk.choices[0].delta.content
            if text:
                count += 1
                characters += len(text)
                taken[0] = count
                if count == 1:
                    job.started()
                elif count == last:
                    job.finished()
    job.finished()
    return count, characters


async def openai_async(job: Job) -> Count:
    """openai-python in asyncio."""
    from openai import AsyncOpenAI

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    messages: Any = MESSAGES
    async with AsyncOpenAI(base_url=f"{job.url}/v1", api_key="none") as client:
        async for chunk in await client.chat.completions.create(
            model=job.model, messages=messages, max_tokens=job.chunks, stream=True
        ):
            text = chunk.choices[0].delta.content
            if text:
                count += 1
                characters += len(text)
                taken[0] = count
                if count == 1:
                    job.started()
                elif count == last:
                    job.finished()
    job.finished()
    return count, characters


# -- llamastream --------------------------------------------------------------------------------------------


def llamastream(job: Job) -> Count:
    """`StreamingClient` with its defaults and a listener."""
    from llamastream import StreamingClient

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    events: list[object] = []
    with StreamingClient(job.url, listeners=[events.append]) as client:
        for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=job.chunks):
            count += 1
            characters += len(text)
            taken[0] = count
            if count == 1:
                job.started()
            elif count == last:
                job.finished()
    job.finished()
    assert events
    return count, characters


async def llamastream_async(job: Job) -> Count:
    """`AsyncStreamingClient` with its defaults and a listener."""
    from llamastream import AsyncStreamingClient

    taken, last, count, characters = job.taken, job.chunks, 0, 0
    events: list[object] = []
    async with AsyncStreamingClient(job.url, listeners=[events.append]) as client:
        async for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=job.chunks):
            count += 1
            characters += len(text)
            taken[0] = count
            if count == 1:
                job.started()
            elif count == last:
                job.finished()
    job.finished()
    assert events
    return count, characters


# -- memory -------------------------------------------------------------------------------------------------


def memory_stream(job: Job) -> Count:
    """One long stream of `StreamingClient`, with looks at the memory."""
    from llamastream import StreamingClient

    count = characters = 0
    with StreamingClient(job.url) as client:
        for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=job.chunks):
            count += 1
            characters += len(text)
            if not count % job.sample_every:
                job.sample(count)
    return count, characters


async def memory_stream_async(job: Job) -> Count:
    """The same with `AsyncStreamingClient`."""
    from llamastream import AsyncStreamingClient

    count = characters = 0
    async with AsyncStreamingClient(job.url) as client:
        async for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=job.chunks):
            count += 1
            characters += len(text)
            if not count % job.sample_every:
                job.sample(count)
    return count, characters


def memory_connections(job: Job) -> Count:
    """Many short streams of one `StreamingClient`; the server closes each connection."""
    from llamastream import StreamingClient

    count = characters = 0
    with StreamingClient(job.url) as client:
        for number in range(1, job.chunks + 1):
            for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=3):
                count += 1
                characters += len(text)
            if not number % job.sample_every:
                job.sample(number)
    return count, characters


async def memory_connections_async(job: Job) -> Count:
    """The same with `AsyncStreamingClient`."""
    from llamastream import AsyncStreamingClient

    count = characters = 0
    async with AsyncStreamingClient(job.url) as client:
        for number in range(1, job.chunks + 1):
            async for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=3):
                count += 1
                characters += len(text)
            if not number % job.sample_every:
                job.sample(number)
    return count, characters


# -- running one --------------------------------------------------------------------------------------------


def _on_asyncio(function: Callable[[Job], Any]) -> Callable[[Job], Count]:
    return lambda job: asyncio.run(function(job))


def _on_uvloop(function: Callable[[Job], Any]) -> Callable[[Job], Count]:
    def run(job: Job) -> Count:
        import uvloop

        counted: Count = uvloop.run(function(job))
        return counted

    return run


CLIENTS: dict[str, Callable[[Job], Count]] = {
    "raw": raw,
    "raw-asyncio": _on_asyncio(raw_async),
    "raw-uvloop": _on_uvloop(raw_async),
    "llamastream": llamastream,
    "llamastream-asyncio": _on_asyncio(llamastream_async),
    "llamastream-uvloop": _on_uvloop(llamastream_async),
    "stdlib": stdlib,
    "requests": requests,
    "httpx-sse": httpx_sse,
    "openai": openai,
    "openai-asyncio": _on_asyncio(openai_async),
}

MEMORY: dict[str, Callable[[Job], Count]] = {
    "stream": memory_stream,
    "stream-asyncio": _on_asyncio(memory_stream_async),
    "connections": memory_connections,
    "connections-asyncio": _on_asyncio(memory_connections_async),
}

PACKAGES = ("llamastream", "httptools", "msgspec", "uvloop", "requests", "httpx", "httpx-sse", "openai", "pydantic")


def versions() -> dict[str, str]:
    """Of the packages that take part, as far as they are here."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _serve(order: dict[str, Any], taken: memoryview) -> None:
    """Read a stream for each line of standard input, until it ends."""
    client = CLIENTS[order["client"]]
    try:
        client(Job(order["port"], "burst", order["warm_up"], taken))
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": str(error.name)}), flush=True)
        return
    print("{}", flush=True)
    for line in sys.stdin:
        gc.collect()  # what others left is not cleared away in this one's time
        each = json.loads(line)
        job = Job(order["port"], each["model"], each["chunks"], taken)
        count, characters = client(job)
        found = {
            "cpu_us": job.cpu_us,
            "chunks": count,
            "characters": characters,
            "reads": job.reads,
            "bytes": job.bytes,
        }
        print(json.dumps(found), flush=True)


def _measure_memory(order: dict[str, Any], taken: memoryview) -> dict[str, Any]:
    import psutil

    process = psutil.Process()
    samples: list[tuple[int, int]] = []
    job = Job(order["port"], "burst", order["chunks"], taken)
    job.sample = lambda count: samples.append((count, process.memory_info().rss))
    job.sample_every = max(1, order["chunks"] // 20)
    count, characters = MEMORY[order["memory"]](job)
    return {"chunks": count, "characters": characters, "samples": samples}


def main() -> None:
    """Serve, or measure memory."""
    order = json.loads(sys.argv[1])
    with (
        Path(order["counter"]).open("r+b") as file,
        mmap.mmap(file.fileno(), 8) as mapped,
        memoryview(mapped) as view,
        view.cast("Q") as taken,
    ):
        if "memory" in order:
            print(json.dumps(_measure_memory(order, taken)))
        else:
            _serve(order, taken)


if __name__ == "__main__":
    main()
