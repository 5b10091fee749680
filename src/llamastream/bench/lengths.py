"""Lengths and lists as people write them on a command line: `128`, `64:256`, `1,2,4,8`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from msgspec import Struct

from llamastream.errors import SettingError

MAX_LENGTH = 1 << 20
MAX_CONCURRENCY = 1 << 14
MIN_RATE, MAX_RATE = 1e-4, 1e5

N = TypeVar("N", int, float)


class Lengths(Struct, frozen=True):
    """A distribution of lengths in tokens: uniform from `low` to `high`, both included; fixed where they are equal."""

    low: int
    high: int

    def draw(self, chance: random.Random) -> int:
        """One length."""
        return self.low if self.low == self.high else chance.randint(self.low, self.high)


def parse_lengths(text: str, name: str, source: str = "") -> Lengths:
    """`128` or `64:256`.

    Raises:
        SettingError: it is neither; the message names the setting `name` and where it came from.
    """
    low, colon, high = text.partition(":")
    try:
        lengths = Lengths(int(low), int(high if colon else low))
    except ValueError:
        raise _wrong(text, name, source, _LENGTHS) from None
    if not 1 <= lengths.low <= lengths.high <= MAX_LENGTH:
        raise _wrong(text, name, source, _LENGTHS)
    return lengths


_LENGTHS = f"a whole number from 1 to {MAX_LENGTH}, or two as in 64:256 for lengths spread evenly from 64 to 256"


def parse_concurrency(text: str, name: str = "concurrency", source: str = "") -> tuple[int, ...]:
    """`1,2,4,8`; empty for none. Raises as `parse_lengths`."""
    allowed = f"whole numbers from 1 to {MAX_CONCURRENCY}, separated by commas, each once"
    return _parse_list(text, int, 1, MAX_CONCURRENCY, _wrong(text, name, source, allowed))


def parse_rates(text: str, name: str = "rate", source: str = "") -> tuple[float, ...]:
    """`0.5,2`; empty for none. Raises as `parse_lengths`."""
    allowed = f"numbers from {MIN_RATE:g} to {MAX_RATE:g}, separated by commas, each once: requests per second"
    return _parse_list(text, float, MIN_RATE, MAX_RATE, _wrong(text, name, source, allowed))


def _parse_list(text: str, kind: Callable[[str], N], low: N, high: N, wrong: SettingError) -> tuple[N, ...]:
    try:
        numbers = tuple(kind(part.strip()) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise wrong from None
    if len(set(numbers)) < len(numbers) or not all(low <= number <= high for number in numbers):
        raise wrong
    return numbers


def _wrong(text: str, name: str, source: str, allowed: str) -> SettingError:
    where = f" from {source}" if source else ""
    return SettingError(f"{name} = {text!r}{where} is not allowed; allowed: {allowed}")
