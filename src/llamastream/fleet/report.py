"""How an instance is, for people and programs."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct

from llamastream.backends import Backend, InstanceState
from llamastream.engine import Engine, EngineOptions
from llamastream.fleet.run import Findings, Run
from llamastream.policy.instances import InstanceStatus


class InstanceReport(Struct, frozen=True, kw_only=True):
    """One instance as `status` shows it.

    Attributes:
        id, model, url: which it is. pid: of the server, 0 if none runs. state, reason: see `policy.instances.STATES`.
        since: when it came to this state, in seconds since the epoch. slots: how many it has. in_flight: requests that
            it works on. requests: how many it has begun since it was started. restarts: starts after the first.
        last_exit: exit code of the last process that ended (negative: the signal), or None.
        rss_bytes: memory of the server: private and swapped where the system tells them apart, else resident.
        memory_slope: bytes per second by which it grows steadily, None if there is too little evidence.
        memory_warning: why its memory is too much, or will be soon; "" while it is not.
        tokens_per_second: decode speed of all slots together, over the last looks.
        kind: `executable` or `embedded`. build: the server's version. start_seconds: how long the last start took.
    """

    id: str
    model: str
    url: str
    pid: int
    state: InstanceState
    reason: str
    since: float
    slots: int
    in_flight: int
    requests: int
    restarts: int
    last_exit: int | None
    rss_bytes: int
    memory_slope: float | None
    tokens_per_second: float
    kind: str
    build: str
    start_seconds: float
    memory_warning: str = ""


class _Described(Protocol):
    """An instance, as far as it is described here."""

    id: str
    model: str
    options: EngineOptions
    status: InstanceStatus
    pid: int
    restored: bool


def describe_backend(instance: _Described, last: Engine | None, found: Findings | None) -> Backend:
    """An instance as those see it who send requests. `last` is the process that was ready last; `found` is what the
    last look found, if that is the one which runs now."""
    return Backend(
        id=instance.id,
        url="" if last is None else last.url,
        api_key=instance.options.api_key,
        models=() if last is None else (last.capabilities.model_alias or instance.model,),
        slots=instance.options.parallel if last is None else last.capabilities.slots,
        state=instance.status.state,
        pid=instance.pid,
        in_flight=0 if found is None else found.in_flight,
        generation=instance.status.generation,
        tasks=() if last is None else last.capabilities.tasks,
        restored=instance.restored,
        private=instance.options.socket is not None,
    )


def describe_instance(
    instance: _Described, run: Run | None, last: Engine | None, found: Findings | None
) -> InstanceReport:
    """An instance as people see it."""
    here = found if run is not None else None
    backend = describe_backend(instance, last, here)
    status = instance.status
    return InstanceReport(
        id=backend.id,
        model=backend.models[0] if backend.models else instance.model,
        url=backend.url,
        pid=backend.pid,
        state=status.state,
        reason=status.reason,
        since=status.since,
        slots=backend.slots,
        in_flight=backend.in_flight,
        requests=0 if run is None else run.tally.requests,
        restarts=status.restarts,
        last_exit=status.last_exit,
        rss_bytes=0 if here is None else here.memory,
        memory_slope=None if here is None else here.memory_verdict.slope,
        memory_warning="" if here is None or here.memory_verdict.level == "ok" else here.memory_verdict.reason,
        tokens_per_second=0.0 if here is None else here.tokens_per_second,
        kind="" if last is None else last.kind,
        build="" if last is None else last.capabilities.build,
        start_seconds=0.0 if last is None else last.start_seconds,
    )
