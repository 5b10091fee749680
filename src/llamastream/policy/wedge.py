"""Does a server get on? What `/health` cannot say, several looks at its slots and its CPU time can.

`/health` is answered by a thread that knows nothing of the decode loop. `/slots` is answered by that loop itself,
between two batches: an answer shows that it lives, no answer may mean a long batch, a full machine, or the end. So no
single sign condemns a server: when none of them has shown life for a while, it is asked for one token (the canary),
with a deadline of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from msgspec import Struct

from llamastream.policy.stall import made_progress

Verdict: TypeAlias = Literal["well", "quiet", "canary", "wedged"]
"""`well`: it lives. `quiet`: no sign of life, but not for long. `canary`: ask it for a token. `wedged`: it hangs."""

Remedy: TypeAlias = Literal["wait", "serve", "replace", "end"]
"""`wait`: look again. `serve`: it gets on, and may have requests. `replace`: the same, but a fresh process should take
its place when its turn comes. `end`: end the process."""

BURNING = 0.1
"""CPU seconds per second from which on a process is at work."""


class WedgePolicy(Struct, frozen=True, kw_only=True):
    """How long a server may show no life.

    Attributes:
        quiet_limit: seconds without any sign of life, after which it is asked for a token.
        compute_limit: seconds for which being at work (CPU time) counts as a sign of life, while neither its slots get
            on nor `/slots` is answered: a long batch on a slow machine takes minutes.
    """

    quiet_limit: float = 5.0
    compute_limit: float = 300.0


def remedy(*, lives: bool, hung_before: int, waited: float, grace: float) -> Remedy:
    """What to do next with a server that is taken to hang, gets no more requests, and whose generations were cancelled.

    One that gets on again was frozen for a while (a machine that slept, a full disk, a stopped process), or hung in
    what was cancelled: nothing is gained by another loss of its prompt caches. If that happens to the same process
    again, there is something wrong with it.

    Args:
        lives: whether its decode loop has shown life since. hung_before: how often this process has hung and got on.
        waited: seconds since it was taken to hang. grace: seconds that it may take to get on again.
    """
    if lives:
        return "replace" if hung_before else "serve"
    return "end" if waited >= grace else "wait"


class Look(Struct, frozen=True, kw_only=True):
    """What one look found.

    Attributes:
        now: monotonic seconds. slots: what `/slots` answered, None if nothing. healthy: whether `/health` answered 200,
            asked only of servers that do not serve `/slots`; None: it was not asked.
        cpu_seconds: CPU time of the process so far; None: not known.
        canary: whether the token that it was asked for came in time; None: it was not asked.
    """

    now: float
    slots: Sequence[Mapping[str, Any]] | None
    healthy: bool | None = None
    cpu_seconds: float | None = None
    canary: bool | None = None


class WedgeWatch:
    """Looks at one process, from the moment when it was ready. Not thread-safe."""

    def __init__(self, policy: WedgePolicy, now: float) -> None:
        self._policy = policy
        self._alive_at = now  # the loop itself showed life
        self._sign_at = now  # any sign, CPU time included
        self._slots: Sequence[Mapping[str, Any]] | None = None
        self._cpu: tuple[float, float] | None = None

    @property
    def quiet_since(self) -> float:
        """When it last showed life, in monotonic seconds."""
        return self._sign_at

    def observe(self, look: Look) -> Verdict:
        """Take what a look found, and judge."""
        if look.canary is False:
            return "wedged"
        if look.canary or self._loop_lives(look):
            self._alive_at = self._sign_at = look.now
        elif self._burns(look) and look.now - self._alive_at < self._policy.compute_limit:
            self._sign_at = look.now
        self._remember(look)
        if look.now == self._sign_at:
            return "well"
        return "canary" if look.now - self._sign_at >= self._policy.quiet_limit else "quiet"

    def explain(self, now: float) -> str:
        """Why it is taken to hang, for people."""
        return f"no sign of life for {now - self._sign_at:.0f} s, and it did not generate a token when it was asked to"

    def _loop_lives(self, look: Look) -> bool:
        if look.slots is None:
            return bool(look.healthy)  # the little that there is to know
        if not any(slot.get("is_processing") for slot in look.slots):
            return True  # nothing to get on with, and the loop answers
        return self._slots is None or made_progress(self._slots, look.slots)

    def _burns(self, look: Look) -> bool:
        if look.cpu_seconds is None or self._cpu is None:
            return False
        then, cpu = self._cpu
        return look.cpu_seconds - cpu >= BURNING * max(look.now - then, 1e-6)

    def _remember(self, look: Look) -> None:
        if look.slots is not None:
            self._slots = look.slots
        if look.cpu_seconds is not None:
            self._cpu = (look.now, look.cpu_seconds)
