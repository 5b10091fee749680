"""What an instance asks of its fleet."""

from __future__ import annotations

from typing import Protocol

from llamastream.events import FleetEvent
from llamastream.types import LogRecord


class Supervisor(Protocol):
    """The fleet, as its instances see it. All of it may be called from any thread, and waits for nothing."""

    def notify(self, event: FleetEvent) -> None:
        """Something happened."""

    def log(self, instance: str, record: LogRecord) -> None:
        """The server said something."""

    def may_go(self, instance: str) -> bool:
        """Whether it is this instance's turn to leave for a planned restart; if so, it is away until `came_back`."""

    def waits_for(self, instance: str, place: str) -> str | None:
        """Who has to leave, and will, before this instance can listen at this place; None: nobody."""

    def came_back(self, instance: str, *, well: bool) -> None:
        """It is ready again, or (not `well`) will not be."""
