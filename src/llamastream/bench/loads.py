"""Which loads there are, and when the requests of an open loop are due. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Literal

from msgspec import Struct

from llamastream.bench.lengths import parse_concurrency, parse_rates
from llamastream.bench.settings import Arrivals, BenchSettings
from llamastream.errors import SettingError

DEFAULT_SECONDS = 10.0
DEFAULT_CONCURRENCY = (1, 4)


class Load(Struct, frozen=True):
    """One way to put load on a server.

    Attributes:
        kind: `closed`: always `value` requests at a time; `open`: `value` requests begin each second.
    """

    kind: Literal["closed", "open"]
    value: float

    @property
    def label(self) -> str:
        """`4 at once`, `2.5/s`."""
        return f"{self.value:g} at once" if self.kind == "closed" else f"{self.value:g}/s"


class Extent(Struct, frozen=True):
    """How long a load lasts: until `requests` have begun, or `seconds` are over; None: not bounded by that."""

    requests: int | None
    seconds: float | None


def loads_of(settings: BenchSettings) -> tuple[Load, ...]:
    """The loads to measure, closed loops first.

    Raises:
        SettingError: there are none.
    """
    rates = parse_rates(settings.rate or "")
    given = settings.concurrency
    closed = parse_concurrency(given) if given is not None else () if rates else DEFAULT_CONCURRENCY
    loads = (*(Load("closed", number) for number in closed), *(Load("open", rate) for rate in rates))
    if not loads:
        raise SettingError("there is nothing to measure: give concurrency (such as 1,2,4) or rate (such as 0.5,2)")
    return loads


def extent_of(settings: BenchSettings) -> Extent:
    """How long each load lasts."""
    seconds = settings.seconds
    if seconds is None and settings.requests is None:
        seconds = DEFAULT_SECONDS
    return Extent(settings.requests, seconds)


def arrival_times(rate: float, extent: Extent, arrivals: Arrivals, chance: random.Random) -> Iterator[float]:
    """When requests are due, in seconds from the beginning of an open loop: the first at once."""
    due, number = 0.0, 0
    while (extent.requests is None or number < extent.requests) and (extent.seconds is None or due < extent.seconds):
        yield due
        number += 1
        due = number / rate if arrivals == "constant" else due + chance.expovariate(rate)
