"""What a search tries: a live table on a terminal, else a line for each trial."""

from __future__ import annotations

from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from llamastream.bench.tune.page import trial_row
from llamastream.bench.tune.result import Tried
from llamastream.bench.tune.search import Watcher
from llamastream.printable import one_line

SHOWN = 12
"""Trials in the live table: the last ones, and the best."""


class Progress:
    """Shows it, within `with`.

    Attributes:
        watcher: for the search.
    """

    def __init__(self, console: Console, budget: float, *, quiet: bool) -> None:
        self.watcher = Watcher(self._begin, self._trying, self._tried)
        self._console = console
        self._budget = budget
        self._quiet = quiet
        self._began = monotonic()
        self._known: list[Tried] = []
        self._now = ""
        self._live: Live | None = None
        if not quiet and console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(console=console, get_renderable=self._table, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def _begin(self, model: str) -> None:
        self._known.clear()
        self._say(f"looking at {model}", style="bold")

    def _trying(self, settings: str, part: str, number: int) -> None:
        self._now = settings

    def _tried(self, tried: Tried) -> None:
        self._known.append(tried)
        if self._live is None:
            self._say(_line(tried), style="dim" if tried.figures else "yellow", before=f"{tried.at:6.1f} s  ")

    def _say(self, text: str, style: str, before: str = "") -> None:
        if not self._quiet:
            self._console.print(Text(before + one_line(text), style=style), soft_wrap=True)

    def _table(self) -> Table:
        """The last trials, the best of all marked."""
        spent = monotonic() - self._began
        table = Table(
            box=None, padding=(0, 2, 0, 0), title=f"{spent:.0f} of {self._budget:.0f} s", title_justify="left"
        )
        for title in ("settings", "part", "effort", "tokens/s", "stream", "first token, ms", "failed"):
            table.add_column(title, overflow="ellipsis", no_wrap=True, max_width=60)
        best = max(
            (t for t in self._known if t.figures), key=lambda t: t.figures.score if t.figures else 0, default=None
        )
        last = self._known[-SHOWN:]
        for tried in [best, *last] if best is not None and best not in last else last:
            style = "bold green" if tried is best else "yellow" if tried.figures is None else ""
            table.add_row(*(Text(one_line(cell)) for cell in trial_row(tried)), style=style)
        table.add_row(Text(self._now or "the model"), Text("…"), style="dim")
        return table


def _line(tried: Tried) -> str:
    settings, part, effort, score, stream, first, reason = trial_row(tried)
    found = f"failed: {reason}" if reason else f"{score} tokens/s (stream {stream}, first token {first} ms)"
    return f"{part}, effort {effort}: {settings}: {found}"
