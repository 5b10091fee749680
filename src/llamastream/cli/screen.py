"""What the terminal shows: the answer on stdout, everything else on stderr, and the picture of both as an SVG."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import msgspec
from rich.console import Console
from rich.text import Text

from llamastream.cli.status import StatusLine
from llamastream.errors import LlamaStreamError, SettingError
from llamastream.printable import one_line, printable
from llamastream.types import Stats

NO_WIDTH = 10_000
"""Columns of what is no terminal."""


class Screen:
    """Writes an answer as it comes. With `record`, everything shown can be saved as a picture."""

    def __init__(self, stdout: TextIO | None = None, *, quiet: bool = False, record: bool = False) -> None:
        self._stdout = stdout or sys.stdout
        # A program gets the model's bytes as they are; a terminal must not obey them.
        self._to_person = self._stdout.isatty()
        self._notes = Console(stderr=True, highlight=False)
        self._quiet = quiet
        self._status = StatusLine(Console(file=self._stdout, highlight=False) if self._to_person else self._notes)
        self._at_line_start = True
        self._reasoning_at_line_start = True
        self._shown: list[str] = []
        self._picture = Console(record=True, width=88, file=io.StringIO(), force_terminal=True) if record else None

    def command(self, line: str) -> None:
        """The command line, for the picture alone: in the terminal the user has just typed it."""
        if self._picture is not None:
            self._picture.print(Text.assemble(("$ ", "green"), (line, "bold")))

    def note(self, text: str) -> None:
        """One line beside the answer, on stderr."""
        text = printable(text)
        if not self._quiet:
            self._fresh_line()
            self._notes.print(Text(text, style="dim"))
        if self._picture is not None:
            self._picture.print(Text(text, style="dim"))

    def status(self, line: str) -> None:
        """What is waited for: on a terminal in one line that goes when anything else comes, else on stderr."""
        # In the middle of a line there is no place that could be erased again.
        in_line = self._to_person and not (self._at_line_start and self._reasoning_at_line_start)
        if not self._quiet and not in_line:
            self._status.show(line)

    def answer(self, text: str) -> None:
        """A piece of the answer, at once."""
        self._status.clear()
        harmless = printable(text)
        with _reader_may_leave():
            self._stdout.write(harmless if self._to_person else text)
            self._stdout.flush()
        self._at_line_start = text.endswith("\n")
        if self._picture is not None:
            self._shown.append(harmless)

    def reasoning(self, text: str) -> None:
        """A piece of the reasoning: dimmed, on stderr, and only where a person looks."""
        if not self._quiet and self._notes.is_terminal:
            self._status.clear()
            self._reasoning_at_line_start = text.endswith("\n")
            self._notes.print(Text(printable(text), style="dim italic"), end="", soft_wrap=True)

    def end_answer(self) -> None:
        self._status.clear()
        if not self._at_line_start:
            self._stdout.write("\n")
            self._stdout.flush()
            self._at_line_start = True
        if self._picture is not None and self._shown:
            # In one piece: lines can only be wrapped once the words are whole.
            self._picture.print(Text("".join(self._shown)))
            self._shown.clear()

    def summary(self, stats: Stats, finish_reason: str | None) -> None:
        self.note(summary_line(stats, finish_reason))

    def save_picture(self, path: Path) -> None:
        """Write the recorded screen as an SVG without addresses of fonts or anything else outside."""
        assert self._picture is not None
        svg = self._picture.export_svg(title="llamastream", code_format=_SVG)
        path.write_text(svg, encoding="utf-8")

    def _fresh_line(self) -> None:
        self._status.clear()
        if not self._at_line_start and self._to_person:
            self._stdout.write("\n")
            self._stdout.flush()
            self._at_line_start = True


def summary_line(stats: Stats, finish_reason: str | None) -> str:
    """`first token 12 ms · 1,234 tokens/s · 212 tokens · stop`."""
    parts = []
    if stats.time_to_first_token is not None:
        parts.append(f"first token {milliseconds(stats.time_to_first_token)}")
    if stats.tokens_per_second is not None:
        parts.append(f"{stats.tokens_per_second:,.0f} tokens/s")
    count = stats.completion_tokens if stats.completion_tokens is not None else stats.chunks
    parts.append(f"{count:,} token{'' if count == 1 else 's'}")
    if stats.cached_tokens:
        parts.append(f"{stats.cached_tokens:,} of {stats.prompt_tokens:,} prompt tokens cached")
    if stats.recoveries:
        parts.append(f"mended {len(stats.recoveries)} ×" if len(stats.recoveries) > 1 else "mended once")
    parts.append(finish_reason or "unfinished")
    return " · ".join(parts)


def stats_rows(stats: Stats, finish_reason: str | None) -> Iterator[tuple[str, str]]:
    """What is known of an answer, with names to read."""
    for field, value in msgspec.structs.asdict(stats).items():
        if value is None or field in ("failed_attempts", "recoveries", "streamed", "buffered"):
            continue
        name = field.replace("_", " ").replace(" p50", ", median").replace(" p95", ", 95 %").replace(" max", ", most")
        if "tokens_per_second" in field:
            yield name, f"{value:,.0f}"
        elif isinstance(value, str):
            if value:
                yield name, one_line(value)
        elif isinstance(value, float):
            yield name, milliseconds(value)
        else:
            yield name, f"{value:,}"
    for attempt in stats.failed_attempts:
        yield "failed attempt", one_line(attempt.message)
    for recovery in stats.recoveries:
        how = f"{recovery.kind.replace('_', ' ')} after {recovery.error}, gap {milliseconds(recovery.gap)}"
        yield "recovered by", how
    if not stats.streamed:
        yield "streamed", "no: the answer came as one piece"
    elif stats.buffered:
        yield "buffered", "yes: something on the way held the answer back"
    yield "ended by", finish_reason or "an error"


def print_json(value: object) -> None:
    """One JSON object as a line on stdout, at once.

    Raises:
        BrokenPipeError: whoever read our output (head, less) left.
    """
    with _reader_may_leave():
        sys.stdout.buffer.write(msgspec.json.encode(value) + b"\n")
        sys.stdout.buffer.flush()


class _Output(Console):
    def on_broken_pipe(self) -> None:
        """For rich, which would end the process with no word: let those decide who know what was lost."""
        self.quiet = True
        silence_stdout()
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def output() -> Console:
    """Stdout for tables: as wide as its terminal; in a pipe or a file there is no width to keep to.

    What it prints raises `BrokenPipeError` once whoever read our output has left.
    """
    terminal = sys.stdout is not None and sys.stdout.isatty()
    return _Output(highlight=False, width=None if terminal else NO_WIDTH)


@contextlib.contextmanager
def readers_may_not_leave() -> Iterator[None]:
    """For a result that took minutes: that nobody took it is an error which is told.

    Raises:
        LlamaStreamError: whoever read our output has left.
    """
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        raise LlamaStreamError("the result is lost: whoever read standard output has left before it came") from None


@contextlib.contextmanager
def _reader_may_leave() -> Iterator[None]:
    """Once the reader of stdout has left, what is still buffered must not make Python complain when it ends."""
    try:
        yield
    except OSError:  # BrokenPipeError, or no space left behind a redirection
        silence_stdout()
        raise


def need_stdout() -> None:
    """For what goes on until its reader leaves.

    Raises:
        SettingError: there is none, and never was.
    """
    if sys.stdout is None:
        raise SettingError("standard output is closed: there is nothing to write to")


def silence_stdout() -> None:
    """What is still buffered for a stdout that takes nothing must not make Python complain when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def milliseconds(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    return f"{seconds * 1000:,.0f} ms" if seconds >= 0.01 else f"{seconds * 1000:.1f} ms"


# rich's own frame loads a font from the network; this one takes what the viewer has.
_SVG = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""
