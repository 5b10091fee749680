"""Who waits how long for a first token, by how requests are routed: `make bench-routing`, or `python
benchmarks/routing.py`.

1. Speeds: how quickly a real server of four slots reads, and generates for one to four at a time (`routing_speeds.py`).
2. Simulated: llama-servers of these speeds on a simulated clock, 3, 30 and 1,000 of them, behind the gateway's own
   scheduler (`routing_simulation.py`).
3. Real: three llama-servers with a model of random weights, behind a real gateway, with conversations over HTTP.
4. A decision: what it costs with 1,000 instances.

Writes `docs/benchmarks/routing.json` and the tables between its marks in `docs/benchmarks.md`. `--part` does one of
them, and leaves the figures of the others as they are.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import routing_real
import routing_speeds
from routing_server import Speed
from routing_simulation import Simulation, Workload

from llamastream.fleet import behind
from llamastream.policy.prefixes import Prompt, chained
from llamastream.policy.routing import InstanceFacts, Question, Report, Router, Strategy
from llamastream.policy.scheduling import Scheduler, Ticket

DOCS = Path(__file__).resolve().parent.parent / "docs"
BEGIN, END = "<!-- routing: begin -->", "<!-- routing: end -->"
STRATEGIES: tuple[Strategy, ...] = ("expected", "least-busy", "prefix-only", "round-robin", "affinity")
ORIGINAL: tuple[Strategy, ...] = ("expected", "least-busy", "prefix-only", "round-robin")

SLOTS = 4
KEPT = 65536
"""Tokens that the server's own cache in memory holds besides its slots: 8 GiB, its default, of 128 KiB each, as a model
of 8 billion parameters needs them."""
WORKLOADS = {
    "1.5 conversations for each slot": Workload(1.5, system=1000, question=(50, 300), answer=(30, 120), turns=(6, 14)),
    "3 conversations for each slot": Workload(3.0, system=1000, question=(50, 300), answer=(30, 120), turns=(6, 14)),
}
BUSY = 0.3
"""Of the slots, if every prompt were in the cache but for its new text: what decides how long people think. So few that
there is no strategy by which the servers cannot keep up."""
REQUESTS = {3: 1500, 30: 3000, 1000: 30000}
DECISION_LIMIT = 50e-6
CLOSE = 1.05
FEWER = 0.4


def percentile(values: list[float], share: float) -> float:
    """Of the values, the one below which so many are."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def simulated(
    strategy: Strategy, instances: int, workload: Workload, speed: Speed, seed: int, requests: int
) -> dict[str, float]:
    """One run."""
    run = Simulation(
        strategy,
        instances=instances,
        slots=SLOTS,
        speed=speed,
        kept=KEPT,
        similarity=behind.SIMILARITY,
        workload=workload,
        seed=seed,
    )
    run.run(requests, warm_up=requests // 4)
    ratios = [real / expected for expected, real in run.predicted if expected > 0]
    return {
        "p50": percentile(run.first_tokens, 0.5),
        "p95": percentile(run.first_tokens, 0.95),
        "evaluated": run.evaluated / run.prompted,
        "expectation": statistics.median(ratios),
    }


def paced(workload: Workload, speed: Speed) -> Workload:
    """The workload with pauses after which servers of this speed are as busy as they are to be."""
    new, answer = sum(workload.question) / 2, sum(workload.answer) / 2
    service = new / speed.prefill[0] + answer / speed.decode[-1]
    return replace(workload, think=service * (workload.per_slot / BUSY - 1))


def simulate(speed: Speed, repeats: int, sizes: list[int], quick: bool) -> list[dict[str, Any]]:
    """All strategies, side by side, for these numbers of instances and all workloads."""
    rows: list[dict[str, Any]] = []
    for name, bare in WORKLOADS.items():
        workload = paced(bare, speed)
        for instances in sizes:
            if instances > 30 and workload.per_slot > 2:
                continue
            requests = REQUESTS.get(instances, 100 * instances) // (5 if quick else 1)
            for strategy in STRATEGIES:
                if strategy == "prefix-only" and instances > 30:
                    continue  # all wait for one instance, and it looks at every instance for every request
                runs = [simulated(strategy, instances, workload, speed, seed, requests) for seed in range(repeats)]
                row = {"workload": name, "instances": instances, "strategy": strategy, "runs": runs}
                rows.append(row)
                print(f"{name}, {instances} instances: {line(row)}", flush=True)
    return rows


def decision(repeats: int = 7) -> dict[str, float]:
    """Seconds of CPU of one choice with 1,000 instances, and of one request through the whole scheduler."""
    router = Router("expected")
    router.update(InstanceFacts(f"i{number}", SLOTS, ours=True) for number in range(1000))
    for number in range(1000):
        router.looked(number, range(SLOTS), 0.0)
    scheduler = Scheduler(router, 1 << 16)

    def prompt(number: int, parts: int) -> Prompt:
        pieces: list[tuple[object, int]] = [("system", 4000)]
        return Prompt(*chained([*pieces, *(((number, part), 1000) for part in range(parts))]), session=number)

    def through(asked: Prompt, now: float) -> None:
        ticket = Ticket(asked)
        ticket.placeable = True
        scheduler.submit(ticket, now)
        scheduler.dispatch(now)
        scheduler.finish(ticket, Report(1.0, asked.characters // 4, 0, 50, 100.0), now + 0.1)

    for number in range(4000):
        through(prompt(number % 2000, 6), float(number))
    asked = [prompt(number, 7) for number in range(1000)]
    choices, requests = [], []
    for lap in range(repeats):
        began = time.process_time()
        for each in asked:
            router.choose(Question(each, 5000.0))
        middle = time.process_time()
        for each in asked:
            through(each, 6000.0 + lap)
        choices.append((middle - began) / len(asked))
        requests.append((time.process_time() - middle) / len(asked))
    return {"choice": statistics.median(choices), "request": statistics.median(requests)}


def median(row: dict[str, Any], field: str) -> float:
    """Of all runs."""
    return float(statistics.median(run[field] for run in row["runs"]))


def line(row: dict[str, Any]) -> str:
    """A row in a few words."""
    return (
        f"{row['strategy']}: p50 {median(row, 'p50'):.3f} s, p95 {median(row, 'p95'):.3f} s, "
        f"{median(row, 'evaluated'):.1%} of the prompt tokens evaluated"
    )


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str, bool]]:
    """What of the targets was reached: where, what, whether."""
    found = []
    for where in dict.fromkeys((row["workload"], row["instances"]) for row in rows):
        here = {row["strategy"]: row for row in rows if (row["workload"], row["instances"]) == where}
        ours = here["expected"]
        rivals = [here[name] for name in ("least-busy", "prefix-only") if name in here]
        for field in ("p50", "p95"):
            ratio = median(ours, field) / min(median(each, field) for each in rivals)
            names = " and ".join(each["strategy"] for each in rivals)
            better = f"the better of {names}" if len(rivals) > 1 else names
            what = f"{field} ÷ that of {better}: {ratio:.2f}"
            found.append((f"{where[0]}, {where[1]} instances", what, ratio <= CLOSE))
        fewer = 1 - median(ours, "evaluated") / median(here["round-robin"], "evaluated")
        what = f"{fewer:.0%} fewer prompt tokens evaluated than with round-robin"
        found.append((f"{where[0]}, {where[1]} instances", what, fewer >= FEWER))
    return found


def table(rows: list[dict[str, Any]]) -> list[str]:
    """The rows as Markdown, with the extremes of the runs."""

    def spread(row: dict[str, Any], field: str) -> str:
        values = [run[field] for run in row["runs"]]
        return f"{median(row, field):.2f} ({min(values):.2f}–{max(values):.2f})"

    lines = [
        "| instances | routing | first token, p50, s | p95, s | prompt tokens evaluated | real ÷ expected |",
        "|--:|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        name = f"**{row['strategy']}**" if row["strategy"] == "expected" else row["strategy"]
        lines.append(
            f"| {row['instances']} | {name} | {spread(row, 'p50')} | {spread(row, 'p95')} "
            f"| {median(row, 'evaluated'):.1%} | {median(row, 'expectation'):.2f} |"
        )
    return lines


def report(found: dict[str, Any]) -> str:
    """All figures as Markdown."""
    lines: list[str] = []
    if "speeds" in found:
        prefill, decode = (", ".join(f"{each:.0f}" for each in found["speeds"][name]) for name in ("prefill", "decode"))
        lines.append(
            f"Speeds of a real server, for the simulation: where 1, 2, ... slots are at it, it reads {prefill} tokens "
            f"of prompts a second altogether, and generates {decode} for each answer."
        )
        lines.append("")
    for part, title in (("simulated", "Simulated"), ("real", "Real")):
        for workload in dict.fromkeys(row["workload"] for row in found.get(part, ())):
            rows = [row for row in found[part] if row["workload"] == workload]
            lines += [f"{title}, {workload}; medians of {len(rows[0]['runs'])} runs, with the extremes:", ""]
            lines += [*table(rows), ""]
        if part in found:
            lines += ["| where | target | |", "|---|---|---|"]
            lines += [
                f"| {where} | {what} | {'reached' if reached else 'missed'} |"
                for where, what, reached in verdicts(found[part])
            ] + [""]
    if "decision" in found:
        choice, request = found["decision"]["choice"] * 1e6, found["decision"]["request"] * 1e6
        reached = "reached" if found["decision"]["choice"] <= DECISION_LIMIT else "missed"
        lines += [
            f"With 1,000 instances a choice takes {choice:.0f} µs of CPU (target 50: {reached}).",
            f"A request altogether, with its place in line, the index and the account that is kept: {request:.0f} µs.",
            "",
        ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(description="Who waits how long for a first token, by how requests are routed.")
    parser.add_argument("--part", choices=["speeds", "simulated", "real", "decision"], action="append")
    parser.add_argument("--instances", type=int, nargs="+", default=[3, 30, 1000], help="in the simulation")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="a short run that changes nothing in docs")
    options = parser.parse_args()
    file = DOCS / "benchmarks" / "routing.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    if options.quick:
        known = {name: known[name] for name in ("speeds",) if name in known}
    parts = options.part or ["speeds", "simulated", "real", "decision"]
    repeats = 2 if options.quick else options.repeats
    if "speeds" in parts or ("simulated" in parts and "speeds" not in known):
        known["speeds"] = routing_speeds.measure(SLOTS, 1 if options.quick else 5)
    if "simulated" in parts:
        sizes = [each for each in options.instances if each <= 30 or not options.quick]
        rows = [row for row in known.get("simulated", ()) if row["instances"] not in sizes]
        measured = known["speeds"]
        speed = Speed(tuple(measured["prefill"]), tuple(measured["decode"]))
        rows += simulate(speed, repeats, sizes, options.quick)
        known["simulated"] = sorted(rows, key=lambda row: (row["workload"], row["instances"]))
    if "decision" in parts:
        known["decision"] = decision()
    if "real" in parts:
        known["real"] = routing_real.compare(ORIGINAL, repeats, quick=options.quick)
    text = report(known)
    print(text)
    if not options.quick:
        file.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        page = DOCS / "benchmarks.md"
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        _, _, after = rest.partition(END)
        page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
