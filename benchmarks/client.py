"""What streaming costs: `make bench-client`, or `python benchmarks/client.py --quick`.

CPU per streamed chunk of llamastream and of what people use instead, beside the cheapest thing that reads a socket;
import time; memory over a million chunks and ten thousand connections. CPU time is counted, not time, since other
programs run beside. A machine's speed changes by the second, so what is reported are ratios: in each round every client
has a fresh process, these take turns in many short laps, and in each lap the floor is measured once more right before
each client. A round's ratio is the median of its laps; of the rounds the median is reported, with an interval.

Writes `docs/benchmarks/client.json` and the tables between the marks in `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from clients import CLIENTS, MEMORY, versions
from origin import expected_bytes, expected_characters

from llamastream.bench.machine import cpu_model

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"
SEED = 20260101
PACE = 1000
"""Events a second in paced rounds, at most."""

FLOOR = "raw"
TITLES = {
    "raw": "raw blocking socket, bytes counted (the floor)",
    "raw-asyncio": "raw `asyncio.Protocol`, bytes counted",
    "raw-uvloop": "the same on uvloop",
    "llamastream": "**llamastream, sync**",
    "llamastream-asyncio": "**llamastream, asyncio**",
    "llamastream-uvloop": "**llamastream, uvloop**",
    "stdlib": "`http.client` + `json`",
    "requests": "`requests.iter_lines` + `json`",
    "httpx-sse": "httpx-sse + `json`",
    "openai": "openai-python, sync",
    "openai-asyncio": "openai-python, asyncio",
}
IMPORTS = {
    "import llamastream": "import llamastream",
    "from llamastream import StreamingClient": "from llamastream import StreamingClient",
    "from llamastream import AsyncStreamingClient": "from llamastream import AsyncStreamingClient",
    "import requests": "import requests",
    "import openai": "import openai",
}
MEMORY_TITLES = {
    "stream": ("sync", "one stream", "chunk"),
    "stream-asyncio": ("asyncio", "one stream", "chunk"),
    "connections": ("sync", "streams of 3 chunks", "connection"),
    "connections-asyncio": ("asyncio", "streams of 3 chunks", "connection"),
}
FLAT_BYTES = 2 * 1024 * 1024
"""So much may the memory grow, beyond the text itself, over a whole measurement, and still count as flat."""


# -- measuring ----------------------------------------------------------------------------------------------


class Bench:
    """An origin to stream from, and the means to measure in fresh processes."""

    def __init__(self, port: int, counter: str) -> None:
        self._port = port
        self._counter = counter

    def run(self, program: str = "clients.py", **order: Any) -> dict[str, Any]:
        """Let a fresh process do one measurement (see clients.py and pair.py)."""
        order = {"port": self._port, "counter": self._counter, **order}
        found: dict[str, Any] = json.loads(_python(str(HERE / program), json.dumps(order)))
        return found

    @contextlib.contextmanager
    def worker(self, client: str) -> Iterator[Worker]:
        """A fresh process of one client, warmed up."""
        order = {"port": self._port, "counter": self._counter, "client": client, "warm_up": 300}
        command = [sys.executable, str(HERE / "clients.py"), json.dumps(order)]
        with subprocess.Popen(
            command, env=_environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdin is not None
            try:
                yield Worker(client, process)
            finally:
                process.stdin.close()


class Worker:
    """A client in a process of its own.

    Attributes:
        missing: the package that it needs and that is not there, or "".
    """

    def __init__(self, client: str, process: subprocess.Popen[str]) -> None:
        self._client = client
        self._process = process
        self.missing: str = self._answer().get("missing", "")

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        found: dict[str, Any] = json.loads(self._process.stdout.readline() or '{"chunks": 0, "failed": true}')
        return found

    def read(self, mode: str, chunks: int) -> dict[str, Any]:
        """CPU per chunk of one stream.

        Raises:
            RuntimeError: it did not read what was sent.
        """
        assert self._process.stdin is not None
        model = "burst" if mode == "burst" else f"paced-{PACE}"
        self._process.stdin.write(json.dumps({"model": model, "chunks": chunks}) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        client = self._client
        if client.startswith("raw"):
            right = found.get("bytes") == expected_bytes(chunks)
        else:
            right = (found["chunks"], found.get("characters")) == (chunks, expected_characters(chunks))
        if not right:
            raise RuntimeError(f"{client} did not read what was sent: {found}")
        return found


@contextlib.contextmanager
def bench() -> Iterator[Bench]:
    """With an origin that runs."""
    with tempfile.NamedTemporaryFile(prefix="llamastream-bench-") as counter:
        counter.write(bytes(8))
        counter.flush()
        command = [sys.executable, str(HERE / "origin.py"), counter.name]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as origin:
            assert origin.stdin is not None
            assert origin.stdout is not None
            try:
                yield Bench(int(origin.stdout.readline()), counter.name)
            finally:
                origin.stdin.close()


def _environment() -> dict[str, str]:
    """No proxies, no settings of llamastream's from outside, nothing that others left."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.lower().endswith("_proxy") and not name.startswith("LLAMASTREAM_")
    }
    return clean | {"XDG_STATE_HOME": str(Path(tempfile.gettempdir()) / "llamastream-bench-state")}


def _python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{arguments[0]} failed:\n{done.stderr}")
    return done.stdout


def measure_cpu(there: Bench, clients: Sequence[str], mode: str, chunks: int, rounds: int, laps: int) -> dict[str, Any]:
    """CPU per chunk: `rounds` of fresh processes which read `chunks` each, in so many interleaved, shuffled `laps`."""
    shuffled = random.Random(f"{SEED}-{mode}")
    found: dict[str, list[Round]] = {client: [] for client in clients}
    skipped: dict[str, str] = {}
    for number in range(1, rounds + 1):
        with contextlib.ExitStack() as stack:
            workers = {}
            for client in dict.fromkeys((*clients, FLOOR)):
                if client not in skipped:
                    workers[client] = stack.enter_context(there.worker(client))
                    if workers[client].missing:
                        skipped[client] = workers.pop(client).missing
            order = [client for client in clients if client in workers]
            laps_of: dict[str, list[Lap]] = {client: [] for client in order}
            for lap in range(1, laps + 1):
                shuffled.shuffle(order)
                for client in order:
                    say(f"{mode} {number}/{rounds}, lap {lap}/{laps}: {client}")
                    floor = workers[FLOOR].read(mode, chunks // laps)
                    own = floor if client == FLOOR else workers[client].read(mode, chunks // laps)
                    laps_of[client].append(Lap(own, floor))
            for client in order:
                found[client].append(Round(laps_of[client]))
    say("")
    return {"chunks": chunks, "skipped": skipped, "clients": _summaries({k: v for k, v in found.items() if v})}


class Lap(NamedTuple):
    """What a client found, and the floor right before it."""

    own: dict[str, Any]
    floor: dict[str, Any]


class Round:
    """The laps of one process. `cpu_us`: of a chunk. `to_floor`: how many times that of the floor."""

    def __init__(self, laps: Sequence[Lap]) -> None:
        self.laps = laps
        self.cpu_us = statistics.fmean(lap.own["cpu_us"] for lap in laps)
        ratios = [lap.own["cpu_us"] / lap.floor["cpu_us"] for lap in laps if lap.floor["cpu_us"] > 0]
        self.to_floor = statistics.median(ratios) if ratios else math.nan


def _summaries(found: dict[str, list[Round]]) -> dict[str, Any]:
    summaries: dict[str, Any] = {}
    for client, rounds in found.items():
        summary: dict[str, Any] = {
            "cpu_us": _spread([one.cpu_us for one in rounds]),
            "rounds_cpu_us": [round(one.cpu_us, 3) for one in rounds],
            "chunks": [lap.own["chunks"] for one in rounds for lap in one.laps],
            "characters": [lap.own["characters"] for one in rounds for lap in one.laps],
            f"ratio_to_{FLOOR}": _spread([one.to_floor for one in rounds if not math.isnan(one.to_floor)]),
        }
        if "openai" in found:
            pairs = zip(rounds, found["openai"], strict=True)
            summary["ratio_to_openai"] = _spread([one.cpu_us / base.cpu_us for one, base in pairs])
        reads = [lap.own["reads"] for one in rounds for lap in one.laps]
        if any(reads):
            summary["reads"] = reads
        summaries[client] = summary
    return summaries


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    """Median, the interval that holds the median of all there could be with 95 % certainty, and the extremes."""
    if not values:
        return None
    low, high = median_interval(values)
    return {
        "median": round(statistics.median(values), 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "min": round(min(values), 4),
        "max": round(max(values), 4),
    }


def median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of a median, whatever the distribution: the innermost two of the ordered values
    between which it lies with that probability (each value is below it with probability 1/2). Fewer than six values
    cannot be so certain, and give the smallest and the largest.
    """
    ordered = sorted(values)
    count = len(ordered)
    outside = 0.0  # the probability that the median lies beyond the values left out so far, on one side
    left_out = 0
    while left_out < count // 2:
        outside += math.comb(count, left_out) / 2**count
        if outside > 0.025:
            break
        left_out += 1
    left_out = max(0, left_out - 1)
    return ordered[left_out], ordered[count - 1 - left_out]


def measure_imports(rounds: int) -> dict[str, Any]:
    """CPU and wall time of imports in fresh interpreters, in milliseconds."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in IMPORTS}
    for number in range(rounds + 1):
        say(f"imports {number}/{rounds}")
        for name, statement in IMPORTS.items():
            code = (
                "import time; wall, cpu = time.perf_counter(), time.process_time(); "
                f"{statement}; print(time.process_time() - cpu, time.perf_counter() - wall)"
            )
            try:
                cpu, wall = map(float, _python("-c", code).split())
            except RuntimeError as error:
                if "ModuleNotFoundError" not in str(error):
                    raise
                continue
            if number:  # the first round writes the bytecode
                found[name].append((cpu * 1000, wall * 1000))
    say("")
    return {
        name: {"cpu_ms": _spread([cpu for cpu, _ in times]), "wall_ms": _spread([wall for _, wall in times])}
        for name, times in found.items()
        if times
    }


def measure_memory(there: Bench, chunks: int, connections: int) -> dict[str, Any]:
    """Resident memory over one long stream and over many short ones."""
    figures = {}
    for name in MEMORY:
        say(f"memory: {name}")
        is_stream = name.startswith("stream")
        count = chunks if is_stream else connections
        found = there.run(memory=name, chunks=count)
        samples: list[tuple[int, int]] = [(at, rss) for at, rss in found["samples"]]
        begun = samples[min(1, len(samples) - 1)]  # by then buffers and caches have their size
        growth = samples[-1][1] - begun[1]
        # The text of the measured part, which a stream keeps for `result()` and for what an error says.
        text = expected_characters(samples[-1][0]) - expected_characters(begun[0]) if is_stream else 0
        figures[name] = {
            "count": count,
            "chunks": found["chunks"],
            "characters": found["characters"],
            "samples": samples,
            "growth_bytes": growth,
            "text_bytes": text,
            "slope_bytes": round(_slope(samples[min(1, len(samples) - 1) :]), 3),
        }
    say("")
    return figures


def _slope(samples: Sequence[tuple[int, int]]) -> float:
    if len(samples) < 2:
        return 0.0
    return statistics.linear_regression([at for at, _ in samples], [rss for _, rss in samples]).slope


def say(text: str) -> None:
    """What is being done, on a terminal: the line that is written over."""
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on; nothing that names the machine."""
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
    }


# -- targets ------------------------------------------------------------------------------------------------


def targets(figures: dict[str, Any]) -> list[dict[str, Any]]:
    """Each target, what was measured, and whether it was reached (None: not measured)."""
    found: list[dict[str, Any]] = []

    def add(name: str, limit: float, value: float | None, unit: str) -> None:
        reached = None if value is None else value <= limit
        found.append({"target": name, "limit": limit, "value": value, "unit": unit, "reached": reached})

    def ratio(mode: str, client: str, other: str) -> float | None:
        spread = figures.get(mode, {}).get("clients", {}).get(client, {}).get(f"ratio_to_{other}")
        return None if spread is None else float(spread["median"])

    add("paced, sync against the floor", 2.0, ratio("paced", "llamastream", FLOOR), "×")
    add("paced, async on uvloop against the floor", 2.6, ratio("paced", "llamastream-uvloop", FLOOR), "×")
    for client, title in (("llamastream", "sync"), ("llamastream-uvloop", "async on uvloop")):
        value = ratio("burst", client, "openai")
        add(f"burst, {title} against openai-python: 1/30", round(1 / 30, 4), value, "×")
    imports = figures.get("imports", {})
    ours, theirs = imports.get("import llamastream"), imports.get("import openai")
    value = ours["cpu_ms"]["median"] / theirs["cpu_ms"]["median"] if ours and theirs else None
    add("import against openai-python: 1/5", 0.2, None if value is None else round(value, 4), "×")
    for name, (kind, what, unit) in MEMORY_TITLES.items():
        figure = figures.get("memory", {}).get(name)
        beyond = None if figure is None else figure["growth_bytes"] - figure["text_bytes"]
        add(f"memory, {kind}, {what}: growth beyond the text", FLAT_BYTES, beyond, f"bytes (per {unit} times all)")
    return found


# -- the page -----------------------------------------------------------------------------------------------


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    machine = figures["machine"]
    parts = [
        f"Measured on {machine['cores']} cores of {machine['cpu']}, {machine['system']}, {machine['python']}; "
        + ", ".join(f"{name} {version}" for name, version in figures["versions"].items() if name != "llamastream")
        + f". {figures['rounds']} rounds; medians, with their 95 % confidence intervals in brackets.",
        _cpu_table(figures),
    ]
    if figures.get("imports"):
        parts.append(_import_table(figures["imports"]))
    if figures.get("memory"):
        parts.append(_memory_table(figures["memory"]))
    parts.append(_target_table(figures["targets"]))
    return "\n\n".join(parts)


def _cpu_table(figures: dict[str, Any]) -> str:
    lines = [
        "### CPU per chunk",
        "",
        "| client | paced, µs | × floor | burst, µs | openai ÷ it |",
        "|---|--:|--:|--:|--:|",
    ]
    paced, burst = figures["paced"]["clients"], figures["burst"]["clients"]
    for client, title in TITLES.items():
        if client not in paced and client not in burst:
            continue
        to_openai = burst.get(client, {}).get("ratio_to_openai")
        lines.append(
            f"| {title} | {_cell(paced.get(client, {}).get('cpu_us'), 1)} "
            f"| {_cell(paced.get(client, {}).get(f'ratio_to_{FLOOR}'), 2)} "
            f"| {_cell(burst.get(client, {}).get('cpu_us'), 2)} "
            f"| {'' if to_openai is None else format(1 / to_openai['median'], '.1f')} |"
        )
    return "\n".join(lines)


def _cell(spread: dict[str, float] | None, digits: int) -> str:
    if spread is None:
        return ""
    return f"{spread['median']:.{digits}f} ({spread['low']:.{digits}f}–{spread['high']:.{digits}f})"


def _import_table(imports: dict[str, Any]) -> str:
    lines = ["### Import, in a fresh interpreter", "", "| statement | CPU, ms | wall, ms |", "|---|--:|--:|"]
    lines += [
        f"| `{name}` | {_cell(times['cpu_ms'], 1)} | {_cell(times['wall_ms'], 1)} |" for name, times in imports.items()
    ]
    return "\n".join(lines)


def _memory_table(memory: dict[str, Any]) -> str:
    lines = [
        "### Memory",
        "",
        "| client | measurement | at the end, MiB | growth, KiB | of it text, KiB | slope |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, figure in memory.items():
        kind, what, unit = MEMORY_TITLES[name]
        lines.append(
            f"| llamastream, {kind} | {figure['count']:,} {unit}s, {what} | {figure['samples'][-1][1] / 2**20:.1f} "
            f"| {figure['growth_bytes'] / 1024:.0f} | {figure['text_bytes'] / 1024:.0f} "
            f"| {figure['slope_bytes']:.1f} bytes a {unit} |"
        )
    return "\n".join(lines)


def _target_table(found: Sequence[dict[str, Any]]) -> str:
    lines = ["### Targets", "", "| target | limit | measured | |", "|---|--:|--:|---|"]
    for target in found:
        value = "" if target["value"] is None else f"{target['value']:,.4g}"
        verdict = {True: "reached", False: "**missed**", None: "not measured"}[target["reached"]]
        lines.append(f"| {target['target']} | {target['limit']:,.4g} | {value} | {verdict} |")
    return "\n".join(lines)


def write_page(page: Path, text: str, begin: str = BEGIN, end: str = END) -> None:
    """Put the tables between the marks."""
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    _, _, after = rest.partition(end)
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")


# -- command line -------------------------------------------------------------------------------------------


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU per streamed chunk, import time and memory of the client.")
    parser.add_argument("--quick", action="store_true", help="a short run, which leaves the published figures alone")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    parser.add_argument("--rounds", type=int, help="of each measurement (7; quick: 3)")
    parser.add_argument("--laps", type=int, help="of the processes of one round (8; quick: 2)")
    parser.add_argument("--paced-chunks", type=int, help="(2000; quick: 500)")
    parser.add_argument("--burst-chunks", type=int, help="(20000; quick: 5000)")
    parser.add_argument("--memory-chunks", type=int, help="(1000000; quick: 100000; 0: not measured)")
    parser.add_argument("--connections", type=int, help="(10000; quick: 1000)")
    parser.add_argument("--import-rounds", type=int, help="(11; quick: 3; 0: not measured)")
    parser.add_argument("--clients", help=f"some of {','.join(CLIENTS)}")
    parser.add_argument("--output", type=Path, help="write the JSON there, and no page")
    arguments = parser.parse_args(given)
    defaults = {
        "rounds": (7, 3),
        "laps": (8, 2),
        "paced_chunks": (2000, 500),
        "burst_chunks": (20_000, 5_000),
        "memory_chunks": (1_000_000, 100_000),
        "connections": (10_000, 1_000),
        "import_rounds": (11, 3),
    }
    for name, (full, quick) in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, quick if arguments.quick else full)
    arguments.clients = arguments.clients.split(",") if arguments.clients else list(CLIENTS)
    unknown = set(arguments.clients) - set(CLIENTS)
    if unknown:
        parser.error(f"no such clients: {', '.join(sorted(unknown))}")
    return arguments


def main(given: Sequence[str] | None = None) -> int:
    """Measure, write, print. 0 whatever the figures are, except with `--check`."""
    options = _arguments(given)
    figures: dict[str, Any] = {"machine": describe_machine(), "versions": versions(), "rounds": options.rounds}
    figures["pace"] = PACE
    with bench() as there:
        figures["paced"] = measure_cpu(
            there, options.clients, "paced", options.paced_chunks, options.rounds, options.laps
        )
        figures["burst"] = measure_cpu(there, options.clients, "burst", options.burst_chunks, options.rounds, 1)
        if options.memory_chunks:
            figures["memory"] = measure_memory(there, options.memory_chunks, options.connections)
    if options.import_rounds:
        figures["imports"] = measure_imports(options.import_rounds)
    figures["targets"] = targets(figures)
    print(tables(figures))
    for mode in ("paced", "burst"):
        for client, package in figures[mode]["skipped"].items():
            print(f"{mode}: {client} was not measured, since {package} is not installed", file=sys.stderr)
    if options.output is not None:
        options.output.write_text(json.dumps(figures, indent=1) + "\n")
    elif not options.quick:
        DOCS.joinpath("benchmarks").mkdir(exist_ok=True)
        DOCS.joinpath("benchmarks", "client.json").write_text(json.dumps(figures, indent=1) + "\n")
        write_page(DOCS / "benchmarks.md", tables(figures))
    missed = [target["target"] for target in figures["targets"] if target["reached"] is False]
    if missed:
        print(f"\nmissed: {'; '.join(missed)}")
    return 1 if missed and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
