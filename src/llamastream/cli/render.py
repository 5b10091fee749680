"""How an answer gets onto the terminal while it comes: as plain text, or as Markdown."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import Protocol

from rich.console import Console
from rich.segment import Segment, Segments
from rich.text import Text

from llamastream.cli import markdown
from llamastream.cli.status import StatusLine
from llamastream.printable import one_line, printable

FRAME = 1 / 12
"""Seconds from one picture to the next, at least: more than the eye needs, and little work."""
_REST = 4
"""So many times as long as a picture took is waited before the next one, so that drawing takes a fifth of a core at
most, however long a block gets."""
_MARGIN = 4
"""Lines of the screen that stay free of the part that is redrawn, whatever the terminal's own idea of its height."""

# Terminals that know this show nothing until the end, the others do not mind. Meanwhile the cursor would only flit.
_BEGIN = "\x1b[?2026h\x1b[?25l"
_SHOW_CURSOR = "\x1b[?25h"
_END = "\x1b[?2026l"


class View(Protocol):
    """Shows one answer. What it is given may hold anything; it makes it harmless."""

    def text(self, piece: str) -> None: ...

    def reasoning(self, piece: str) -> None: ...

    def note(self, line: str) -> None: ...

    def status(self, line: str) -> None:
        """Show what is waited for, until anything else comes."""
        ...

    def end(self) -> None:
        """Everything shown, and the cursor at the beginning of a line. To be called in any case, once or more."""
        ...


class PlainView:
    """Text as it comes; the reasoning, dimmed, in paragraphs of its own."""

    def __init__(self, console: Console, *, show_reasoning: bool = True) -> None:
        self._console = console
        self._show_reasoning = show_reasoning
        self._status = StatusLine(console)
        self._at_line_start = True
        self._last = ""

    def text(self, piece: str) -> None:
        self._write(piece, "text", "")

    def reasoning(self, piece: str) -> None:
        if self._show_reasoning:
            self._write(piece, "reasoning", "dim italic")

    def note(self, line: str) -> None:
        self.end()
        self._console.print(Text(printable(line), style="dim"))

    def status(self, line: str) -> None:
        if self._at_line_start:  # in the middle of a line there is no place that could be erased again
            self._status.show(line)

    def end(self) -> None:
        self._status.clear()
        if not self._at_line_start:
            self._console.line()
            self._at_line_start = True

    def _write(self, piece: str, kind: str, style: str) -> None:
        if self._last not in ("", kind):
            self.end()
            self._console.line()
            piece = piece.lstrip("\n")
        piece = printable(piece)
        if not piece:
            return
        self._status.clear()
        self._last = kind
        if style:
            self._console.print(Text(piece, style=style), end="", soft_wrap=True)
        else:
            # Not through print, which would put blanks in the place of tabs.
            self._console.file.write(piece)
            self._console.file.flush()
        self._at_line_start = piece.endswith("\n")


class MarkdownView:
    """Markdown, drawn while it comes: what is finished is printed once and for good, and only the end is redrawn.

    A thread of its own draws, so that reading the stream never waits for it, and the last words before a pause show.
    """

    def __init__(self, console: Console, *, show_reasoning: bool = True) -> None:
        self._console = console
        self._plain = PlainView(console, show_reasoning=show_reasoning)
        self._show_reasoning = show_reasoning
        self._painter: _Painter | None = None
        self._anything = False

    def text(self, piece: str) -> None:
        if self._painter is None:
            if not self._anything:
                piece = piece.lstrip("\n")  # models like to begin with empty lines
            if not piece:
                return
            self._plain.end()
            if self._anything:
                self._console.line()
            self._painter = _Painter(self._console)
        self._anything = True
        self._painter.add(printable(piece))

    def reasoning(self, piece: str) -> None:
        if self._show_reasoning and piece:
            if self._painter is not None:
                self.end()
                self._console.line()
            self._anything = True
            self._plain.reasoning(piece)

    def note(self, line: str) -> None:
        self.end()
        self._plain.note(line)

    def status(self, line: str) -> None:
        if self._painter is not None:
            self._painter.status(line)
        else:
            self._plain.status(line)

    def end(self) -> None:
        painter, self._painter = self._painter, None
        if painter is not None:
            painter.finish()
        self._plain.end()


class _Painter:
    """Draws one stretch of Markdown, from its first character to `finish`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lock = threading.Lock()
        self._new: list[str] = []
        self._status = ""
        self._changed = threading.Event()
        self._ending = threading.Event()
        self._block = _Block(console)
        self._height = 0
        self._thread = threading.Thread(target=self._run, name="markdown", daemon=True)
        self._thread.start()

    def add(self, text: str) -> None:
        with self._lock:
            self._new.append(text)
            self._status = ""
        self._changed.set()

    def status(self, line: str) -> None:
        """One dim line below the text, until more of it comes."""
        with self._lock:
            self._status = one_line(line)
        self._changed.set()

    def finish(self) -> None:
        """Draw what is left, for good."""
        self._ending.set()
        self._changed.set()
        self._thread.join()
        self._draw(self._block.feed("".join(self._new), last=True), [])

    def _run(self) -> None:
        while True:
            self._changed.wait()
            if self._ending.is_set():
                return
            self._changed.clear()
            with self._lock:
                new, self._new = "".join(self._new), []
                status = self._status
            began = monotonic()
            lines = self._block.feed(new)
            self._draw(lines, [*self._block.tail, *self._status_lines(status)])
            self._ending.wait(max(FRAME, _REST * (monotonic() - began)))

    def _status_lines(self, status: str) -> list[list[Segment]]:
        text = Text(status, style="dim")
        text.truncate(self._console.width - 1, overflow="ellipsis")
        return self._console.render_lines(text, pad=False) if status else []

    def _draw(self, lines: Sequence[list[Segment]], tail: Sequence[list[Segment]]) -> None:
        """Put `lines` and `tail` in the place of the last tail: in one write, so that nothing in between is seen.

        rich's Live would need two, and show the old end once more below the new lines.
        """
        with self._console.capture() as capture:
            self._console.print(_Lines([*lines, *tail]), end="", soft_wrap=True)
        up = f"\r\x1b[{self._height}A" if self._height else ""
        self._console.file.write(f"{_BEGIN}{up}\x1b[J{capture.get()}{'' if tail else _SHOW_CURSOR}{_END}")
        self._console.file.flush()
        self._height = len(tail)


class _Block:
    """The unfinished end of a text, and how much of it has been printed for good.

    Lines leave the redrawn part at its top when it gets too high for the screen. If what follows changes a line that
    has left already (a table whose columns grow), no further ones leave, and the block is printed whole when it is
    finished: some of it twice, then, but none of it lost.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._text = ""
        self._printed: list[str] = []
        self._changed = False
        self._first = True
        self.tail: list[list[Segment]] = []

    def feed(self, new: str, *, last: bool = False) -> list[list[Segment]]:
        """The lines to be printed now; `tail` is what stands below them until the next call."""
        self._text += new
        lines: list[list[Segment]] = []
        while end := len(self._text) if last else markdown.finished(self._text):
            block = self._render(self._text[:end])
            self._check(block)
            shown = 0 if self._changed else len(self._printed)
            lines += block[shown:]
            # What has left of the next blocks already (paragraphs are one long line each) stays noted.
            self._printed = [] if self._changed else self._printed[len(block) :]
            self._text, self._changed = self._text[end:], False
            self._first = self._first and not block
            if last:
                break
        self.tail = self._render(self._text) if self._text.strip() else []
        room = max(3, self._console.height - _MARGIN)
        self._check(self.tail)
        if not self._changed and len(self.tail) - len(self._printed) > room:
            leaving = self.tail[len(self._printed) : -room]
            self._printed += [markdown.text_of(line) for line in leaving]
            lines += leaving
        self.tail = self.tail[-room:] if self._changed else self.tail[len(self._printed) :]
        return lines

    def _render(self, text: str) -> list[list[Segment]]:
        lines = markdown.render(self._console, text)
        # Blocks stand apart; the first one stands right below the question.
        return lines if self._first or not lines else [[], *lines]

    def _check(self, lines: list[list[Segment]]) -> None:
        """Notice whether what has left already is still what it was."""
        texts = (markdown.text_of(line) for line in lines)
        self._changed = self._changed or any(new != old for new, old in zip(texts, self._printed, strict=False))


class _Lines(Segments):
    """Lines that were rendered before, each with its end: rich puts none behind segments."""

    def __init__(self, lines: Sequence[list[Segment]]) -> None:
        parts: list[Segment] = []
        for line in lines:
            parts += [*line, Segment.line()]
        super().__init__(parts)
