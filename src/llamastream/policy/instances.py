"""The life of one supervised llama-server as a table: in which state what may happen, and what comes of it."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from llamastream.backends import InstanceState

Trigger: TypeAlias = Literal[
    "spawn", "spawned", "loaded", "filled", "freed", "drain", "undrain", "wedge", "revive", "end", "give_up", "stop"
]

STATES: dict[InstanceState, str] = {
    "starting": "the process is being started",
    "loading": "the process runs and loads its model",
    "ready": "it takes requests",
    "busy": "it takes requests, but every slot is taken: they wait in line",
    "draining": "it takes no new requests, and finishes those that it has",
    "restarting": "the process has ended; the next start waits for its time",
    "wedged": "the process runs, but does not get on; if that stays so, it is ended",
    "failed": "it is not started again by itself, for the reason that is given",
    "stopped": "it was told to stop",
}
"""Each state with what it means."""

_UP: dict[Trigger, InstanceState] = {
    "drain": "draining", "wedge": "wedged", "end": "restarting", "stop": "stopped",
}  # fmt: skip

TRANSITIONS: dict[InstanceState, dict[Trigger, InstanceState]] = {
    "stopped": {"spawn": "starting", "stop": "stopped"},
    "starting": {"spawned": "loading", "end": "restarting", "stop": "stopped"},
    "loading": {"loaded": "ready", "end": "restarting", "stop": "stopped"},
    "ready": {**_UP, "filled": "busy"},
    "busy": {**_UP, "freed": "ready"},
    "draining": {"undrain": "ready", "wedge": "wedged", "end": "restarting", "stop": "stopped"},
    "wedged": {"revive": "ready", "end": "restarting", "stop": "stopped"},
    "restarting": {"spawn": "starting", "give_up": "failed", "stop": "stopped"},
    "failed": {"spawn": "starting", "stop": "stopped"},
}
"""State → trigger → state; what is not in it cannot happen.

`spawn`: a start begins · `spawned`: the process exists · `loaded`: it says that it is ready · `filled`, `freed`: the
last slot was taken, one is free again · `drain`, `undrain`: no new requests, and again some · `wedge`: it does not get
on · `revive`: it does again · `end`: the process has ended · `give_up`: it ended too often · `stop`: stopped on
purpose.
"""


class InstanceStatus(Struct, frozen=True, kw_only=True):
    """How an instance is, and since when.

    Attributes:
        state: see `STATES`. reason: why it is so, in words. since: when it came to this state, in seconds since the
            epoch. restarts: starts after the first one. last_exit: exit code of the last process that ended (negative:
            the signal), None if none has. generation: how many processes there have been.
    """

    state: InstanceState = "stopped"
    reason: str = "not started yet"
    since: float = 0.0
    restarts: int = 0
    last_exit: int | None = None
    generation: int = 0


class TransitionError(Exception):
    """What was to happen cannot happen in this state: a mistake in the program."""


def transition(
    status: InstanceStatus, trigger: Trigger, now: float, reason: str, *, last_exit: int | None = None
) -> InstanceStatus:
    """What becomes of an instance.

    Args:
        now: seconds since the epoch.
        last_exit: exit code, where a process has ended.

    Raises:
        TransitionError: the table has no such transition.
    """
    state = TRANSITIONS[status.state].get(trigger)
    if state is None:
        raise TransitionError(f"{trigger!r} cannot happen to an instance that is {status.state!r}")
    spawned = trigger == "spawn"
    return replace(
        status,
        state=state,
        reason=reason,
        since=now if state != status.state else status.since,
        restarts=status.restarts + (1 if spawned and status.generation else 0),
        generation=status.generation + (1 if spawned else 0),
        last_exit=status.last_exit if last_exit is None else last_exit,
    )
