"""docs/reliability.md: the generated parts, which are the table of rules and the table of measurements."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from llamastream.policy.recovery import RULES
from tools.faults.rows import Row

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE, FIGURES = DOCS / "reliability.md", DOCS / "reliability.json"


def marks(name: str) -> tuple[str, str]:
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def between(text: str, name: str) -> str:
    """What stands between two marks."""
    begin, end = marks(name)
    return text.partition(begin)[2].partition(end)[0].strip("\n")


def replaced(text: str, name: str, part: str) -> str:
    """The text with something else between two marks."""
    begin, end = marks(name)
    before, found, rest = text.partition(begin)
    _, also, after = rest.partition(end)
    if not (found and also):
        raise SystemExit(f"{PAGE} lacks the marks {begin} and {end}")
    return f"{before}{begin}\n\n{part}\n\n{end}{after}"


def rule_table() -> str:
    """The rules of `policy.recovery`, in order."""
    lines = ["| | If | then |", "|--:|---|---|"]
    lines += [f"| {number} | {rule.when} | `{rule.then}` |" for number, rule in enumerate(RULES, 1)]
    return "\n".join(lines)


def measured(rows: Sequence[Row], seconds: float, date: str) -> str:
    """The table of measurements."""
    where = f"{os.cpu_count()} cores, {platform.system()}, CPython {platform.python_version()}"
    minutes = max(1, round(seconds / 60))
    streams = sum(row.tried for row in rows)
    lines = [
        f"Measured on {date} with the embedded server on {where}: {streams:,} broken streams in {minutes} minutes.",
        "",
        "| fault | times tried | survived | longest gap | notes |",
        "|---|--:|--:|--:|---|",
    ]
    group = ""
    for row in rows:
        if row.group != group:
            group = row.group
            lines.append(f"| **{group}** | | | | |")
        gap = f"{row.longest_gap:.3f} s" if row.longest_gap else "–"
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(row.kinds.items()))
        notes = [kinds] * bool(kinds) + [row.notes] * bool(row.notes)
        if row.errors:
            notes.append(f"{row.errors} ended with a clear error")
        if row.other:
            notes.append(f"{row.other} went on in other words, with `verified` False")
        if row.wrong:
            notes.append(f"**{row.wrong} WRONG**")
        lines.append(f"| {row.fault} | {row.tried:,} | {row.survived:,} | {gap} | {'; '.join(notes)} |")
    return "\n".join(lines)


def write(rows: Sequence[Row], seconds: float, date: str) -> None:
    """Both files anew."""
    text = replaced(PAGE.read_text(encoding="utf-8"), "rules", rule_table())
    PAGE.write_text(replaced(text, "measurements", measured(rows, seconds, date)), encoding="utf-8")
    figures = {
        "date": date,
        "seconds": round(seconds),
        "python": sys.version.split()[0],
        "cores": os.cpu_count(),
        "rows": rows,
    }
    FIGURES.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=1) + b"\n")
