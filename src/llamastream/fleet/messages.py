"""What goes over the control socket: one line of JSON in, lines of JSON out, the last one `ok` or `error`."""

from __future__ import annotations

from typing import TypeAlias

import msgspec
from msgspec import Struct

from llamastream.alerts.messages import AlertReport, Outcome, ReceiverReport
from llamastream.fleet.records import Level, Record
from llamastream.fleet.report import InstanceReport

MAX_REQUEST = 64 * 1024
"""Bytes that a request may have."""
MAX_REPLY = 4 << 20
"""Bytes that a line of a reply may have: the status of hundreds of instances."""
BEAT_SECONDS = 5.0
"""After so many seconds without anything to say, the fleet says that it still lives."""


class AskStatus(Struct, frozen=True, tag_field="do", tag="status"):
    """How everything is."""


class AskRestart(Struct, frozen=True, tag_field="do", tag="restart"):
    """Replace instances by fresh ones, one after the other. No `ids`: all of them."""

    ids: tuple[str, ...] = ()
    wait: bool = True


class AskDrain(Struct, frozen=True, tag_field="do", tag="drain"):
    """Send instances no new requests; done when nothing runs on them any more."""

    ids: tuple[str, ...]
    wait: bool = True


class AskUndrain(Struct, frozen=True, tag_field="do", tag="undrain"):
    """End `drain`."""

    ids: tuple[str, ...]
    wait: bool = True


class AskReload(Struct, frozen=True, tag_field="do", tag="reload"):
    """Read the configuration anew, and apply what has changed."""

    wait: bool = True


class AskStop(Struct, frozen=True, tag_field="do", tag="stop"):
    """End the fleet. `now`: running requests are cut."""

    now: bool = False
    wait: bool = True


class AskLogs(Struct, frozen=True, tag_field="do", tag="logs"):
    """The last `lines` records, of `ids` or of all, of `level` or above; with `follow`, those to come as well."""

    ids: tuple[str, ...] = ()
    lines: int = 100
    level: Level = "debug"
    follow: bool = False


class AskAlerts(Struct, frozen=True, tag_field="do", tag="alerts"):
    """The rules of alerts, and how everything under them is."""


class AskAlertTest(Struct, frozen=True, tag_field="do", tag="alert_test"):
    """Send a test message to every receiver: one of a rule, or of any."""

    rule: str | None = None


class AskSilence(Struct, frozen=True, tag_field="do", tag="silence"):
    """Tell nothing of a rule for so many seconds; 0 ends that, None: until the fleet ends."""

    rule: str
    seconds: float | None = None


Request: TypeAlias = (
    AskStatus
    | AskRestart
    | AskDrain
    | AskUndrain
    | AskReload
    | AskStop
    | AskLogs
    | AskAlerts
    | AskAlertTest
    | AskSilence
)


class FleetStatus(Struct, frozen=True, kw_only=True, tag_field="kind", tag="status"):
    """A fleet as `status` shows it.

    Attributes:
        name: by which commands find it. pid: of the supervisor. version: of llamastream. started: in seconds since the
            epoch. phase: `starting`, `running` or `stopping`. instances: each of them.
        url: of the gateway before them, "" if there is none. waiting: requests that wait there for a slot.
    """

    name: str
    pid: int
    version: str
    started: float
    phase: str
    instances: tuple[InstanceReport, ...]
    url: str = ""
    waiting: int = 0


class AlertStatus(Struct, frozen=True, kw_only=True, tag_field="kind", tag="alerts"):
    """The rules with what is under them, and the receivers beside the log."""

    rules: tuple[AlertReport, ...]
    receivers: tuple[ReceiverReport, ...]


class AlertTested(Struct, frozen=True, tag_field="kind", tag="alert_tested"):
    """What came of a test message at each receiver."""

    outcomes: tuple[Outcome, ...]


class Said(Struct, frozen=True, tag_field="kind", tag="record"):
    """A record: of a log, or of the progress of what was asked for."""

    record: Record


class Dropped(Struct, frozen=True, tag_field="kind", tag="dropped"):
    """So many records are missing here, since they were read more slowly than they came."""

    count: int


class Beat(Struct, frozen=True, tag_field="kind", tag="beat"):
    """Nothing new, but the fleet lives."""


class Done(Struct, frozen=True, tag_field="kind", tag="ok"):
    """It has been done; the last line."""

    message: str = ""


class Refused(Struct, frozen=True, tag_field="kind", tag="error"):
    """It has not, or not well; the last line."""

    message: str


Reply: TypeAlias = FleetStatus | AlertStatus | AlertTested | Said | Dropped | Beat | Done | Refused

encode = msgspec.json.Encoder().encode
decode_request = msgspec.json.Decoder(Request).decode
decode_reply = msgspec.json.Decoder(Reply).decode
