"""Broken streams for a long time: `make soak MINUTES=30`, or `python -m tools.soak --minutes 30`.

Two real servers, each behind a proxy that breaks at random; one is killed now and then, and comes back. Sync and async
clients ask at random, read to the end or leave early. Every whole answer is compared with the undisturbed one; at the
end descriptors, threads, tasks, memory and the servers' slots have to be back where they were. Exit code 1 if not.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from typing import Any

import psutil

from llamastream import AsyncStreamingClient, StreamingClient
from llamastream.client.holdings import flush
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import LlamaStreamError
from llamastream.testing import ChaosProxy, Fault
from llamastream.types import RetryPolicy, Timeouts
from tools.faults.asking import (
    Answer,
    Ask,
    aread,
    astream,
    chat,
    completion,
    losses,
    read,
    stream,
    structured,
    tool_call,
    undisturbed,
)
from tools.faults.rows import random_fault, workspace

ASKS: list[tuple[Ask, bool]] = [
    (chat("Hello!"), True),
    (chat("Hello!", max_tokens=300), True),
    (chat("Count from one to fifty in words."), True),
    (chat("Tell me a story.", max_tokens=200), True),
    (completion("What is a slot?"), True),
    (completion("What is a slot?", max_tokens=40), True),
    (structured("Hello!"), False),
    (structured("Hello!", max_tokens=200), False),
    (tool_call(max_tokens=60), False),
]
"""Requests, and whether their token counts can always be told."""

OPTIONS: dict[str, Any] = {
    "timeouts": Timeouts(connect=1, first_byte=3, prefill=3, content_idle=0.5, total=60),
    "retry": RetryPolicy(base_delay=0.05, max_retries=20, loading_interval=0.1),
}
WARM_UP = 20.0
MEMORY_MIB = 32
"""Growth that is allowed: the ledger of this program, and what allocators keep."""


class Ledger:
    """What came of every stream."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.counts: collections.Counter[str] = collections.Counter()
        self.kinds: collections.Counter[str] = collections.Counter()
        self.errors: collections.Counter[str] = collections.Counter()
        self.longest_gap = 0.0
        self.wrong: list[str] = []

    def whole(self, ask: Ask, got: Answer, expected: Answer, *, counted: bool) -> None:
        lost = losses(got, expected, counted=False)  # a server that dies tells no counts; right they must be
        with self.lock:
            self.counts["whole" if not lost else "WRONG"] += 1
            self.counts["of these without token counts"] += counted and got.result.usage is None
            self.kinds.update(got.kinds or ["undisturbed"])
            self.longest_gap = max(self.longest_gap, got.longest_gap)
            if lost and len(self.wrong) < 20:
                self.wrong.append(f"{ask.name} {ask.body} after {got.kinds}: {lost}"[:1000])

    def left(self, text: str, expected: Answer) -> None:
        good = expected.result.text.startswith(text)
        with self.lock:
            self.counts["left early" if good else "WRONG"] += 1
            if not good and len(self.wrong) < 20:
                self.wrong.append(f"left early with {text!r}")

    def failed(self, error: LlamaStreamError, expected: Answer) -> None:
        text = "" if error.partial is None else error.partial.text
        good = expected.result.text.startswith(text)
        begun = error.partial is not None and error.partial.stats.chunks > 0
        where = "in the middle" if begun else "before the first content"
        with self.lock:
            self.counts[f"clear error {where}" if good else "WRONG"] += 1
            self.errors[f"{where}: {type(error).__name__}: {error.message.rpartition(': ')[2][:80]}"] += 1
            if not good and len(self.wrong) < 20:
                self.wrong.append(f"{error!r} with {text!r}")


class Soak:
    """The clients, and what disturbs them."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.ledger = Ledger()
        self.stop = threading.Event()
        self.servers: list[Engine] = []
        self.expected: list[Answer] = []
        self.urls: list[str] = []
        self.kills = 0

    def fault(self, _: int, request_line: str) -> Fault | None:
        """Half of the requests for an answer, and some of the errands, meet one."""
        asks = request_line.startswith(("POST /v1/c", "GET /v1/stream"))
        return random_fault(self.chance, 60) if self.chance.random() < (0.6 if asks else 0.05) else None

    def one(self, client: StreamingClient, chance: random.Random) -> None:
        number = chance.randrange(len(ASKS))
        (ask, counted), expected = ASKS[number], self.expected[number]
        try:
            if chance.random() < 0.8:
                self.ledger.whole(ask, read(client, ask), expected, counted=counted)
                return
            text, most = "", chance.randrange(40)
            for count, piece in enumerate(stream(client, ask)):
                text += piece
                if count == most:
                    break
            self.ledger.left(text, expected)
        except LlamaStreamError as error:
            self.ledger.failed(error, expected)

    async def aone(self, client: AsyncStreamingClient, chance: random.Random) -> None:
        number = chance.randrange(len(ASKS))
        (ask, counted), expected = ASKS[number], self.expected[number]
        try:
            way = chance.random()
            if way < 0.75:
                self.ledger.whole(ask, await aread(client, ask), expected, counted=counted)
                return
            if way < 0.85:
                task = asyncio.create_task(aread(client, ask))
                await asyncio.sleep(chance.random() * 0.1)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                self.ledger.left("", expected)
                return
            text, most = "", chance.randrange(40)
            async for piece in astream(client, ask):
                text += piece
                if len(text) > most:
                    break
            self.ledger.left(text, expected)
        except LlamaStreamError as error:
            self.ledger.failed(error, expected)

    def sync_clients(self, number: int) -> None:
        chance = random.Random(number)
        while not self.stop.is_set():
            with StreamingClient(self.urls, **OPTIONS) as client:
                for _ in range(20):
                    if not self.stop.is_set():
                        self.one(client, chance)

    def async_clients(self, number: int) -> None:
        async def work() -> None:
            chance = random.Random(number)
            async with AsyncStreamingClient(self.urls, **OPTIONS) as client:

                async def many() -> None:
                    while not self.stop.is_set():
                        await self.aone(client, chance)

                await asyncio.gather(*(many() for _ in range(3)))
                await asyncio.sleep(0.2)
                left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
                if left:
                    self.ledger.wrong.append(f"tasks are left: {left}")

        asyncio.run(work())

    def run(self, seconds: float) -> None:
        threads = [threading.Thread(target=self.sync_clients, args=(number,)) for number in (1, 2)]
        threads += [threading.Thread(target=self.async_clients, args=(3,))]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        next_kill = time.monotonic() + 10
        try:
            while time.monotonic() < end and all(thread.is_alive() for thread in threads):
                self.stop.wait(0.2)
                if time.monotonic() > next_kill and end - time.monotonic() > 5:
                    self.kill()
                    next_kill = time.monotonic() + 20
        finally:
            self.stop.set()
            for thread in threads:
                thread.join(90)
            self.stop.clear()

    def kill(self) -> None:
        """One server dies, and is back some time later on its port."""
        self.kills += 1
        index = self.chance.randrange(2)
        server = self.servers[index]
        os.kill(server.pid, signal.SIGKILL)
        server.wait(10)
        server.stop(0)
        self.stop.wait(self.chance.random() * 2)
        self.servers[index] = begin(int(server.url.rpartition(":")[2]))


def begin(port: int = 0) -> Engine:
    return launch(EngineOptions(threads=1, parallel=6, ctx_size=2048, port=port, stop_timeout=0)).start()


def footprint() -> dict[str, int]:
    gc.collect()
    process = psutil.Process()
    return {
        "descriptors": process.num_fds(),
        "threads": threading.active_count(),
        "resident MiB": process.memory_info().rss >> 20,
    }


def busy(servers: list[Engine]) -> int:
    """How many slots still work after 15 seconds of patience."""
    end = time.monotonic() + 15
    while True:
        count = 0
        for server in servers:
            with StreamingClient(server.url) as watcher:
                count += sum(bool(slot["is_processing"]) for slot in watcher.slots())
        if not count or time.monotonic() > end:
            return count
        time.sleep(0.1)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    arguments = parser.parse_args()
    logging.getLogger("llamastream").setLevel(logging.CRITICAL)
    with workspace():
        return soaked(arguments)


def soaked(arguments: argparse.Namespace) -> int:
    """The whole run; 0 if nothing was lost."""
    soak = Soak(arguments.seed)
    try:
        soak.servers += [begin(), begin()]
        soak.expected = [undisturbed(soak.servers[0].url, ask) for ask, _ in ASKS]
        with (
            ChaosProxy(soak.servers[0].url, soak.fault, everything=True) as one,
            ChaosProxy(soak.servers[1].url, soak.fault, everything=True) as two,
        ):
            soak.urls = [one.url, two.url]
            soak.run(min(WARM_UP, arguments.minutes * 20))
            flush(10)
            before = _settled(one, two)
            left = arguments.minutes * 60
            while left > 0:
                soak.run(min(left, 60))
                left -= 60
                for proxy in (one, two):
                    proxy.log.clear()  # or its memory would be taken for the client's
            flush(10)
            after = _settled(one, two)
        still_busy = busy(soak.servers)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    finally:
        for server in soak.servers:
            server.stop(0)
    return _report(soak, before, after, still_busy, arguments)


def _settled(*proxies: ChaosProxy) -> dict[str, int]:
    """The footprint, when the proxies' connections have ended; what they remember is forgotten."""
    for proxy in proxies:
        proxy.wait_for(lambda proxy: proxy.connections == 0, 10)
        proxy.log.clear()
    time.sleep(0.3)
    return footprint()


def _report(soak: Soak, before: dict[str, int], after: dict[str, int], still_busy: int, arguments: Any) -> int:
    ledger = soak.ledger
    streams = sum(count for what, count in ledger.counts.items() if not what.startswith("of these"))
    problems = list(ledger.wrong)
    if still_busy:
        problems.append(f"{still_busy} slots are still busy")
    for what, allowed in (("descriptors", 2), ("threads", 1), ("resident MiB", MEMORY_MIB)):
        if after[what] > before[what] + allowed:
            problems.append(f"{what}: {before[what]} before, {after[what]} after")
    print(f"{streams:,} streams in {arguments.minutes:g} minutes (seed {arguments.seed})")
    print(f"  {dict(ledger.counts)}; a server was killed {soak.kills} times")
    print(f"  mended: {dict(ledger.kinds)}; longest gap {ledger.longest_gap:.2f} s")
    for error, count in ledger.errors.most_common(12):
        print(f"  {count:5} {error}")
    print(f"  before {before}, after {after}, busy slots {still_busy}")
    for problem in problems:
        print(f"PROBLEM: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
