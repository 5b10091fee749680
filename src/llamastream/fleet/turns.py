"""Planned restarts in their order: one instance after the other, and nobody to an address that another still has."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from llamastream.backends import ROUTABLE
from llamastream.events import FleetEvent, InstanceWarning
from llamastream.fleet.instance import Instance
from llamastream.fleet.orders import Order
from llamastream.policy.restarts import Turn, holder_of, next_turn

GONE = frozenset({"failed", "stopped"})


class Turns:
    """Whose turn it is. Thread-safe, and waits for nothing."""

    def __init__(
        self,
        instances: Callable[[], tuple[Sequence[Instance], Sequence[Instance]]],
        min_ready: int,
        notify: Callable[[FleetEvent], None],
    ) -> None:
        """Args:
        instances: tells all that there are, and those that are about to leave after a reload. min_ready: so many of a
            pool stay ready. notify: takes events.
        """
        self._instances = instances
        self._min_ready = min_ready
        self._notify = notify
        self._lock = threading.Lock()
        self._away: str | None = None

    def may_go(self, instance: str) -> bool:
        """Whether it is this one's turn for a planned restart; if so, it is away until `came_back`."""
        with self._lock:
            if next_turn(self._seen(), self._min_ready) != instance:
                return False
            self._away = instance
            return True

    def waits_for(self, instance: str, place: str) -> str | None:
        """Who has to leave, and will, before this one can listen at this place; None: nobody."""
        holder = holder_of(Turn(id=instance, moves_to=place), self._seen())
        return holder.id if holder is not None and (holder.wants or holder.away or holder.gone) else None

    def came_back(self, instance: str, *, well: bool) -> None:
        """This one's planned restart is over."""
        with self._lock:
            if self._away == instance:
                self._away = None
        others = [each for each in self._instances()[0] if each.id != instance]
        if well:
            for each in others:
                each.nudge()
            return
        waiting = [each for each in others if each.wants_restart]
        for each in waiting:
            # whatever it is that this one did not survive, the others need not meet it
            each.order(Order("forget", f"{instance} did not come back"))
        if waiting:
            message = f"it did not come back: the restart of {len(waiting)} more is called off"
            self._notify(InstanceWarning(instance, "rolling", message, time.time()))

    def _seen(self) -> list[Turn]:
        staying, leaving = self._instances()
        return [
            Turn(
                id=each.id,
                wants=each.wants_restart,
                pool=each.model,
                away=each.id == self._away,
                ready=each.status.state in ROUTABLE,
                gone=each in leaving or each.status.state in GONE,
                holds=each.holds,
                moves_to=each.moves_to,
            )
            for each in (*staying, *leaving)
        ]
