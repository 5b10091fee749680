"""Alerts of `serve`: what the watch looks at, and how its messages come into the log."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from llamastream.alerts.measures import Look
from llamastream.alerts.messages import Message, as_fields
from llamastream.alerts.receivers import receivers_of
from llamastream.alerts.settings import AlertSettings
from llamastream.alerts.silences import SilenceFile
from llamastream.alerts.watchman import Watchman
from llamastream.backends import BackendSource
from llamastream.cli.front import FrontGateway
from llamastream.engine.machine import memory
from llamastream.errors import SettingError
from llamastream.fleet.configuration import PASSING, Configuration
from llamastream.fleet.fleet import Fleet
from llamastream.fleet.records import Level, Record
from llamastream.fleet.workplace import cache_home, state_home
from llamastream.settings.file import user_directory


def watchman_of(
    settings: AlertSettings,
    source: Fleet | BackendSource,
    front: Callable[[], FrontGateway | None],
    take: Callable[[Record], None],
    configuration: Configuration | None = None,
    *,
    name: str,
) -> Watchman:
    """A watch over a fleet, or over servers that somebody else runs, and the gateway before them.

    Args:
        front: the gateway, None if there is none. take: gets a record of each message. configuration: the fleet's.
            name: by which commands find it.

    Raises:
        SettingError: a receiver's settings cannot be used.
    """
    directories: list[Path] = []
    if configuration is not None:
        directories = watched_directories(pool.options.slot_save_path for pool in configuration.pools)

    def look() -> Look:
        gateway = front()
        return look_at(source, None if gateway is None else gateway.waiting, directories)

    def undelivered(receiver: str, message: Message, why: str) -> None:
        said = f"the receiver {receiver} was not told of {message.rule} ({message.kind}): {why}"
        fields = {"receiver": receiver, "id": message.id}
        take(Record(time=time.time(), level="warning", event="alert_undelivered", message=said, fields=fields))

    return Watchman(
        settings,
        look,
        lambda message: take(record_of_alert(message)),
        undelivered=undelivered,
        memory=memory().usable,
        fleet="" if configuration is None else name,
        silences=silence_file(name),
    )


def silence_file(name: str) -> SilenceFile | None:
    """Where a fleet's silences are kept; None for one whose name nobody will have again."""
    if name.startswith(PASSING):
        return None
    with suppress(RuntimeError):  # no home
        return SilenceFile(user_directory("XDG_STATE_HOME", ".local/state") / "silences" / f"{name}.json")
    return None


def check_reload(settings: AlertSettings, alerts: Watchman | None) -> None:
    """Raises:
    SettingError: the watch cannot take over these settings.
    """
    if settings.watch != (alerts is not None):
        raise SettingError("alerts cannot be switched on or off by a reload: start `serve` again")
    if alerts is not None:
        receivers_of(settings)


def look_at(source: Fleet | BackendSource, waiting: int | None, directories: Iterable[Path]) -> Look:
    """How the whole is now."""
    free = {str(directory): space for directory in directories if (space := free_space(directory)) is not None}
    if not isinstance(source, Fleet):
        states = {backend.id: backend.state for backend in source.snapshot()}
        return Look(instances=states, waiting=waiting, free=free)
    reports = source.status()
    return Look(
        instances={report.id: report.state for report in reports},
        memory={report.id: report.rss_bytes for report in reports if report.pid},
        heavy={report.id: report.memory_warning for report in reports if report.memory_warning},
        growth={report.id: report.memory_slope for report in reports if report.memory_slope is not None},
        waiting=waiting,
        free=free,
    )


def watched_directories(slots: Iterable[str | None]) -> list[Path]:
    """Where slots are saved, and where state is kept; of those on the same disk the first."""
    chosen: list[Path] = []
    with suppress(RuntimeError):  # no home
        chosen = [cache_home() / "llamastream", state_home() / "llamastream"]
    found: dict[int, Path] = {}
    for directory in (*(Path(each) for each in slots if each is not None), *chosen):
        with suppress(OSError):
            found.setdefault(_existing(directory).stat().st_dev, directory)
    return list(found.values())


def free_space(directory: Path) -> int | None:
    """Bytes that are free for us where it is, or will be; None: nobody can say."""
    try:
        there = os.statvfs(_existing(directory))
    except OSError:
        return None
    return there.f_bavail * there.f_frsize


def _existing(directory: Path) -> Path:
    return next(each for each in (directory.absolute(), *directory.absolute().parents) if each.exists())


def record_of_alert(message: Message) -> Record:
    """A message in the log."""
    level: Level = "warning"
    if message.kind in ("recovered", "test"):
        level = "info"
    elif message.severity == "critical":
        level = "error"
    return Record(
        time=message.time,
        level=level,
        event="alert",
        message=f"{message.title}: {message.text}".replace("\n", " | "),
        instance=message.subjects[0].name if len(message.subjects) == 1 and message.rule in OF_INSTANCES else "",
        fields=as_fields(message),
    )


OF_INSTANCES = frozenset({"instance_down", "crash_loop", "wedge", "memory", "memory_growth"})
"""Rules whose subject is an instance."""
