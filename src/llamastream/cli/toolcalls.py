"""Shows the tool calls of an answer: the name as soon as it comes, the arguments once they are whole."""

from __future__ import annotations

from collections.abc import Callable

from llamastream.client import Stream
from llamastream.printable import one_line
from llamastream.tools import ToolCall
from llamastream.types import ReasoningDelta, StreamEnd, TextDelta, ToolCallDelta

MAX_SHOWN = 2000
"""Characters of a call's arguments that are shown; what a program needs of them is in --json and in /save."""

MAX_WHY = 200
"""Characters of what is wrong with a call."""


class ToolCallNotes:
    """Turns pieces of tool calls into notes. The model may put anything into names and arguments: each is one line."""

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note = note
        self._call: tuple[int, int] | None = None
        self._name = ""
        self._arguments: list[str] = []

    def add(self, event: ToolCallDelta) -> None:
        """A piece of a call."""
        call = (event.index, event.call)
        if call != self._call:
            self.end()
            self._call = call
        if event.name:
            self._name = event.name
            self._note(f"the model calls the tool {one_line(event.name)}")
        if event.arguments:
            self._arguments.append(event.arguments)

    def end(self, *, broken: bool = False) -> None:
        """Something else follows, or nothing: show the arguments that have come. `broken`: the answer broke off, so
        that there is no telling what the call would have been."""
        arguments = "".join(self._arguments)
        call = None if self._call is None else ToolCall("", self._name, arguments)
        self._arguments.clear()
        self._call, self._name = None, ""
        if text := one_line(arguments):
            self._note(f"  {text[:MAX_SHOWN]}{'…' if len(text) > MAX_SHOWN else ''}")
        if call is not None and call.malformed and not broken:
            self._note(f"  this call is malformed: {one_line(call.malformed)[:MAX_WHY]}")


def show(
    stream: Stream, text: Callable[[str], object], reasoning: Callable[[str], object], note: Callable[[str], None]
) -> StreamEnd | None:
    """Hand on what an answer consists of: pieces of text and of reasoning, and notes on tool calls.

    Returns the last event of a stream that ended well; None: it was left.
    """
    tools = ToolCallNotes(note)
    end: StreamEnd | None = None
    try:
        for event in stream.events():
            if isinstance(event, ToolCallDelta):
                tools.add(event)
                continue
            tools.end()
            if isinstance(event, TextDelta):
                text(event.text)
            elif isinstance(event, ReasoningDelta):
                reasoning(event.text)
            elif isinstance(event, StreamEnd):
                end = event
    finally:
        tools.end(broken=True)
    return end
