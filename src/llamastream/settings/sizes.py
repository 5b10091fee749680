"""Sizes as people write them: `6GiB`, `500M`, a share of something."""

from __future__ import annotations

import re

from llamastream.errors import SettingError

_SIZE = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>%|[KMGT]?i?B?)", re.IGNORECASE)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def parse_size(text: str, whole: int | None = None) -> int | None:
    """Bytes of `6GiB`, `500M`, `1073741824`, or of a share of `whole` such as `80%`; None if it is none of these."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, unit = float(match["number"]), match["unit"].upper()
    if unit == "%":
        return int((whole or 0) * number / 100) if 0 < number <= 100 else None
    size = int(number * _UNITS[unit.rstrip("B").rstrip("I")])
    return size if size > 0 else None


def check_size(text: str, source: str) -> None:
    """Raises:
    SettingError: it is no size.
    """
    if parse_size(text, 1 << 40) is None:
        raise SettingError(
            f"a size of {text!r} from {source} is not allowed; allowed: a size such as 6GiB or 500MiB, "
            "or a share of the machine's memory such as 80%"
        )


def size_text(size: float) -> str:
    """Bytes for people: `1.5 GiB`."""
    for unit, factor in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if abs(size) >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size:.0f} bytes"
