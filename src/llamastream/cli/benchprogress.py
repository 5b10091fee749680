"""How far a measurement is: a live bar on a terminal, else a line for each load that is through."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.text import Text

from llamastream.bench.generator import Generator
from llamastream.bench.loads import Load
from llamastream.bench.measure import Watcher
from llamastream.bench.report import count
from llamastream.bench.samples import Lap

INTERVAL = 0.2
"""Seconds between two looks: whoever measures must not be busy with showing it."""


class Progress:
    """Shows it, within `with`.

    Attributes:
        watcher: for the measurement. servers: how many are measured in turn.
    """

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self.watcher = Watcher(self._begin, self._change, self._lap)
        self.servers = 1
        self._console = console
        self._quiet = quiet
        self._repeats = 1
        self._shown = 0.0
        self._bar: Bar | None = None
        if not quiet and console.is_terminal and not console.is_dumb_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=console, transient=True, refresh_per_second=2)
            self._task = self._bar.add_task("looking at the server", total=None)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _begin(self, loads: Sequence[Load], repeats: int) -> None:
        self._repeats = repeats
        if self._bar is not None:
            self._bar.update(self._task, total=len(loads) * repeats * self.servers, description="warming up")

    def _change(self, generator: Generator) -> None:
        if self._bar is not None and (now := monotonic()) - self._shown >= INTERVAL:
            self._shown = now
            done = f"{len(generator.samples):,} done, {generator.running:,} running"
            self._bar.update(self._task, description=f"{self._where(generator.load, generator.repeat)}: {done}")

    def _lap(self, lap: Lap) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)
        elif not self._quiet:
            failed = sum(not sample.ok for sample in lap.samples)
            parts = [count(len(lap.samples), "request") + (f", {failed:,} failed" if failed else "")]
            if (rate := lap.total_tokens_per_second) is not None:
                parts.append(f"{rate:,.0f} tokens/s")
            line = f"{self._where(lap.load, lap.repeat)}: {', '.join(parts)}"
            self._console.print(Text(line, style="dim"), soft_wrap=True)

    def pass_by(self, _lap: Lap) -> None:
        """A lap of another server is through, of which nothing is shown."""
        if self._bar is not None:
            self._bar.advance(self._task)

    def _where(self, load: Load, repeat: int) -> str:
        return f"{load.label}, repeat {repeat} of {self._repeats}"
