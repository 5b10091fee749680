"""Which of several servers takes the next attempt."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from llamastream.policy.breaker import BreakerState

_RANK = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


class Candidate(Struct, frozen=True):
    """A server as the choice sees it.

    Attributes:
        breaker: what its breaker allows. open_until: if that is open, until when.
        in_flight: streams of this client that it serves now, or that wait in line for it.
        failed: the stream that asks has just failed there. routable: its supervisor says that it takes requests.
        slots: requests that it generates at the same time; 0: not known, and taken for one.
    """

    breaker: BreakerState
    in_flight: int = 0
    failed: bool = False
    open_until: float = 0.0
    routable: bool = True
    slots: int = 0


def choose(candidates: Sequence[Candidate]) -> int:
    """The index of the best server: one whose breaker is closed, that did not just fail this stream, with the fewest
    streams for its slots; among equals the first listed, so that a lone agent keeps to one prompt cache.

    A server is always chosen, if need be the one whose breaker is open for the shortest time: that a single server is
    down is for the attempt to find out.
    """

    def order(index: int) -> tuple[bool, int, bool, float, float, int]:
        candidate = candidates[index]
        open_until = candidate.open_until if candidate.breaker is BreakerState.OPEN else 0.0
        rank = _RANK[candidate.breaker]
        return (
            not candidate.routable,
            rank,
            candidate.failed,
            open_until,
            candidate.in_flight / max(1, candidate.slots),
            index,
        )

    return min(range(len(candidates)), key=order)
