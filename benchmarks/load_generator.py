"""What the load generator of `llamastream bench` costs: `make bench-load`, or `python benchmarks/load_generator.py`.

CPU per streamed event, beside the cheapest thing that reads the same streams: a protocol that counts bytes. Both on
uvloop, in fresh processes that take turns. *Fast*: an origin that writes 64 KiB at a time, as fast as they are taken.
*Paced*: many streams of a few dozen events a second, so that each event is a read, and a wake-up, of its own.

Writes `docs/benchmarks/load_generator.json` and the table between its marks in `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from time import process_time
from typing import Any

import uvloop
from client import DOCS, describe_machine, median_interval, say, write_page

from llamastream.bench.asking import Asker
from llamastream.bench.generator import Generator
from llamastream.bench.lengths import Lengths
from llamastream.bench.loads import Extent, Load
from llamastream.bench.workload import Prompt, Workload
from llamastream.client import AsyncStreamingClient

HERE = Path(__file__).resolve().parent
BEGIN, END = "<!-- load generator: begin -->", "<!-- load generator: end -->"
MESSAGES = ({"role": "user", "content": "Tell me a story."},)
LIMIT_US = 15.0
"""So much may an event of a fast origin cost."""

MODES: dict[str, dict[str, Any]] = {
    "fast": {"streams": 8, "events": 40_000, "body": {"model": "burst"}},
    "paced": {"streams": 100, "events": 500, "body": {"model": "demo", "rate": 50}},
}
QUICK = {"fast": 2000, "paced": 25}
TITLES = {"floor": "bytes counted (the floor)", "bench": "**the load generator**"}


# -- in a process of its own --------------------------------------------------------------------------------


class Counting(asyncio.Protocol):
    """Counts bytes, nothing else."""

    def __init__(self, request: bytes, over: asyncio.Future[None]) -> None:
        self._request = request
        self._over = over
        self.bytes = 0

    def connection_made(self, transport: Any) -> None:
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.bytes += len(data)
        if data.endswith(b"\r\n0\r\n\r\n"):
            self._over.set_result(None)


async def floor(port: int, streams: int, body: dict[str, Any]) -> dict[str, Any]:
    """The same streams, and their bytes."""
    loop = asyncio.get_running_loop()
    data = json.dumps({**body, "messages": MESSAGES, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    began = process_time()
    ends = [loop.create_future() for _ in range(streams)]
    for end in ends:
        await loop.create_connection(partial(Counting, head.encode() + data, end), "127.0.0.1", port)
    await asyncio.gather(*ends)
    return {"cpu": process_time() - began}


async def load(port: int, streams: int, body: dict[str, Any]) -> dict[str, Any]:
    """A closed loop, once through."""
    prompt = Prompt(messages=MESSAGES, max_tokens=body["max_tokens"])
    workload = Workload(Lengths(1, 1), Lengths(1, 1), prompts=(prompt,))
    more = {name: value for name, value in body.items() if name != "max_tokens"}
    async with AsyncStreamingClient(f"http://127.0.0.1:{port}", recovery="off") as client:
        generator = Generator(Asker(client, more, None), workload, Load("closed", streams), 1)
        lap = await generator.run(Extent(streams, None))
    assert all(sample.ok for sample in lap.samples), lap.samples[0].message
    return {"cpu": lap.cpu, "events": lap.chunks}


def read(order: dict[str, Any]) -> None:
    """Do what the order says, and print what it cost."""
    work = {"floor": floor, "bench": load}[order["reader"]]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(work(order["port"], order["streams"], order["body"]))))


# -- rounds -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def origin(mode: str) -> Iterator[int]:
    """The port of a server to read from."""
    with tempfile.NamedTemporaryFile() as counter:
        counter.write(bytes(8))
        counter.flush()
        arguments = ["origin.py", counter.name] if mode == "fast" else ["gateway_ends.py", "origin"]
        command = [sys.executable, str(HERE / arguments[0]), *arguments[1:]]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield int(process.stdout.readline())
            finally:
                process.stdin.close()


def measure(rounds: int, events: dict[str, int]) -> dict[str, Any]:
    """Microseconds of CPU per event, by mode and reader, one for each round."""
    found: dict[str, Any] = {}
    for mode, sizes in MODES.items():
        spent: dict[str, list[float]] = {reader: [] for reader in TITLES}
        with origin(mode) as port:
            for number in range(rounds):
                for reader in list(TITLES)[:: 1 if number % 2 else -1]:
                    say(f"{mode} {number + 1}/{rounds}: {reader}")
                    body = {**sizes["body"], "max_tokens": events[mode]}
                    order = {"reader": reader, "port": port, "streams": sizes["streams"], "body": body}
                    command = [sys.executable, str(HERE / "load_generator.py"), "read", json.dumps(order)]
                    figures = json.loads(subprocess.check_output(command, text=True))
                    total = sizes["streams"] * events[mode]
                    assert figures.get("events", total) == total, figures
                    spent[reader].append(figures["cpu"] / total * 1e6)
        found[mode] = {
            "us": {reader: _spread(values) for reader, values in spent.items()},
            "added_us": _spread([ours - bare for ours, bare in zip(spent["bench"], spent["floor"], strict=True)]),
        }
    say("")
    return found


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, high = median_interval(values)
    return {"median": round(statistics.median(values), 3), "low": round(low, 3), "high": round(high, 3)}


def table(figures: dict[str, Any]) -> str:
    """For people."""
    lines = ["| reader | fast origin, µs an event | paced, each event a read, µs |", "|---|--:|--:|"]
    for reader, title in TITLES.items():
        lines.append(f"| {title} | {' | '.join(_cell(figures[mode]['us'][reader]) for mode in MODES)} |")
    lines.append(f"| what it adds | {' | '.join(_cell(figures[mode]['added_us']) for mode in MODES)} |")
    return "\n".join(lines)


def _cell(spread: dict[str, float]) -> str:
    return f"{spread['median']:.2f} ({spread['low']:.2f}–{spread['high']:.2f})"


def main() -> None:
    """Measure, print, publish."""
    if sys.argv[1:2] == ["read"]:
        read(json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description="CPU that the load generator spends on an event.")
    parser.add_argument("--rounds", type=int, help="of each reader (9; quick: 2)")
    parser.add_argument("--quick", action="store_true", help="a short run that changes nothing in docs")
    parser.add_argument("--output", type=Path, help="write the JSON there, and no page")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 above {LIMIT_US:g} µs from the fast origin")
    options = parser.parse_args()
    events = QUICK if options.quick else {mode: sizes["events"] for mode, sizes in MODES.items()}
    found = {**measure(options.rounds or (2 if options.quick else 9), events), "machine": describe_machine()}
    print(table(found))
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    elif not options.quick:
        (DOCS / "benchmarks/load_generator.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        write_page(DOCS / "benchmarks.md", table(found), BEGIN, END)
    if options.check and found["fast"]["us"]["bench"]["high"] > LIMIT_US:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
