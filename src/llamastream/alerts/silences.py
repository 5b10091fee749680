"""Silences that outlive the process that was asked for them: one small file for each fleet, in the state directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import msgspec
from msgspec import Struct

from llamastream.alerts.settings import RULE_NAMES, RuleName
from llamastream.files import write_whole

MOST_BYTES = 1 << 16
"""Of a file: one that is longer is none of ours."""


class _Kept(Struct, frozen=True, kw_only=True):
    silences: dict[str, float | None]
    format: int = 1


class SilenceFile:
    """Where they are kept: until when each rule is silent, in seconds since the epoch; None: until the fleet ends."""

    def __init__(self, path: Path) -> None:
        """Nothing is read or made yet."""
        self.path = path

    def read(self, now: float) -> dict[RuleName, float | None]:
        """Those that are not over, of the rules that there are; none where there is no file.

        Raises:
            ValueError: the file is damaged. OSError: it cannot be read.
        """
        try:
            with self.path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return {}
        if len(data) > MOST_BYTES:
            raise ValueError("it is too large")
        try:
            kept = msgspec.json.decode(data, type=_Kept).silences
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        return {rule: kept[rule] for rule in RULE_NAMES if rule in kept and _lasts(kept[rule], now)}

    def write(self, silences: Mapping[RuleName, float | None], now: float) -> None:
        """Keep those that are not over instead of what was there; without any there is no file.

        Raises:
            OSError: it cannot be written.
        """
        lasting = {str(rule): until for rule, until in silences.items() if _lasts(until, now)}
        if not lasting:
            self.path.unlink(missing_ok=True)
            return
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(self.path, msgspec.json.encode(_Kept(silences=lasting)) + b"\n")


def _lasts(until: float | None, now: float) -> bool:
    return until is None or until > now
