"""Lengths and lists as people write them on a command line: `128`, `64:256`, `1,2,4,8`."""

from __future__ import annotations

import random

from msgspec import Struct

from llamastream.errors import SettingError

MAX_LENGTH = 1 << 20
MAX_CONCURRENCY = 1 << 14
MAX_RATE = 1e5


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
    try:
        numbers = tuple(int(part) for part in _parts(text))
    except ValueError:
        raise _wrong(text, name, source, allowed) from None
    if len(set(numbers)) < len(numbers) or not all(1 <= number <= MAX_CONCURRENCY for number in numbers):
        raise _wrong(text, name, source, allowed)
    return numbers


def parse_rates(text: str, name: str = "rate", source: str = "") -> tuple[float, ...]:
    """`0.5,2`; empty for none. Raises as `parse_lengths`."""
    allowed = f"numbers above 0 up to {MAX_RATE:g}, separated by commas, each once: requests per second"
    try:
        numbers = tuple(float(part) for part in _parts(text))
    except ValueError:
        raise _wrong(text, name, source, allowed) from None
    if len(set(numbers)) < len(numbers) or not all(0 < number <= MAX_RATE for number in numbers):
        raise _wrong(text, name, source, allowed)
    return numbers


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _wrong(text: str, name: str, source: str, allowed: str) -> SettingError:
    where = f" from {source}" if source else ""
    return SettingError(f"{name} = {text!r}{where} is not allowed; allowed: {allowed}")
