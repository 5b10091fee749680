"""Pieces of an answer put together, where one event for each token is too much for what listens."""

from __future__ import annotations

from collections.abc import Iterator

from llamastream.types import ReasoningDelta, TextDelta, ToolCallDelta

Delta = TextDelta | ReasoningDelta | ToolCallDelta


class Coalescer:
    """Decides when pieces are handed on: the first at once, then what comes within `interval` seconds as one piece.

    It has no clock and no timer: a piece that waits is handed on with the next one after the interval, or at the end,
    or as soon as something of another kind comes (reasoning, another tool call), so that the order is kept.
    """

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._due = float("-inf")
        self._held: Delta | None = None

    def feed(self, delta: Delta, now: float) -> Iterator[Delta]:
        """What is to be handed on when a piece has come at the time `now` (in seconds, of any monotonic clock)."""
        joined = None if self._held is None else _joined(self._held, delta)
        if self._held is not None and joined is None:
            yield self._held
        self._held = joined or delta
        if now >= self._due:
            self._due = now + self._interval
            yield from self.flush()

    def flush(self) -> Iterator[Delta]:
        """What is still held."""
        if self._held is not None:
            held, self._held = self._held, None
            yield held


def _joined(first: Delta, second: Delta) -> Delta | None:
    """Both as one piece, or None if they do not belong together."""
    if isinstance(first, TextDelta) and isinstance(second, TextDelta):
        return TextDelta(first.text + second.text)
    if isinstance(first, ReasoningDelta) and isinstance(second, ReasoningDelta):
        return ReasoningDelta(first.text + second.text)
    if isinstance(first, ToolCallDelta) and isinstance(second, ToolCallDelta) and first.call == second.call:
        arguments = first.arguments + second.arguments
        return ToolCallDelta(first.call, first.id or second.id, first.name or second.name, arguments)
    return None
