"""A report as one HTML page: self-contained, light and dark, without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from html import escape

from llamastream.bench.compare import Comparison, Finding
from llamastream.bench.report import LoadResult, Report
from llamastream.bench.samples import Lap
from llamastream.bench.statistics import percentile
from llamastream.bench.svg import STYLE, Axis, Point, Series, chart
from llamastream.bench.tables import facts, measure_rows, overview, shown, troubles, with_interval

MOST_DOTS = 1500
"""Requests of a load that are drawn one by one; of more, every so-and-so-many-th."""

_WORDS = ' class="words"'

_PAGE_STYLE = """
:root { color-scheme: light dark; --back: #fff; --text: #1b1f24; --muted: #57606a; --grid: #e4e7eb; --box: #f6f8fa;
  --bad: #b42318; --c0: #0060a8; --c1: #c2410c; --c2: #007a5a; --c3: #a8328a; --c4: #8a6100; --c5: #4a4fb8; }
@media (prefers-color-scheme: dark) { :root { --back: #14171b; --text: #e6e8eb; --muted: #a3abb5; --grid: #2c3239;
  --box: #1c2127; --bad: #ff8a80; --c0: #5ab0f2; --c1: #ff9a62; --c2: #3fcf9f; --c3: #ee8ad2; --c4: #e6bb4c;
  --c5: #a5a9ff; } }
body { background: var(--back); color: var(--text); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 75rem; padding: 1rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; } h3 { font-size: 1rem; margin-bottom: .2rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; } caption { text-align: left; font-weight: 600; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--muted); font-weight: 600; } th:first-child, td:first-child { text-align: left;
  white-space: normal; min-width: 9rem; overflow-wrap: anywhere; } td.parts { white-space: normal; }
td.parts span { white-space: nowrap; display: inline-block; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { color: var(--muted); }
dd { margin: 0; overflow-wrap: anywhere; } .charts { display: grid; gap: 1.5rem; margin-top: 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 26rem), 1fr)); }
figure { margin: 0; background: var(--box); border-radius: .5rem; padding: .8rem; } figcaption { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .3rem 0 0; color: var(--muted); }
pre { background: var(--box); border-radius: .5rem; padding: .8rem; overflow-x: auto; } h2 { overflow-wrap: anywhere; }
.bad { color: var(--bad); font-weight: 600; } td.words { white-space: normal; text-align: left; min-width: 12rem; }
"""


def html_page(report: Report, laps: Sequence[Lap], comparison: Comparison | None = None) -> str:
    """The whole page."""
    parts = []
    if report.interrupted:
        parts.append('<p class="bad">The measurement was broken off; this is what there was of it.</p>')
    parts += [f"<p>Note: {escape(note)}</p>" for note in report.notes]
    if comparison is not None:
        parts += _compared(comparison)
    parts += ["<h2>Overview</h2>", *_overview(report.loads)]
    lines = [line for result in report.loads for line in troubles(result)]
    parts += ["<ul>", *(f"<li>{escape(line)}</li>" for line in lines), "</ul>"] if lines else []
    parts += ['<div class="charts">', *_figures(report, laps), "</div>"]
    parts += [
        "<h2>All measures</h2>",
        "<p>In brackets: 95 % confidence intervals; of totals, the least and the most ",
    ]
    parts += ["of the repeats. <i>?</i>: too few requests to know.</p>"]
    for result in report.loads:
        parts += _measures(result)
    parts += ["<h2>What it depends on</h2><dl>"]
    parts += [f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts(report)]
    heading = f"llamastream bench: {report.server.model or 'a server'}"
    return document(f"llamastream bench, {report.created}", heading, [*parts, "</dl>"])


def document(title: str, heading: str, parts: Iterable[str]) -> str:
    """A whole page of parts that are HTML already; title and heading are text."""
    head = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_PAGE_STYLE}{STYLE}</style></head><body>",
        f"<h1>{escape(heading)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>", ""])


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], words: str = "") -> Iterator[str]:
    """A table of text. `words`: the title of the column that holds sentences."""
    cells = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    yield f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>'
    for row in rows:
        row_cells = [
            f"<td{_WORDS if title == words and cell else ''}>{escape(cell)}</td>"
            if title == words or number == 0
            else f'<td class="parts">{_parts(cell)}</td>'
            for number, (title, cell) in enumerate(zip(titles, row, strict=True))
        ]
        yield f"<tr>{''.join(row_cells)}</tr>"
    yield "</tbody></table></div>"


def _parts(text: str) -> str:
    """A figure and its interval, which may stand below it where there is no room beside it."""
    value, bracket, interval = text.partition(" (")
    return f"<span>{escape(value)}</span>" + (f" <span>({escape(interval)}</span>" if bracket else "")


def figure(title: str, drawing: str) -> str:
    """A chart with its title; "" if there is nothing to show."""
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>" if drawing else ""


def _overview(results: Sequence[LoadResult]) -> Iterator[str]:
    rows = [overview(result) for result in results]
    if not rows:
        yield "<p>Nothing was measured.</p>"
        return
    # A column for each load: there are fewer loads than figures.
    for number, (title, _) in enumerate(rows[0]):
        tag = "td" if number else 'th scope="col"'
        cells = "".join(f"<{tag}>{escape(row[number][1])}</{tag[:2]}>" for row in rows)
        if number == 0:
            yield f'<div class="wide"><table><thead><tr><th scope="col">{escape(title)}</th>{cells}</tr></thead><tbody>'
        else:
            yield f'<tr><th scope="row">{escape(title)}</th>{cells}</tr>'
    yield "</tbody></table></div>"


def _measures(result: LoadResult) -> Iterator[str]:
    yield f'<h3>{escape(result.label)}</h3><div class="wide"><table><tbody>'
    for title, cells in measure_rows(result):
        shown_cells = "".join(f'<td class="parts">{_parts(f"{key} {value}")}</td>' for key, value in cells)
        yield f'<tr><th scope="row">{escape(title)}</th>{shown_cells}</tr>'
    yield "</tbody></table></div>"


def _compared(comparison: Comparison) -> Iterator[str]:
    style = ' class="bad"' if comparison.regressions else ""
    yield f"<h2>Against the baseline</h2><p{style}>{escape(comparison.summary)}</p>"
    titles = ("load", "measure", "before", "now", "slower by", "")
    yield from table(titles, map(_finding, comparison.findings))


def _finding(finding: Finding) -> tuple[str, ...]:
    values = (shown(finding.measure, value) for value in (finding.before, finding.now))
    return (finding.load, finding.measure.replace("_", " "), *values, finding.change, finding.verdict)


def _figures(report: Report, laps: Sequence[Lap]) -> Iterator[str]:
    names = tuple(result.label for result in report.loads)
    loads = Axis("load", categories=names)
    latencies = [_over_loads(report.loads, "time_to_first_token", key, f"{key[1:]} %") for key in ("p50", "p95", "p99")]
    yield figure("Time to first token", chart("Time to first token by load", loads, _MILLISECONDS, latencies))
    speeds = [
        _over_loads(report.loads, "total_tokens_per_second", "mean", "in total"),
        _over_loads(report.loads, "tokens_per_second", "p50", "of one stream"),
    ]
    speed = Axis("tokens per second", show="{:,.0f}".format)
    yield figure("Tokens per second", chart("Tokens per second by load", loads, speed, speeds))
    yield figure(
        "Inter-token latency",
        chart(
            "Inter-token latency: share of gaps that are no longer",
            Axis("gap between chunks, ms", logarithmic=True),
            Axis("share of gaps, %"),
            [series for name in names if (series := _distribution(name, laps)) is not None],
        ),
    )
    yield figure(
        "Each request, over time",
        chart("End-to-end time of each request", Axis("seconds"), _MILLISECONDS, [_dots(name, laps) for name in names]),
    )


_MILLISECONDS = Axis("milliseconds", show="{:,g}".format)


def _over_loads(results: Sequence[LoadResult], measure: str, key: str, name: str) -> Series:
    factor = 1.0 if measure.endswith("per_second") else 1e3
    points = []
    for place, result in enumerate(results):
        estimate = result.percentiles.get(measure, {}).get(key)
        if estimate is not None:
            low, high = (None if end is None else end * factor for end in (estimate.low, estimate.high))
            says = f"{result.label}, {name}: {with_interval(measure, estimate)}"
            fresh = place > 0 and results[place - 1].load.kind != result.load.kind
            points.append(Point(float(place), estimate.value * factor, low, high, says, fresh))
    return Series(name, tuple(points))


def _distribution(name: str, laps: Sequence[Lap]) -> Series | None:
    gaps = sorted(gap for lap in laps if lap.load.label == name for sample in lap.samples for gap in sample.gaps)
    if not gaps:
        return None
    shares = [number / 200 for number in range(1, 200)] + [0.999]
    # Chunks that came in one read have no gap that a clock could see: the axis begins at a microsecond.
    return Series(name, tuple(Point(max(1e-3, percentile(gaps, share) * 1e3), share * 100) for share in shares), "line")


def _dots(name: str, laps: Sequence[Lap]) -> Series:
    points, began = [], 0.0
    for lap in laps:
        if lap.load.label == name:
            points += [
                Point(began + sample.scheduled, took * 1e3)
                for sample in lap.samples
                if (took := sample.end_to_end) is not None
            ]
        began += lap.seconds
    return Series(name, tuple(points[:: 1 + len(points) // MOST_DOTS]), "dots")
