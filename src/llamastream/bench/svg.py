"""Small charts as SVG, without scripts and without anything from outside. Colours come from the page's style."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from typing import Literal

from msgspec import Struct

WIDTH, HEIGHT = 640, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 14, 46
HEADROOM = 1.04
CROWD = 100
"""Dots of a series that would cover one another if they were large."""
COLOURS = 6
"""So many series have colours of their own (`.c0` to `.c5` in `STYLE`)."""

STYLE = """
svg.chart { width: 100%; height: auto; font: 12px system-ui, sans-serif; }
.chart text { fill: var(--muted); } .chart .grid { stroke: var(--grid); } .chart .axis { stroke: var(--muted); }
.chart .line { fill: none; stroke-width: 2; stroke-linejoin: round; } .chart .bar { stroke-width: 1.5; opacity: .7; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); }
.chart .line, .chart .bar, .legend line { stroke: var(--c); } .dot { fill: var(--c); }
.c1 .line, .legend .c1 line { stroke-dasharray: 7 3; } .c2 .line, .legend .c2 line { stroke-dasharray: 2 3; }
.c3 .line, .legend .c3 line { stroke-dasharray: 9 3 2 3; }
@media (max-width: 40rem) { svg.chart { font-size: 18px; } }
"""


class Point(Struct, frozen=True):
    """A point, with the ends of its interval where they are known, and what to say when one points at it. `fresh`: no
    line leads to it."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    says: str = ""
    fresh: bool = False


class Series(Struct, frozen=True):
    """Points that belong together, in their order."""

    name: str
    points: tuple[Point, ...]
    form: Literal["line", "dots", "both"] = "both"


class Axis(Struct, frozen=True):
    """An axis. `categories`: names of the places 0, 1, 2, … instead of numbers."""

    title: str
    logarithmic: bool = False
    categories: tuple[str, ...] = ()
    show: Callable[[float], str] = "{:g}".format


def chart(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """The chart, "" if there is nothing to show."""
    points = [point for one in series for point in one.points]
    if not points:
        return ""
    xs = [float(place) for place in range(len(x.categories))] or [point.x for point in points]
    ys = [v for p in points for v in (p.y, p.low, p.high) if v is not None]
    across = _Scale(x, min(xs), max(xs), LEFT, WIDTH - RIGHT)
    up = _Scale(y, min(ys) if y.logarithmic else 0.0, max(ys) * HEADROOM, HEIGHT - BOTTOM, TOP)
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">']
    parts += _grid(across, up, x, y)
    for number, one in enumerate(series):
        parts.append(f'<g class="c{number % COLOURS}">')
        parts += _drawn(one, across, up)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", legend(series)])


def legend(series: Sequence[Series]) -> str:
    """What the colours mean."""
    if len(series) < 2:
        return ""
    line = '<svg width="30" height="10" aria-hidden="true"><line x1="2" x2="28" y1="5" y2="5" stroke-width="3"/></svg>'
    dot = '<svg width="12" height="10" aria-hidden="true"><circle class="dot" cx="6" cy="5" r="4"/></svg>'
    entries = "".join(
        f'<span class="c{number % COLOURS}">{dot if one.form == "dots" else line} {escape(one.name)}</span>'
        for number, one in enumerate(series)
    )
    return f'<p class="legend">{entries}</p>'


class _Scale:
    """From values to places."""

    def __init__(self, axis: Axis, low: float, high: float, start: float, end: float) -> None:
        self.logarithmic = axis.logarithmic and low > 0
        if axis.categories:
            low, high = low - 0.5, high + 0.5
        elif high <= low:
            low, high = (low / 2, low * 2) if self.logarithmic else (min(0.0, low), max(1.0, low * 1.2))
        self.low, self.high = low, high
        self._start, self._end = start, end
        self.categories = axis.categories

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.logarithmic:
            value, low, high = math.log(max(value, low)), math.log(low), math.log(high)
        return self._start + (value - low) / (high - low) * (self._end - self._start)

    def ticks(self) -> list[float]:
        if self.categories:
            return [float(place) for place in range(len(self.categories))]
        return list(_log_ticks(self.low, self.high)) if self.logarithmic else list(_ticks(self.low, self.high))


def _ticks(low: float, high: float) -> Iterator[float]:
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough)
    place = math.ceil(low / step)
    while place * step <= high * (1 + 1e-9):
        yield place * step
        place += 1


def _log_ticks(low: float, high: float) -> Iterator[float]:
    wide = high / low > 30
    for exponent in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1):
        for digit in (1,) if wide else (1, 2, 5):
            if low <= (value := digit * 10.0**exponent) <= high:
                yield value


def _grid(across: _Scale, up: _Scale, x: Axis, y: Axis) -> Iterator[str]:
    bottom = HEIGHT - BOTTOM
    for value in up.ticks():
        at = up(value)
        yield f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{escape(y.show(value))}</text>'
    for place, value in enumerate(across.ticks()):
        at = across(value)
        name = x.categories[place] if x.categories else x.show(value)
        if not x.categories:
            yield f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{bottom}"/>'
        yield f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{escape(name)}</text>'
    yield f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{bottom}" y2="{bottom}"/>'
    middle = (LEFT + WIDTH - RIGHT) / 2
    yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x.title)}</text>'
    half = (TOP + bottom) / 2
    yield f'<text transform="translate(14 {half}) rotate(-90)" text-anchor="middle">{escape(y.title)}</text>'


def _drawn(series: Series, across: _Scale, up: _Scale) -> Iterator[str]:
    if series.form != "dots":
        lines: list[list[str]] = [[]]
        for point in series.points:
            if point.fresh:
                lines.append([])
            lines[-1].append(f"{across(point.x):.1f},{up(point.y):.1f}")
        for line in lines:
            if len(line) > 1:
                yield f'<polyline class="line" points="{" ".join(line)}"/>'
    if series.form == "line" and len(series.points) > 1:
        return
    for point in series.points:
        at = across(point.x)
        if point.low is not None and point.high is not None:
            yield f'<line class="bar" x1="{at:.1f}" x2="{at:.1f}" y1="{up(point.low):.1f}" y2="{up(point.high):.1f}"/>'
        title = f"<title>{escape(point.says)}</title>" if point.says else ""
        radius = 2 if len(series.points) > CROWD else 3.5
        yield f'<circle class="dot" cx="{at:.1f}" cy="{up(point.y):.1f}" r="{radius}">{title}</circle>'
