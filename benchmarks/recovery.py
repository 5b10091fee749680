"""What recovery costs a stream to which nothing happens: `make bench-recovery`, or `python benchmarks/recovery.py`.

CPU with `recovery="full"` less that with `recovery="off"`, in pairs. A pair is one fresh process that reads streams
both ways, finely mixed (see pair.py); its figure is the difference of the two means. What is reported is the mean of
all pairs with its 95 % confidence interval (Student's t): for each chunk, when they come one by one and when they come
all at once, and for a whole stream. The requests have a `max_tokens`, so that the generation is held under an id,
written down and dropped at the end, which is the dearer case; that is done once for each stream, however long it is.

Writes `docs/benchmarks/recovery.json` and the table between its marks in `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from client import DOCS, PACE, Bench, bench, say, write_page
from origin import expected_characters
from pair import SHORT

BEGIN, END = "<!-- recovery: begin -->", "<!-- recovery: end -->"
SEED = 20260102
TITLES = {
    "llamastream": "sync",
    "llamastream-asyncio": "asyncio",
    "llamastream-uvloop": "uvloop",
}
KINDS = {
    "paced": "a chunk, one at a time",
    "burst": "a chunk, many at once",
    "stream": "a whole stream of 3 chunks",
}
LIMIT_US = 1.0
"""So much may recovery cost per chunk."""

# Two-sided 95 % quantiles of Student's t, by degrees of freedom (any table of statistics has them).
_T95 = {
    1: 12.706,
    2: 4.303,
    3: 3.182,
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    14: 2.145,
    19: 2.093,
    29: 2.045,
}


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """Mean of paired differences, and the bounds of its 95 % confidence interval."""
    mean = statistics.fmean(differences)
    freedom = len(differences) - 1
    quantile = _T95[max(known for known in _T95 if known <= freedom)]  # the next smaller: a wider interval
    half = quantile * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean, mean - half, mean + half


class Sizes(NamedTuple):
    """What a pair reads with each mode of recovery: how many streams, and how many chunks of each."""

    paced: tuple[int, int]
    burst: tuple[int, int]
    short: int


def measure(clients: Sequence[str], pairs: int, sizes: Sizes) -> list[dict[str, Any]]:
    """All pairs, with progress on the terminal."""
    draw = random.Random(SEED)
    found = []
    with bench() as there:
        for client in clients:
            means = []
            for number in range(pairs):
                say(f"{TITLES[client]}: pair {number + 1} of {pairs}")
                means.append(pair(there, client, sizes, draw.choice([0, 1])))
            say("")
            for kind in KINDS:
                row = summary([one[kind] for one in means])
                found.append({"client": TITLES[client], "kind": kind, "pairs": pairs, **sizes._asdict(), **row})
                print(line(found[-1]), flush=True)
    return found


def pair(there: Bench, client: str, sizes: Sizes, first: int) -> dict[str, dict[str, float]]:
    """One process's means in microseconds, by kind of cost and mode of recovery.

    Raises:
        RuntimeError: a stream was not what was sent.
    """
    found = there.run("pair.py", client=client, rate=PACE, first=first, **sizes._asdict())
    for kind, chunks in (("paced", sizes.paced[1]), ("burst", sizes.burst[1]), ("stream", SHORT)):
        for read in found["read"][kind]:
            if read != [chunks, expected_characters(chunks)]:
                raise RuntimeError(f"{client} did not read what was sent: {read} of {chunks} chunks, {kind}")
    return {kind: {mode: statistics.fmean(us) for mode, us in both.items()} for kind, both in found["us"].items()}


def summary(means: Sequence[dict[str, float]]) -> dict[str, float]:
    """What recovery adds, over all pairs, in microseconds."""
    mean, low, high = interval([one["full"] - one["off"] for one in means])
    off = statistics.fmean(one["off"] for one in means)
    return {"off_us": off, "difference_us": mean, "low_us": low, "high_us": high}


def table(found: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| client | what | pairs | without recovery, µs | recovery adds, µs | 95 % confidence interval |",
        "|---|---|--:|--:|--:|--:|",
    ]
    return "\n".join(lines + [line(row) for row in found])


def line(row: dict[str, Any]) -> str:
    """One line of the table."""
    digits = 0 if row["kind"] == "stream" else 2
    return (
        f"| {row['client']} | {KINDS[row['kind']]} | {row['pairs']} | {row['off_us']:.{digits}f} "
        f"| {row['difference_us']:+.{digits}f} | {row['low_us']:+.{digits}f} to {row['high_us']:+.{digits}f} |"
    )


def publish(found: Sequence[dict[str, Any]], docs: Path) -> None:
    """Write the JSON, and the table into the page."""
    (docs / "benchmarks" / "recovery.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    write_page(docs / "benchmarks.md", table(found), BEGIN, END)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="CPU that recovery costs a stream to which nothing happens.")
    parser.add_argument("--pairs", type=int, help="pairs, each a process (10; quick: 3)")
    parser.add_argument("--paced-chunks", type=int, help="of each mode in a pair (10000; quick: 500)")
    parser.add_argument("--burst-chunks", type=int, help="of each mode in a pair (400000; quick: 40000)")
    parser.add_argument("--streams", type=int, help="short streams of each mode in a pair (50; quick: 10)")
    parser.add_argument("--clients", help=f"some of {','.join(TITLES)}")
    parser.add_argument("--quick", action="store_true", help="a short run that changes nothing in docs")
    parser.add_argument("--output", type=Path, help="write the JSON there, and no page")
    parser.add_argument(
        "--check", action="store_true", help=f"exit with 1 if an interval of a chunk's cost ends above {LIMIT_US} µs"
    )
    options = parser.parse_args()
    defaults = {
        "pairs": (10, 3),
        "paced_chunks": (10_000, 500),
        "burst_chunks": (400_000, 40_000),
        "streams": (50, 10),
    }
    for name, (full, quick) in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
        if getattr(options, name) < 2:
            parser.error(f"--{name.replace('_', '-')} must be 2 or more")
    options.clients = options.clients.split(",") if options.clients else list(TITLES)
    unknown = set(options.clients) - set(TITLES)
    if unknown:
        parser.error(f"no such clients: {', '.join(sorted(unknown))}; there are {', '.join(TITLES)}")
    return options


def in_parts(chunks: int, most: int) -> tuple[int, int]:
    """So many chunks, more or less, as streams of `most` at most."""
    streams = max(1, round(chunks / most))
    return streams, max(2, chunks // streams)


def main() -> None:
    """Measure, print, publish."""
    options = _arguments()
    sizes = Sizes(in_parts(options.paced_chunks, 250), in_parts(options.burst_chunks, 20_000), options.streams)
    found = measure(options.clients, options.pairs, sizes)
    if options.output is not None:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    elif not options.quick:
        publish(found, DOCS)
    if options.check and any(row["high_us"] > LIMIT_US for row in found if row["kind"] != "stream"):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
