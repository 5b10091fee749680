"""Break whole servers under supervision: `make faults-fleet`, or `python -m tools.faults.fleet`.

Writes the table between the marks `fleet` in `docs/reliability.md`, and `docs/reliability-fleet.json`.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
import statistics
import sys
import time
from collections.abc import Sequence

import msgspec

from tools.faults import page
from tools.faults.fleet_rows import ROWS, FleetRow
from tools.faults.rows import workspace

FIGURES = page.DOCS / "reliability-fleet.json"


class Figures(msgspec.Struct):
    """What is written: date and length (seconds) of the run, cores of the machine, rows."""

    date: str
    seconds: int
    cores: int
    rows: list[FleetRow]


def table(found: Sequence[FleetRow], seconds: float, date: str) -> str:
    """The rows as Markdown."""
    where = f"{os.cpu_count()} cores, {platform.system()}, CPython {platform.python_version()}"
    lines = [
        f"Measured on {date} with the embedded server on {where}, in {max(1, round(seconds / 60))} minutes.",
        "",
        "| fault | wanted | times tried | right | seconds: median | longest | notes |",
        "|---|---|--:|--:|--:|--:|---|",
    ]
    for row in found:
        median = f"{statistics.median(row.seconds):.2f}" if row.seconds else "–"
        longest = f"{max(row.seconds):.2f}" if row.seconds else "–"
        lines.append(
            f"| {row.fault} | {row.wanted} | {row.tried:,} | {row.right:,} | {median} | {longest} | {row.notes} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults-fleet", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run that writes nothing")
    parser.add_argument("--only", nargs="*", default=list(ROWS), choices=list(ROWS), help="measure some rows anew")
    arguments = parser.parse_args()
    logging.getLogger("llamastream").setLevel(logging.ERROR)  # each recovery would be a warning
    started = time.monotonic()
    found: list[FleetRow] = []
    try:
        with workspace() as directory:
            for name in arguments.only:
                row = ROWS[name](directory, 10 if arguments.quick else 1)
                found.append(row)
                mark = "ok " if row.good else "BAD" if row.tried else "-- "
                print(
                    f"{time.monotonic() - started:6.0f} s  {mark} {row.right:5} of {row.tried:5}  {row.fault}"
                    f"  {[round(each, 2) for each in row.seconds[:5]]} {row.notes}",
                    flush=True,
                )
                for detail in row.details[:5]:
                    print(f"            {detail}", flush=True)
    except KeyboardInterrupt:  # whatever was started has ended with its `with` block
        print("interrupted: nothing is written", file=sys.stderr)
        return 130
    seconds = time.monotonic() - started
    if not arguments.quick:
        date = f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}"
        if len(arguments.only) < len(ROWS):
            before = msgspec.json.decode(FIGURES.read_bytes(), type=Figures)
            seconds += before.seconds
            anew = {row.fault: row for row in found}
            found = [anew.get(row.fault, row) for row in before.rows]
        text = page.PAGE.read_text(encoding="utf-8")
        page.PAGE.write_text(page.replaced(text, "fleet", table(found, seconds, date)), encoding="utf-8")
        figures = Figures(date, round(seconds), os.cpu_count() or 1, found)
        FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
    return 0 if all(row.good or not row.tried for row in found) else 1


if __name__ == "__main__":
    sys.exit(main())
