"""The rules: what each watches, and from which value on."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from llamastream.alerts.settings import AlertSettings, RuleName
from llamastream.settings.sizes import parse_size, size_text

Severity: TypeAlias = Literal["warning", "critical"]
Unit: TypeAlias = Literal["", "seconds", "bytes", "bytes/h", "share", "tokens/s", "ends", "state"]


class Rule(Struct, frozen=True, kw_only=True):
    """When something is not well.

    Attributes:
        name: see `RuleName`. what: one sentence with what it means. unit: of values and thresholds. severity: how bad.
        threshold: the value from which on it is not well; None: the rule is off. clear: the value at which it is well
            again, on the good side of the threshold: in between nothing changes. below: low values are the bad ones.
        hold: seconds for which it must be bad before it is told. clear_hold: and well, before the recovery is.
    """

    name: RuleName
    what: str
    unit: Unit
    severity: Severity = "warning"
    threshold: float | None = None
    clear: float = 0.0
    below: bool = False
    hold: float = 0.0
    clear_hold: float = 0.0

    def is_bad(self, value: float) -> bool:
        """Whether it alerts at this value."""
        assert self.threshold is not None
        return value < self.threshold if self.below else value >= self.threshold

    def is_well(self, value: float) -> bool:
        """Whether it is well again at this value."""
        return value >= self.clear if self.below else value <= self.clear


def rules_of(settings: AlertSettings, *, memory: int) -> tuple[Rule, ...]:
    """All rules, those that are off among them.

    Args:
        settings: a baseline that is a name has no threshold; who can read it puts its number in its place. memory:
            bytes of the machine.
    """
    limit = parse_size(settings.memory, memory) if settings.memory else None
    growth = parse_size(settings.memory_growth, memory) if settings.memory_growth else None
    disk = None if settings.disk_free is None else parse_size(settings.disk_free)
    baseline = settings.baseline
    slow = baseline * settings.tokens_per_second_share if isinstance(baseline, int | float) else None
    held = settings.clear_after
    ends = settings.crash_loop_ends

    def above(name: RuleName, what: str, unit: Unit, at: float | None, back: float = 0.8, hold: float = 0.0) -> Rule:
        clear = 0.0 if at is None else at * back
        return Rule(name=name, what=what, unit=unit, threshold=at, clear=clear, hold=hold, clear_hold=held)

    much = "it takes much memory"

    def state(
        name: RuleName, what: str, at: float = 1, clear: float = 0, hold: float = 0.0, unit: Unit = "state",
        severity: Severity = "critical",
    ) -> Rule:  # fmt: skip
        return Rule(
            name=name, what=what, unit=unit, severity=severity, threshold=at, clear=clear, hold=hold, clear_hold=held
        )

    return (
        state("instance_down", "it takes no requests, and nobody planned that", hold=settings.down_after),
        state("crash_loop", "it ends again and again", ends, ends - 1, unit="ends"),
        state("wedge", "it hung, and had to be ended"),
        above("memory", much, "bytes", limit, 0.95) if limit else state("memory", much, severity="warning"),
        above("memory_growth", "its memory grows steadily", "bytes/h", growth),
        above("queue_wait", "requests wait long for a slot (95th percentile)", "seconds", settings.queue_wait),
        above("queue_length", "many requests wait", "", settings.queue_length, 0.5, settings.queue_length_for),
        above(
            "time_to_first_token", "first tokens come late (95th percentile)", "seconds", settings.time_to_first_token
        ),
        Rule(
            name="tokens_per_second", what="streams are slower than usual (median)", unit="tokens/s", threshold=slow,
            clear=0.0 if slow is None else slow * 1.1, below=True, clear_hold=held,
        ),
        Rule(
            name="error_rate", what="requests fail", unit="share", severity="critical", threshold=settings.error_rate,
            clear=(settings.error_rate or 0.0) / 2, clear_hold=held,
        ),
        above("recoveries", "streams break and have to be mended", "", settings.recoveries, 0.5),
        Rule(
            name="disk", what="there is little space left", unit="bytes", severity="critical", threshold=disk,
            clear=0.0 if disk is None else disk * 1.1, below=True, clear_hold=held,
        ),
    )  # fmt: skip


def value_text(value: float, unit: Unit) -> str:
    """A value for people; "" for a state, which has none."""
    if unit == "state":
        return ""
    if unit in ("bytes", "bytes/h"):
        return size_text(value) + (" an hour" if unit == "bytes/h" else "")
    if unit == "share":
        return f"{value * 100:.1f} %"
    if unit == "seconds":
        return f"{value:.2f} s"
    return f"{value:g} {unit}".strip() if unit != "tokens/s" else f"{value:.1f} tokens/s"
