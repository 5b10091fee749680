"""Baselines: measurements that are kept by name, in the user's state directory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgspec

from llamastream.bench.report import FORMAT, Report
from llamastream.errors import BenchError, SettingError
from llamastream.files import write_whole
from llamastream.settings.file import user_directory

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def baseline_directory(environ: Mapping[str, str] | None = None) -> Path:
    """Where baselines are (XDG Base Directory Specification)."""
    return user_directory("XDG_STATE_HOME", ".local/state", environ) / "baselines"


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        SettingError: it is not.
    """
    if not _NAME.fullmatch(name):
        raise SettingError(
            f"the baseline's name {name!r} is not allowed; allowed: letters, digits, '.', '_' and '-', 64 at most, a "
            "letter or digit first"
        )
    return name


def save(report: Report, name: str, directory: Path) -> Path:
    """Keep a report under a name; one of before is replaced, in one step.

    Raises:
        SettingError: the name is not allowed. BenchError: it cannot be written.
    """
    path = directory / f"{check_name(name)}.json"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(path, msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise BenchError(f"the baseline {name!r} cannot be written to {directory}: {error.strerror}") from None
    return path


def read(name: str, directory: Path) -> Report:
    """The report of a name.

    Raises:
        SettingError: there is none; the message names those that exist. BenchError: it cannot be read.
    """
    path = directory / f"{check_name(name)}.json"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        known = ", ".join(names(directory)) or "there are none yet; `llamastream bench --save NAME` makes one"
        raise SettingError(f"there is no baseline {name!r}; known: {known}") from None
    except OSError as error:
        raise BenchError(f"the baseline {path} cannot be read: {error.strerror}") from None
    try:
        report = msgspec.json.decode(data, type=Report)
    except msgspec.DecodeError as error:
        raise BenchError(f"the baseline {path} cannot be read: {error}; make it anew with --save {name}") from None
    if report.format != FORMAT:
        raise BenchError(f"the baseline {path} has format {report.format}, not {FORMAT}; make it anew with --save")
    return report


def names(directory: Path) -> list[str]:
    """All baselines there are, sorted."""
    with suppress(OSError):
        return sorted(path.stem for path in directory.glob("*.json") if _NAME.fullmatch(path.stem))
    return []
