"""Shows the tool calls of an answer: the name as soon as it comes, the arguments once they are whole."""

from __future__ import annotations

from collections.abc import Callable

from llamastream.cli.printable import one_line
from llamastream.types import ToolCallDelta

MAX_SHOWN = 2000
"""Characters of a call's arguments that are shown; what a program needs of them is in --json and in /save."""


class ToolCallNotes:
    """Turns pieces of tool calls into notes. The model may put anything into names and arguments: each is one line."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._call: tuple[int, int] | None = None
        self._arguments: list[str] = []

    def add(self, event: ToolCallDelta) -> None:
        """A piece of a call."""
        call = (event.index, event.call)
        if call != self._call:
            self.end()
            self._call = call
        if event.name:
            self._note(f"the model calls the tool {one_line(event.name)}")
        if event.arguments:
            self._arguments.append(event.arguments)

    def end(self) -> None:
        """Something else follows, or nothing: show the arguments that have come."""
        text = one_line("".join(self._arguments))
        self._arguments.clear()
        self._call = None
        if text:
            self._note(f"  {text[:MAX_SHOWN]}{'…' if len(text) > MAX_SHOWN else ''}")
