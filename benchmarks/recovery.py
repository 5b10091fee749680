"""What recovery costs a stream to which nothing happens: `make bench-recovery`, or `python benchmarks/recovery.py`.

CPU per chunk with `recovery="full"` and with `recovery="off"`, in pairs: each pair is measured directly one after the
other, in an order that is drawn anew, each half in a fresh process. What is reported is the mean of the differences
with its 95 % confidence interval (Student's t). The requests have a `max_tokens`, so that the generation is held under
an id, written down and dropped at the end, which is the dearer case.

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
from typing import Any

from client import DOCS, bench

BEGIN, END = "<!-- recovery: begin -->", "<!-- recovery: end -->"
SEED = 20260102
TITLES = {
    "llamastream": "sync",
    "llamastream-asyncio": "asyncio",
    "llamastream-uvloop": "uvloop",
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


def measure(pairs: int, chunks: dict[str, int]) -> list[dict[str, Any]]:
    """All pairs, with progress on the terminal."""
    draw = random.Random(SEED)
    found = []
    with bench() as there:
        for client, title in TITLES.items():
            for mode, count in chunks.items():
                differences, off = [], []
                for number in range(pairs):
                    print(f"\r{title}, {mode}: pair {number + 1} of {pairs} ", end="", flush=True)
                    modes = ["full", "off"]
                    draw.shuffle(modes)
                    cost = {each: there.client(client, mode, count, recovery=each)["cpu_us"] for each in modes}
                    differences.append(cost["full"] - cost["off"])
                    off.append(cost["off"])
                mean, low, high = interval(differences)
                print(f"\r{title}, {mode}: {mean:+.2f} µs a chunk ({low:+.2f} to {high:+.2f})          ")
                found.append(
                    {
                        "client": title,
                        "mode": mode,
                        "pairs": pairs,
                        "chunks": count,
                        "off_us": statistics.median(off),
                        "difference_us": mean,
                        "low_us": low,
                        "high_us": high,
                    }
                )
    return found


def table(found: Sequence[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    lines = [
        "| client | mode | pairs | without recovery, µs a chunk | recovery adds, µs | 95 % confidence interval |",
        "|---|---|--:|--:|--:|--:|",
    ]
    lines += [
        f"| {row['client']} | {row['mode']} | {row['pairs']} | {row['off_us']:.2f} | {row['difference_us']:+.2f} "
        f"| {row['low_us']:+.2f} to {row['high_us']:+.2f} |"
        for row in found
    ]
    return "\n".join(lines)


def publish(found: Sequence[dict[str, Any]], docs: Path) -> None:
    """Write the JSON, and the table into the page."""
    (docs / "benchmarks" / "recovery.json").write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    page = docs / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(description="CPU that recovery costs a stream to which nothing happens.")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of runs (10)")
    parser.add_argument("--quick", action="store_true", help="a short run that changes nothing in docs")
    parser.add_argument("--check", action="store_true", help=f"exit with 1 if a mean is above {LIMIT_US} µs")
    options = parser.parse_args()
    chunks = {"paced": 300, "burst": 5000} if options.quick else {"paced": 1500, "burst": 200_000}
    found = measure(max(2, 2 if options.quick else options.pairs), chunks)
    if not options.quick:
        publish(found, DOCS)
    if options.check and any(row["difference_us"] > LIMIT_US for row in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
