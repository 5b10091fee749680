"""Records pairs of equal runs for the test of `llamastream bench --compare`: `python benchmarks/record_runs.py FILE`.

Both runs of a pair measure the same embedded engine with the demo model, and take turns lap by lap, so that whatever
else happens on the machine meets both alike. Every pair is kept, whatever came out.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from client import describe_machine, say

from llamastream.bench.loop import run
from llamastream.bench.measure import Measurement, run_in_turn
from llamastream.bench.report import Report
from llamastream.bench.settings import BenchSettings
from llamastream.engine import EngineOptions, launch
from llamastream.settings import ClientSettings

ABOUT = (
    "Pairs of equal runs of `llamastream bench` on the embedded engine with the demo model (one thread, one request at "
    "a time, {prompt} prompt tokens, {output} answered), made by benchmarks/record_runs.py: {repeats} repeats of "
    "{seconds} seconds each, in which the two runs of a pair took turns, on {cores} cores of {cpu}, {system}, beside "
    "other programs. For each measure, for each repeat, the seconds of its requests. Every pair of the recording is "
    "here."
)


def record(pairs: int, settings: BenchSettings) -> list[tuple[Report, Report]]:
    """The pairs.

    Raises:
        RuntimeError: a request failed.
    """
    found = []
    with launch(EngineOptions(kind="embedded", threads=1)) as engine:
        for number in range(pairs):
            say(f"pair {number + 1} of {pairs}")
            first, second = (Measurement(ClientSettings(base_url=engine.url), settings) for _ in range(2))
            run(partial(run_in_turn, (first, second)))
            found.append((first.report(), second.report()))
            if any(result.failed for report in found[-1] for result in report.loads):
                raise RuntimeError(first.first_failure or second.first_failure)
    say("")
    return found


def rounded(report: Report) -> dict[str, list[list[float]]]:
    """What a comparison looks at, in three digits."""
    measures = report.loads[0].per_repeat
    return {name: [[float(f"{value:.3g}") for value in one] for one in repeats] for name, repeats in measures.items()}


def main() -> None:
    """Record, and write the file."""
    parser = argparse.ArgumentParser(description="Record pairs of equal runs.")
    parser.add_argument("file", type=Path)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=150)
    parser.add_argument("--seconds", type=float, default=0.1)
    options = parser.parse_args()
    settings = BenchSettings(
        concurrency="1",
        prompt_tokens="64",
        output_tokens="64",
        repeats=options.repeats,
        seconds=options.seconds,
    )
    found = record(options.pairs, settings)
    options.file.write_text(as_json(settings, found), encoding="utf-8")


def as_json(settings: BenchSettings, pairs: list[tuple[Report, Report]]) -> str:
    """The file: a line for each run."""
    machine: dict[str, Any] = describe_machine()
    about = ABOUT.format(
        prompt=settings.prompt_tokens,
        output=settings.output_tokens,
        repeats=settings.repeats,
        seconds=settings.seconds,
        **machine,
    )
    lines = [
        ",\n".join(json.dumps(rounded(report), separators=(",", ":")) for report in (first, second))
        for first, second in pairs
    ]
    return f'{{"about": {json.dumps(about)},\n"pairs": [\n' + ",\n".join(f"[{line}]" for line in lines) + "\n]}\n"


if __name__ == "__main__":
    main()
