"""What a fleet has to say, in one form: changes of its instances, what their servers log, and what itself does."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

from msgspec import Struct
from msgspec.structs import replace

from llamastream.events import FleetEvent, InstanceChanged, InstanceWarning
from llamastream.types import LogRecord

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("debug", "info", "warning", "error")
"""From the least to the most important."""


class Record(Struct, frozen=True, kw_only=True):
    """One thing that was said.

    Attributes:
        time: seconds since the epoch. level: see `LEVELS`. instance: whom it is about, "" for the whole fleet.
        event: its kind, for programs: `server_log` for a line of llama-server, `state`, `warning`, `slots_restored`
            of an instance, and what `serve` does. message: for people. source: what a server's line names as its
            origin. fields: more, by kind.
    """

    time: float
    level: Level
    event: str
    message: str
    instance: str = ""
    source: str = ""
    fields: dict[str, Any] = {}


def of_log(instance: str, record: LogRecord) -> Record:
    """A line of a server."""
    return Record(
        time=record.time,
        level=record.level,
        event="server_log",
        message=record.message,
        instance=instance,
        source=record.source,
    )


def of_event(event: FleetEvent, now: float) -> Record:
    """Something that happened to an instance.

    Args:
        now: seconds since the epoch, for events that have no time of their own.
    """
    if isinstance(event, InstanceChanged):
        fields: dict[str, Any] = {"before": event.before, "after": event.after, "generation": event.generation}
        if event.last_exit is not None:
            fields["last_exit"] = event.last_exit
        return Record(
            time=event.time,
            level=_level(event),
            event="state",
            message=event.reason if event.reason.startswith(event.after) else f"{event.after}: {event.reason}",
            instance=event.id,
            fields=fields,
        )
    if isinstance(event, InstanceWarning):
        return Record(
            time=event.time,
            level="warning",
            event="warning",
            message=event.message,
            instance=event.id,
            fields={"topic": event.topic},
        )
    fields = {"tokens": event.tokens, "slots": event.slots, "bytes": event.size, "seconds": round(event.seconds, 3)}
    return Record(
        time=now,
        level="info",
        event="slots_restored",
        message=f"prompt caches are back: {event.tokens} tokens in {event.slots} slots, {event.seconds:.2f} s",
        instance=event.id,
        fields=fields,
    )


def _level(event: InstanceChanged) -> Level:
    if event.after == "failed":
        return "error"
    if event.after == "wedged" or (event.after == "restarting" and event.before != "draining"):
        return "warning"  # nobody planned that
    # each start goes through these, and says so when it is over
    return "debug" if event.after in ("starting", "loading", "busy") or event.before == "busy" else "info"


def encodable(record: Record) -> Record:
    """The record without characters that are none: names of files may hold bytes that are no text."""
    if record.message.isascii():
        return record
    return replace(record, message=record.message.encode("utf-8", "backslashreplace").decode())


def as_dict(record: Record) -> dict[str, Any]:
    """A record as one object of JSON, with its time in ISO 8601 (UTC, milliseconds)."""
    time = datetime.fromtimestamp(record.time, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    line: dict[str, Any] = {"time": time, "level": record.level, "instance": record.instance, "event": record.event}
    line["message"] = record.message
    if record.source:
        line["source"] = record.source
    return line | {name: value for name, value in record.fields.items() if name not in line}


def at_least(level: Level) -> frozenset[Level]:
    """This level and all that are more important."""
    return frozenset(LEVELS[LEVELS.index(level) :])
