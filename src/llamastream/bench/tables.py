"""A report in rows: for people, and for spreadsheets. Pure."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence

from llamastream.bench.report import SPEEDS, LoadResult, Report, count
from llamastream.bench.samples import Lap
from llamastream.bench.statistics import Estimate

TITLES = {
    "time_to_first_token": "time to first token",
    "inter_token_latency": "inter-token latency",
    "end_to_end": "end to end",
    "time_per_token": "time per token",
    "tokens_per_second": "tokens/s per stream",
    "client_tokens_per_second": "… by our clock alone",
    "server_tokens_per_second": "… by the server's clock",
    "total_tokens_per_second": "tokens/s in total",
    "requests_per_second": "requests/s",
    "prefill_tokens_per_second": "prefill tokens/s",
    "server_prefill_tokens_per_second": "… by the server's clock, of prefill",
}
"""Measures in the order in which they are shown."""


def shown(name: str, value: float | None) -> str:
    """A value of a measure, short: `12.3 ms`, `1,234`."""
    if value is None:
        return "–"
    if name not in SPEEDS:
        value *= 1000
        if value >= 10_000:
            return f"{value / 1000:,.1f} s"
        return f"{value:,.0f} ms" if value >= 100 else f"{value:,.1f} ms" if value >= 1 else f"{value:.2f} ms"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def with_interval(name: str, estimate: Estimate) -> str:
    """`12.3 ms (11.0 ms to 14.2 ms)`; an end that is not known is `?`, and without both there is none."""
    if estimate.low is None and estimate.high is None:
        return shown(name, estimate.value)
    low = "?" if estimate.low is None else shown(name, estimate.low)
    high = "?" if estimate.high is None else shown(name, estimate.high)
    unit = " ms" if low.endswith(" ms") and high.endswith(" ms") else ""
    return f"{shown(name, estimate.value)} ({low.removesuffix(unit)} to {high.removesuffix(unit)})"


def measure_rows(result: LoadResult) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Each measure of a load: its title, and pairs such as (`p50`, `12.3 ms (11.0 to 14.2)`)."""
    for name, title in TITLES.items():
        if estimates := result.percentiles.get(name):
            yield title, [(key, with_interval(name, estimate)) for key, estimate in estimates.items()]


def overview(result: LoadResult) -> list[tuple[str, str]]:
    """The figures of a load that matter most, with their short titles."""
    found = [("load", result.label), ("requests", f"{result.requests:,}"), ("failed", f"{result.failed:,}")]
    for title, name, key in _OVERVIEW:
        estimate = result.percentiles.get(name, {}).get(key)
        found.append((title, shown(name, None if estimate is None else estimate.value)))
    return found


_OVERVIEW = (
    ("first token p50", "time_to_first_token", "p50"),
    ("p95", "time_to_first_token", "p95"),
    ("p99", "time_to_first_token", "p99"),
    ("inter-token p50", "inter_token_latency", "p50"),
    ("p99", "inter_token_latency", "p99"),
    ("end to end p50", "end_to_end", "p50"),
    ("tokens/s, stream", "client_tokens_per_second", "p50"),
    ("server says", "server_tokens_per_second", "p50"),
    ("tokens/s, total", "total_tokens_per_second", "mean"),
    ("prefill tokens/s", "server_prefill_tokens_per_second", "p50"),
)


def troubles(result: LoadResult) -> Iterator[str]:
    """What went wrong in a load, a line each."""
    for error, times in sorted(result.errors.items(), key=lambda pair: -pair[1]):
        yield f"{result.label}: {times:,} × {error}"
    for kind, times in sorted(result.recoveries.items()):
        yield f"{result.label}: {times:,} × recovered by {kind.replace('_', ' ')}"
    if result.retries:
        yield f"{result.label}: {count(result.retries, 'failed attempt')} at the beginning, repeated"


def facts(report: Report) -> Iterator[tuple[str, str]]:
    """What the figures depend on."""
    server, machine = report.server, report.machine
    what = [server.model, server.build, count(server.slots, "slot") if server.slots else ""]
    what += [f"{server.n_ctx:,} tokens each" if server.n_ctx else "", server.where]
    yield "server", ", ".join(part for part in what if part) or "nothing known"
    if server.settings:
        yield "its settings", ", ".join(f"{name}={value}" for name, value in server.settings.items())
    cores = f"{machine.usable_cores} usable of {machine.cores} cores"
    yield (
        "machine",
        f"{machine.cpu}, {cores}, {machine.memory / 2**30:.1f} GiB, {machine.system}"
        + (f", {machine.host}" if machine.host else ""),
    )
    yield "measured by", f"llamastream {machine.llamastream}, {machine.python}, {report.created}"
    asked = {name: value for name, value in report.settings.items() if value is not None}
    yield "asked", ", ".join(f"{name}={value}" for name, value in asked.items())
    for result in report.loads:
        if result.prompt_tokens is not None and result.output_tokens is not None:
            cached = f", {result.cached_tokens:.0f} of them cached" if result.cached_tokens else ""
            yield result.label, f"{result.prompt_tokens:.0f} prompt tokens{cached}, {result.output_tokens:.0f} answered"


def as_csv(laps: Sequence[Lap]) -> str:
    """A row for each request; the first row has the names."""
    file = io.StringIO()
    writer: csv.DictWriter[str] | None = None
    for lap in laps:
        for sample in lap.samples:
            row = {"load": lap.load.label, **sample.row()}
            row["recoveries"] = " ".join(sample.recoveries)
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow({name: _cell(value) for name, value in row.items()})
    return file.getvalue()


def _cell(value: object) -> object:
    """Text that a spreadsheet would take for a formula is quoted."""
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return "'" + value
    return round(value, 7) if isinstance(value, float) else value
