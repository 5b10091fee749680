"""What a fleet is to be: settings that hold for all its instances, and the pools of instances of one model each."""

from __future__ import annotations

import datetime
import re
from typing import Annotated, ClassVar

from msgspec import Meta, Struct

from llamastream.engine import EngineOptions
from llamastream.errors import SettingError
from llamastream.policy.memory import MemoryPolicy
from llamastream.policy.restarts import RestartPolicy, Schedule
from llamastream.policy.wedge import WedgePolicy
from llamastream.settings.sizes import check_size, parse_size

Positive = Annotated[float, Meta(gt=0, le=1e7)]
Count = Annotated[int, Meta(ge=1)]

AUTO, OFF = "auto", "off"
"""Of `memory_limit`."""


def _check_limit(text: str, source: str) -> None:
    if text not in (AUTO, OFF) and parse_size(text, 1 << 40) is None:
        raise SettingError(
            f"memory_limit = {text!r} from {source} is not allowed; allowed: a size such as 6GiB or 500MiB, "
            f"a share of the machine's memory such as 80%, {AUTO}, or {OFF}"
        )


def parse_time(text: str) -> datetime.time | None:
    """A time of the day from `HH:MM`; None if it is none."""
    match = re.fullmatch(r"(\d{1,2}):(\d{2})", text.strip())
    if match is None or int(match[1]) > 23 or int(match[2]) > 59:
        return None
    return datetime.time(int(match[1]), int(match[2]))


def _check_time(text: str, source: str) -> None:
    if parse_time(text) is None:
        raise SettingError(f"restart_at = {text!r} from {source} is not allowed; allowed: a time such as 04:30")


def _check_name(text: str, source: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}", text):
        raise SettingError(
            f"name = {text!r} from {source} is not allowed; allowed: up to 40 letters, digits, '-', '_' and '.', "
            "with a letter or a digit in front"
        )


class FleetSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How instances are supervised; times are in seconds."""

    SECTION: ClassVar[str] = "fleet"

    name: Annotated[
        str | None,
        Meta(
            description="Name by which `llamastream status` and the other commands find this fleet; unset: "
            "`serve-PORT`.",
            extra={"check": _check_name},
        ),
    ] = None
    instances: Annotated[int, Meta(ge=1, le=256, description="Servers of each model that run side by side.")] = 1
    min_ready: Annotated[
        int, Meta(ge=0, description="Servers that stay ready while another is restarted as planned.")
    ] = 1
    drain_timeout: Annotated[
        float, Meta(ge=0, le=1e7, description="Seconds that running requests may take when a server is to stop.")
    ] = 30.0
    restart_delay: Annotated[
        Positive, Meta(description="Seconds before a server that ended is started again; doubled with each crash.")
    ] = 0.5
    max_restart_delay: Annotated[Positive, Meta(description="The longest such delay, in seconds.")] = 30.0
    crash_limit: Annotated[
        int,
        Meta(
            ge=0,
            le=1000,
            description="So many ends within `crash_window` seconds, and a server is not started again by itself "
            "(0: always again).",
        ),
    ] = 10
    crash_window: Annotated[Positive, Meta(description="Seconds, see `crash_limit`.")] = 600.0
    restart_every: Annotated[
        Positive | None, Meta(description="Seconds after which a server is replaced by a fresh one.")
    ] = None
    restart_at: Annotated[
        str | None,
        Meta(
            description="Time of the day (HH:MM) at which servers are replaced by fresh ones.",
            extra={"check": _check_time},
        ),
    ] = None
    restart_after_requests: Annotated[
        Count | None, Meta(description="Requests after which a server is replaced by a fresh one.")
    ] = None
    memory_limit: Annotated[
        str,
        Meta(
            description="Private memory and swap of a server above which it is replaced: a size (6GiB), a share of "
            "the machine's (80%), `auto`: what it had when it was ready, what it may fill, and an even share of what "
            "the machine has left; or `off`.",
            extra={"check": _check_limit},
        ),
    ] = AUTO
    memory_growth: Annotated[
        str | None,
        Meta(
            description="Steady growth of that memory in an hour above which a server is replaced, such as 500MiB.",
            extra={"check": check_size},
        ),
    ] = None
    memory_window: Annotated[Positive, Meta(description="Seconds that growth of memory is judged by.")] = 600.0
    memory_check: Annotated[bool, Meta(description="Refuse to start more than the machine's memory can hold.")] = True
    look_interval: Annotated[
        Annotated[float, Meta(ge=0.05, le=3600)], Meta(description="Seconds between two looks at a server.")
    ] = 2.0
    wedge_after: Annotated[
        Positive, Meta(description="Seconds without a sign of life after which a server is asked for a token.")
    ] = 5.0
    canary_timeout: Annotated[Positive, Meta(description="Seconds that this token may take.")] = 5.0
    compute_limit: Annotated[
        Positive, Meta(description="Seconds for which CPU time alone counts as a sign of life.")
    ] = 300.0
    warm: Annotated[
        bool,
        Meta(description="Save the prompt caches of the slots before a planned restart, and restore them after it."),
    ] = True
    warm_space: Annotated[
        str, Meta(description="Disk space that saved slots may take, all together.", extra={"check": check_size})
    ] = "4GiB"

    @property
    def restart_policy(self) -> RestartPolicy:
        return RestartPolicy(
            base_delay=self.restart_delay,
            max_delay=self.max_restart_delay,
            crash_limit=self.crash_limit,
            crash_window=self.crash_window,
        )

    @property
    def schedule(self) -> Schedule:
        return Schedule(
            every=self.restart_every,
            at=None if self.restart_at is None else parse_time(self.restart_at),
            after_requests=self.restart_after_requests,
        )

    @property
    def wedge_policy(self) -> WedgePolicy:
        return WedgePolicy(quiet_limit=self.wedge_after, compute_limit=self.compute_limit)

    def memory_policy(self, usable: int, allowance: int | None = None) -> MemoryPolicy:
        """For a machine with so many usable bytes of memory, and a server that may have `allowance` bytes beyond what
        it has when it is ready, where the settings say nothing else."""
        growth = None if self.memory_growth is None else parse_size(self.memory_growth, usable)
        return MemoryPolicy(
            limit=None if self.memory_limit in (AUTO, OFF) else parse_size(self.memory_limit, usable),
            allowance=allowance if self.memory_limit == AUTO else None,
            slope_limit=None if growth is None else growth / 3600,
            window=self.memory_window,
            min_seconds=min(60.0, self.memory_window / 2),
            lead=self.drain_timeout + 30.0,
        )


class Pool(Struct, frozen=True, kw_only=True):
    """Instances of one model.

    Attributes:
        name: unique in the fleet; its instances are `NAME-0`, `NAME-1`, ... options: how each is started; with a fixed
            port, the instances of the fleet listen on that port and those after it. instances: how many.
    """

    name: str
    options: EngineOptions
    instances: int = 1
