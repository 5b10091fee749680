"""What supervision costs, and what a warm restart saves: `make bench-fleet`, or `python benchmarks/fleet.py`.

1. A fleet of idle instances: CPU of the supervising process as a share of one core, and the memory of it and of the
   guards (proportional set size where the system tells it: pages that several of them share count once).
2. A planned restart with and without saved slots, side by side: time to first token of the same long prompt after it.

Writes `docs/benchmarks/fleet.json` and the tables between its marks in `docs/benchmarks.md`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
sys.path.insert(0, str(ROOT))

BEGIN, END = "<!-- fleet: begin -->", "<!-- fleet: end -->"
CPU_LIMIT = 0.01
"""Share of one core."""
MEMORY_LIMIT = 60 << 20


def memory(process: psutil.Process) -> int:
    """Proportional set size in bytes, or what comes closest."""
    info = process.memory_full_info()
    return int(getattr(info, "pss", 0) or info.uss)


def idle(instances: int, seconds: float) -> dict[str, Any]:
    """CPU and memory of a supervisor whose instances do nothing."""
    options = ["--no-gateway", "--json", "--instances", str(instances), "--port", "0"]
    command = [sys.executable, "-m", "llamastream", "serve", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fleet:
        assert fleet.stdout is not None
        while '"event":"ready"' not in fleet.stdout.readline().replace(" ", ""):
            pass
        process = psutil.Process(fleet.pid)
        guards = process.children()
        family = [process, *guards]
        time.sleep(5.0)  # what the start leaves to do
        before = sum(sum(each.cpu_times()[:2]) for each in family)
        began = time.monotonic()
        time.sleep(seconds)
        spent = sum(sum(each.cpu_times()[:2]) for each in family) - before
        elapsed = time.monotonic() - began
        found = {
            "instances": instances,
            "seconds": elapsed,
            "cpu_share": spent / elapsed,
            "supervisor_bytes": memory(process),
            "guards_bytes": sum(map(memory, guards)),
            "guards": len(guards),
        }
        fleet.terminate()
    return found


def restarts(repeats: int, tokens: int) -> list[dict[str, Any]]:
    """The same prompt before and after planned restarts, warm and cold in turn."""
    from llamastream import EngineOptions, Fleet, FleetSettings, StreamingClient
    from llamastream.events import FleetEvent, SlotsRestored
    from tools.faults.large_model import write_large_model

    events: list[FleetEvent] = []
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="llamastream-bench-") as directory:
        model = Path(directory) / "large.gguf"
        write_large_model(model, width=768, layers=12)
        options = EngineOptions(model=str(model), parallel=1, ctx_size=8192)
        for number in range(repeats):
            for warm in (True, False) if number % 2 else (False, True):
                events.clear()
                with (
                    Fleet(options, settings=FleetSettings(warm=warm), listeners=[events.append]) as fleet,
                    StreamingClient(fleet) as client,
                ):
                    prompt = "word " * tokens
                    cold = client.complete(prompt, max_tokens=4)
                    began = time.monotonic()
                    assert fleet.restart("large-0").done.result()
                    away = time.monotonic() - began
                    again = client.complete(prompt, max_tokens=4)
                    restored = [event for event in events if isinstance(event, SlotsRestored)]
                    found.append(
                        {
                            "warm": warm,
                            "prompt_tokens": cold.stats.prompt_tokens,
                            "before_s": cold.stats.time_to_first_token,
                            "after_s": again.stats.time_to_first_token,
                            "cached_tokens": again.stats.cached_tokens,
                            "restart_s": away,
                            "saved_bytes": sum(event.size for event in restored),
                        }
                    )
                    print(f"  {'warm' if warm else 'cold'}: first token after {found[-1]['after_s']:.2f} s", flush=True)
    return found


def tables(figures: dict[str, Any]) -> str:
    """The figures as Markdown."""
    rest = figures["idle"]
    total = rest["supervisor_bytes"] + rest["guards_bytes"]
    lines = [
        f"Supervision of {rest['instances']} idle instances, over {rest['seconds']:.0f} s:",
        "",
        "| | measured | limit |",
        "|---|--:|--:|",
        f"| CPU, share of one core | {rest['cpu_share']:.2%} | {CPU_LIMIT:.0%} |",
        f"| memory of the supervisor | {rest['supervisor_bytes'] / 2**20:.1f} MiB | |",
        f"| memory of {rest['guards']} guards | {rest['guards_bytes'] / 2**20:.1f} MiB | |",
        f"| together | {total / 2**20:.1f} MiB | {MEMORY_LIMIT >> 20} MiB |",
        "",
        "A planned restart, and the same prompt after it (medians):",
        "",
        "| slots | prompt tokens | of them cached | first token before, s | and after, s | restart, s | saved, MiB |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for warm in (True, False):
        rows = [row for row in figures["restarts"] if row["warm"] is warm]

        def median(name: str, rows: list[dict[str, Any]] = rows) -> float:
            return statistics.median(float(row[name] or 0) for row in rows)

        lines.append(
            f"| {'saved and restored' if warm else 'not saved'} | {median('prompt_tokens'):.0f} "
            f"| {median('cached_tokens'):.0f} | {median('before_s'):.2f} | {median('after_s'):.2f} "
            f"| {median('restart_s'):.2f} | {median('saved_bytes') / 2**20:.1f} |"
        )
    return "\n".join(lines)


def publish(figures: dict[str, Any], docs: Path) -> None:
    """Write the JSON, and the tables into the page."""
    (docs / "benchmarks" / "fleet.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    page = docs / "benchmarks.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{tables(figures)}\n\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Measure, print, publish."""
    parser = argparse.ArgumentParser(description="What supervision costs, and what warm restarts save.")
    parser.add_argument("--instances", type=int, default=8, help="idle instances (8)")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long they are idle (60)")
    parser.add_argument("--repeats", type=int, default=3, help="restarts of each kind (3)")
    parser.add_argument("--quick", action="store_true", help="a short run that changes nothing in docs")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a limit is missed")
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "idle": idle(options.instances, 5.0 if options.quick else options.seconds),
        "restarts": restarts(1 if options.quick else options.repeats, 300 if options.quick else 1500),
    }
    print(tables(figures))
    if not options.quick:
        publish(figures, DOCS)
    rest = figures["idle"]
    missed = rest["cpu_share"] > CPU_LIMIT or rest["supervisor_bytes"] + rest["guards_bytes"] > MEMORY_LIMIT
    if options.check and missed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
