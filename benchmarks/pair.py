"""Streams with recovery and without it in one process: `python benchmarks/pair.py '{...}'`, JSON back.

Two clients that differ in `recovery` alone, and three measurements, each of them mixed so finely that whatever makes a
process, a minute or a twentieth of a second slow meets both alike:

- `paced`: two streams at a time, whose events come in turn; the CPU of the wait for each, which is one event's.
- `burst`: one stream after the other, in the order A B B A; the CPU from the first piece of text to the last.
- `stream`: the same with very short streams; all the CPU, from the call until the server has dropped the generation.
  A thread does that, and it is waited for, so that it falls into no other stream's time.
"""

from __future__ import annotations

import asyncio
import gc
import json
import mmap
import statistics
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from clients import MESSAGES, Job, cpu_seconds

from llamastream import AsyncStreamingClient, StreamingClient
from llamastream.client.holdings import flush

MODES = ("full", "off")
SHORT = 3
"""Chunks of a stream that is measured as a whole."""

WARM_UP = 100
"""Chunks of the first streams, which do not count."""


class Order:
    """What is to be measured.

    Attributes:
        client: one of llamastream's in `clients.CLIENTS`. paced, burst: streams of each mode, and chunks of each.
        short: streams of each mode.
    """

    def __init__(self, order: dict[str, Any], taken: memoryview) -> None:
        self.client: str = order["client"]
        self.paced: tuple[int, int] = order["paced"]
        self.burst: tuple[int, int] = order["burst"]
        self.short: int = order["short"]
        self._rate: int = order["rate"]
        self._port: int = order["port"]
        self._first: int = order["first"]
        self._taken = taken

    @property
    def url(self) -> str:
        """Of the origin."""
        return f"http://127.0.0.1:{self._port}"

    def job(self, model: str, chunks: int) -> Job:
        """One stream to read."""
        gc.collect()  # what others left is not cleared away in this one's time
        return Job(self._port, model, chunks, self._taken)

    def two(self, number: int, chunks: int) -> dict[str, Job]:
        """Two streams that come in turn, by mode, the one that begins first; they take turns in that as well."""
        modes = MODES[:: -1 if (number + self._first) % 2 else 1]
        return {mode: self.job(f"turns-{self._rate}-{place}", chunks) for place, mode in enumerate(modes)}

    def in_line(self, count: int, chunks: int) -> Iterator[tuple[str, Job]]:
        """One stream after the other, `count` of each mode."""
        for number in range(2 * count):
            yield MODES[(number + 1) // 2 % 2 ^ self._first], self.job("burst", chunks)


class Figures:
    """What was found.

    Attributes:
        us: microseconds of CPU, by measurement and mode: one figure for each stream.
        read: pieces of text and characters of each stream of a measurement.
    """

    def __init__(self) -> None:
        self.us: dict[str, dict[str, list[float]]] = {}
        self.read: dict[str, list[tuple[int, int]]] = {}

    def note(self, kind: str, mode: str, us: float, read: tuple[int, int]) -> None:
        """One stream."""
        self.us.setdefault(kind, {"full": [], "off": []})[mode].append(us)
        self.read.setdefault(kind, []).append(read)


def dropped() -> None:
    """Wait until the server has dropped all that it held."""
    if not flush():
        raise RuntimeError("the origin was not told in time which generations to drop")


def in_turns(texts: dict[str, Iterator[str]], jobs: dict[str, Job], figures: Figures | None) -> None:
    """Read two streams in turn."""
    clock = time.thread_time_ns
    spent: dict[str, list[int]] = {mode: [] for mode in jobs}
    found: dict[str, list[int]] = {mode: [] for mode in jobs}
    taken, count = next(iter(jobs.values())).taken, 0
    for _ in range(next(iter(jobs.values())).chunks):
        for mode in jobs:
            began = clock()
            text = next(texts[mode])
            spent[mode].append(clock() - began)
            found[mode].append(len(text))
            count += 1
            taken[0] = count
    for mode in jobs:
        note_turns(mode, spent[mode], found[mode], len(list(texts[mode])), figures)
    dropped()


async def in_turns_async(texts: dict[str, AsyncIterator[str]], jobs: dict[str, Job], figures: Figures | None) -> None:
    """As `in_turns`."""
    clock = time.thread_time_ns
    spent: dict[str, list[int]] = {mode: [] for mode in jobs}
    found: dict[str, list[int]] = {mode: [] for mode in jobs}
    taken, count = next(iter(jobs.values())).taken, 0
    for _ in range(next(iter(jobs.values())).chunks):
        for mode in jobs:
            began = clock()
            text = await texts[mode].__anext__()
            spent[mode].append(clock() - began)
            found[mode].append(len(text))
            count += 1
            taken[0] = count
    for mode in jobs:
        note_turns(mode, spent[mode], found[mode], len([text async for text in texts[mode]]), figures)
    dropped()


def note_turns(mode: str, spent: list[int], found: list[int], more: int, figures: Figures | None) -> None:
    """Keep what one of two streams gave, but the first piece, whose wait has the request in it."""
    if figures is not None:
        figures.note("paced", mode, statistics.fmean(spent[1:]) / 1000, (len(found) + more, sum(found)))


def note_line(kind: str, mode: str, job: Job, began: float, read: tuple[int, int], figures: Figures) -> None:
    """Keep what one of several streams in line gave."""
    dropped()
    whole_us = (cpu_seconds() - began) * 1e6
    figures.note(kind, mode, job.cpu_us if kind == "burst" else whole_us, read)


def read(client: StreamingClient, job: Job) -> tuple[int, int]:
    """Pieces of text and characters of a stream. The clock stops at the last piece, not at the end."""
    last, count, characters = job.chunks, 0, 0
    for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=last):
        count += 1
        characters += len(text)
        if count == 1:
            job.started()
        elif count == last:
            job.finished()
    return count, characters


async def read_async(client: AsyncStreamingClient, job: Job) -> tuple[int, int]:
    """As `read`."""
    last, count, characters = job.chunks, 0, 0
    async for text in client.stream_chat(MESSAGES, model=job.model, max_tokens=last):
        count += 1
        characters += len(text)
        if count == 1:
            job.started()
        elif count == last:
            job.finished()
    return count, characters


def measure(order: Order) -> Figures:
    """With the sync client."""
    figures = Figures()
    events: list[object] = []
    with (
        StreamingClient(order.url, listeners=[events.append], recovery="full") as full,
        StreamingClient(order.url, listeners=[events.append], recovery="off") as off,
    ):
        clients = {"full": full, "off": off}
        count, chunks = order.paced
        for number in range(count + 1):
            jobs = order.two(number, chunks if number else WARM_UP)
            texts = {
                mode: iter(clients[mode].stream_chat(MESSAGES, model=job.model, max_tokens=job.chunks))
                for mode, job in jobs.items()
            }
            in_turns(texts, jobs, figures if number else None)
        for kind, line in (("burst", order.in_line(*order.burst)), ("stream", order.in_line(order.short, SHORT))):
            for mode, job in line:
                events.clear()
                began = cpu_seconds()
                note_line(kind, mode, job, began, read(clients[mode], job), figures)
    return figures


async def measure_async(order: Order) -> Figures:
    """With the async client, on the loop that runs."""
    figures = Figures()
    events: list[object] = []
    async with (
        AsyncStreamingClient(order.url, listeners=[events.append], recovery="full") as full,
        AsyncStreamingClient(order.url, listeners=[events.append], recovery="off") as off,
    ):
        clients = {"full": full, "off": off}
        count, chunks = order.paced
        for number in range(count + 1):
            jobs = order.two(number, chunks if number else WARM_UP)
            texts = {
                mode: aiter(clients[mode].stream_chat(MESSAGES, model=job.model, max_tokens=job.chunks))
                for mode, job in jobs.items()
            }
            await in_turns_async(texts, jobs, figures if number else None)
        for kind, line in (("burst", order.in_line(*order.burst)), ("stream", order.in_line(order.short, SHORT))):
            for mode, job in line:
                events.clear()
                began = cpu_seconds()
                note_line(kind, mode, job, began, await read_async(clients[mode], job), figures)
    return figures


def run(order: Order) -> Figures:
    """On the loop that the client's name says."""
    if order.client == "llamastream":
        return measure(order)
    if order.client == "llamastream-asyncio":
        return asyncio.run(measure_async(order))
    import uvloop

    return uvloop.run(measure_async(order))


def main() -> None:
    """One order, one answer."""
    given = json.loads(sys.argv[1])
    with Path(given["counter"]).open("r+b") as file, mmap.mmap(file.fileno(), 8) as mapped:
        with memoryview(mapped) as view, view.cast("Q") as taken:
            figures = run(Order(given, taken))
        print(json.dumps({"us": figures.us, "read": figures.read}))


if __name__ == "__main__":
    main()
