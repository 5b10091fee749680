"""A run as a reader at a terminal sees it."""

from __future__ import annotations

import sys
from typing import TextIO

from llamastream.integrations.crewai.pieces import Piece
from llamastream.printable import one_line, printable


class Terminal:
    """Writes pieces as they come: a heading where another agent or task begins, reasoning and tool calls marked.

    Args:
        file: where to; None: standard output as it is when something is written.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = file
        self._before = Piece(kind="text", text="")
        self._begun = False

    def __call__(self, piece: Piece) -> None:
        self._write(self._between(piece) + printable(piece.text))
        self._before = piece
        self._begun = True

    def end(self) -> None:
        """End the last line."""
        if self._begun and not self._before.text.endswith("\n"):
            self._write("\n")

    def _between(self, piece: Piece) -> str:
        before = self._before
        text = ""
        other = (piece.task_id, piece.agent_id) != (before.task_id, before.agent_id)
        if other or not self._begun:
            who = one_line(piece.agent) or "model"
            about = f": {one_line(piece.task)}" if piece.task else ""
            text += ("\n\n" if self._begun else "") + f"== {who}{about}\n"
        elif (piece.call, piece.kind, piece.tool) != (before.call, before.kind, before.tool):
            text += "\n"
        else:
            return ""
        if piece.kind == "reasoning":
            return text + "(reasoning) "
        if piece.kind == "tool_call":
            return text + f"{one_line(piece.tool)} "
        return text

    def _write(self, text: str) -> None:
        file = self._file or sys.stdout
        file.write(text)
        file.flush()
