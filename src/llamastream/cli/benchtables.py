"""A measurement as tables in a terminal."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table
from rich.text import Text

from llamastream.bench.compare import Comparison
from llamastream.bench.report import Report
from llamastream.bench.tables import facts, overview, shown, troubles
from llamastream.printable import one_line

_STYLES = {"worse": "bold red", "better": "green", "same": "dim"}


def print_report(console: Console, report: Report, comparison: Comparison | None) -> None:
    """The figures, what they depend on, and the comparison."""
    for name, value in facts(report):
        console.print(Text.assemble((f"{name}: ", "dim"), one_line(value)), soft_wrap=True)
    if report.interrupted:
        console.print(Text("broken off; this is what was measured so far", style="yellow"))
    if report.loads:
        console.print()
        console.print(_overview_table(report))
    for line in (line for result in report.loads for line in troubles(result)):
        console.print(Text(one_line(line), style="red"), soft_wrap=True)
    for note in report.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    if comparison is not None:
        _print_comparison(console, comparison)


def _overview_table(report: Report) -> Table:
    """A column for each load, so that it stays narrow."""
    columns = [overview(result) for result in report.loads]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column(columns[0][0][0], no_wrap=True)
    for column in columns:
        table.add_column(column[0][1], justify="right", no_wrap=True)
    for number, (title, _) in enumerate(columns[0]):
        if number:
            table.add_row(title, *(column[number][1] for column in columns))
    return table


def _print_comparison(console: Console, comparison: Comparison) -> None:
    console.print()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("load", "fast tenth of", "before", "now", "slower by", "p", ""):
        table.add_column(title, no_wrap=True, justify="left" if title in ("load", "fast tenth of", "") else "right")
    for finding in comparison.findings:
        table.add_row(
            finding.load,
            finding.measure.replace("_", " "),
            shown(finding.measure, finding.before),
            shown(finding.measure, finding.now),
            finding.change,
            f"{finding.p:.3f}",
            Text(finding.verdict, style=_STYLES[finding.verdict]),
        )
    console.print(table)
    for note in comparison.notes:
        console.print(Text(f"note: {one_line(note)}", style="yellow"), soft_wrap=True)
    style = "bold red" if comparison.regressions else "green"
    console.print(Text(comparison.summary, style=style), soft_wrap=True)


def baselines_table(known: Mapping[str, Report]) -> Table:
    """Which baselines there are."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("baseline", "made", "model", "loads", "machine"):
        table.add_column(title, no_wrap=True)
    for name, report in known.items():
        loads = ", ".join(result.label for result in report.loads)
        table.add_row(name, report.created, one_line(report.server.model), loads, one_line(report.machine.cpu))
    return table
