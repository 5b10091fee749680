"""Break real streams in every way we know and count what came of it: `make faults`, or `python -m tools.faults`.

Writes the tables between the marks in `docs/reliability.md`, and `docs/reliability.json`.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import sys
import time

from tools.faults import page
from tools.faults.rows import Row, Table, workspace


def main() -> int:
    parser = argparse.ArgumentParser(prog="make faults", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short run, every tenth place, that writes nothing")
    parser.add_argument("--rules", action="store_true", help="write the table of rules only")
    parser.add_argument("--only", nargs="*", default=[], help="run some parts, and write nothing (see rows.Table)")
    arguments = parser.parse_args()
    if arguments.rules:
        text = page.PAGE.read_text(encoding="utf-8")
        page.PAGE.write_text(page.replaced(text, "rules", page.rule_table()), encoding="utf-8")
        return 0
    logging.getLogger("llamastream").setLevel(logging.ERROR)  # each recovery would be a warning
    started = time.monotonic()
    rows: list[Row] = []
    try:
        with workspace() as directory:
            for row in Table(10 if arguments.quick else 1, directory, arguments.only).rows():
                rows.append(row)
                _tell(row, time.monotonic() - started)
    except KeyboardInterrupt:  # whatever was started has ended with its `with` block
        print("interrupted: nothing is written", file=sys.stderr)
        return 130
    if not arguments.quick and not arguments.only:
        page.write(rows, time.monotonic() - started, f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}")
    return 0 if all(row.good for row in rows) else 1


def _tell(row: Row, seconds: float) -> None:
    mark = "ok " if row.good else "BAD"
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(row.kinds.items()))
    print(
        f"{seconds:6.0f} s  {mark} {row.survived:5} of {row.tried:5}  {row.longest_gap:7.3f} s  "
        f"{row.group}: {row.fault} ({kinds})",
        flush=True,
    )
    for detail in row.details[:5]:
        print(f"            {detail}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
