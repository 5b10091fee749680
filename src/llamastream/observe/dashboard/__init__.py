"""What the dashboard shows: kept in bounded memory, and counted when requests are over, never for single chunks."""

from llamastream.observe.dashboard.board import Board, CacheFigures, Facts

__all__ = ["Board", "CacheFigures", "Facts"]
