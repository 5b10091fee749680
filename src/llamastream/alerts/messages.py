"""What receivers are told, and what commands are told of the rules."""

from __future__ import annotations

import socket
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct

from llamastream.alerts.rules import Severity

Kind: TypeAlias = Literal["firing", "ongoing", "recovered", "test"]


class Subject(Struct, frozen=True, kw_only=True):
    """What it is about.

    Attributes:
        name: an instance or a directory; "" for the whole. value: the reading, None for none. detail: more, in words.
        since: when it became bad, in seconds since the epoch. lasted: seconds that it was, once it is over.
    """

    name: str
    value: float | None = None
    detail: str = ""
    since: float = 0.0
    lasted: float | None = None


class Message(Struct, frozen=True, kw_only=True):
    """One message, of one rule, for everything that it says at about the same time.

    Attributes:
        id: the same in every attempt to tell it. time: seconds since the epoch. kind: `ongoing` repeats an alert that
            goes on. title, text: for people. unit, threshold: of the values. fleet, host: whose.
    """

    id: str
    time: float
    kind: Kind
    rule: str
    severity: Severity
    title: str
    text: str
    unit: str = ""
    threshold: float | None = None
    subjects: tuple[Subject, ...] = ()
    fleet: str = ""
    host: str = msgspec.field(default_factory=socket.gethostname)


def encoded(message: Message) -> bytes:
    """As JSON."""
    return msgspec.json.encode(message)


class AlertReport(Struct, frozen=True, kw_only=True):
    """A rule, or one thing under it, as commands show it.

    Attributes:
        rule: its name. what: what it means. subject: what it is about, "" for the whole. phase: `well`, `pending`,
            `firing`, `clearing`, or `off`. value, threshold: None: there is none. shown: both in words. since: when it
            became bad, in seconds since the epoch, or None. silenced_until: seconds since the epoch; 0: for good;
            None: it is not.
    """

    rule: str
    what: str
    subject: str
    phase: str
    severity: Severity
    value: float | None
    threshold: float | None
    shown: str
    since: float | None
    silenced_until: float | None


class ReceiverReport(Struct, frozen=True, kw_only=True):
    """A receiver. `last_error`: why the last attempt failed, "" if it did not."""

    name: str
    sent: int
    failed: int
    dropped: int
    waiting: int
    last_error: str


class Outcome(Struct, frozen=True, kw_only=True):
    """What came of a test message at a receiver: `error` is "" if it was taken."""

    receiver: str
    error: str


def as_fields(message: Message) -> dict[str, Any]:
    """For a record of the log."""
    found = {"rule": message.rule, "alert": message.kind, "severity": message.severity, "id": message.id}
    return found | {"subjects": [msgspec.to_builtins(subject) for subject in message.subjects]}
