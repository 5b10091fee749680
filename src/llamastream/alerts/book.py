"""All conditions under all rules, and the messages that follow from them: grouped, silenced, repeated. Pure."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from llamastream.alerts.measures import Reading
from llamastream.alerts.messages import AlertReport, Kind, Message, Subject
from llamastream.alerts.rules import Rule, value_text
from llamastream.alerts.settings import RuleName
from llamastream.alerts.states import Condition, judge

FOREVER = float("inf")

Key = tuple[RuleName, str]


class Said(Struct, frozen=True):
    """An entry of a group that is still open."""

    kind: Kind
    key: Key
    condition: Condition
    lasted: float | None = None


class Group:
    """Transitions of one rule and one kind that become one message at `due` (monotonic seconds)."""

    def __init__(self, rule: Rule, kind: Kind, due: float) -> None:
        self.rule = rule
        self.kind = kind
        self.due = due
        self.said: dict[Key, Said] = {}


class Book:
    """Takes readings, gives messages. Not thread-safe.

    `now` is always in monotonic seconds; `wall` is what has to be added for seconds since the epoch.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        group_seconds: float = 3.0,
        repeat_after: float = 0.0,
        silenced: Iterable[str] = (),
        fleet: str = "",
        tag: str = "",
    ) -> None:
        """`tag`: in front of the numbers of messages, so that they are unique."""
        self._ids = (f"{tag}{number}" for number in itertools.count(1))
        self._fleet = fleet
        self._conditions: dict[Key, Condition] = {}
        self._told: dict[Key, float] = {}
        self._seen: set[Key] = set()
        self._groups: dict[tuple[str, Kind], Group] = {}
        self._silences: dict[RuleName, float] = {}
        self._for_good: frozenset[str] = frozenset()
        self.change(rules, group_seconds=group_seconds, repeat_after=repeat_after, silenced=silenced)

    def change(
        self, rules: Sequence[Rule], *, group_seconds: float, repeat_after: float, silenced: Iterable[str]
    ) -> None:
        """Other rules from now on; conditions go on where the rule is still on."""
        self._rules = {rule.name: rule for rule in rules}
        self._group_seconds = group_seconds
        self._repeat_after = repeat_after
        self._for_good = frozenset(silenced)

    # -- what comes in --------------------------------------------------------------------------------------------

    def take(self, readings: Iterable[Reading], now: float) -> None:
        """Judge readings."""
        for reading in readings:
            rule = self._rules[reading.rule]
            key = (reading.rule, reading.subject)
            self._seen.add(key)
            if rule.threshold is None and key not in self._conditions:
                continue
            before = self._conditions.get(key, Condition(since=now))
            self._settle(rule, key, before, judge(rule, before, reading.value, now, reading.detail), now)

    def absent(self, now: float) -> None:
        """After a look at everything: what has not been read since the last time has no evidence any more."""
        for key in self._conditions.keys() - self._seen:
            rule, before = self._rules[key[0]], self._conditions[key]
            self._settle(rule, key, before, judge(rule, before, None, now), now)
            if self._conditions[key].phase == "well":
                del self._conditions[key]
        self._seen.clear()

    def silence(self, rule: RuleName, until: float) -> None:
        """Tell nothing of a rule until then; a time that is past ends it."""
        self._silences[rule] = until

    @property
    def silences(self) -> Mapping[RuleName, float]:
        """Until when rules are silent, those among them that no longer are."""
        return self._silences

    # -- what comes out -------------------------------------------------------------------------------------------

    def messages(self, now: float, wall: float, *, last: bool = False) -> list[Message]:
        """Those that are due; `last`: those that are not as well, since nobody will ask again."""
        self._remind(now)
        due = sorted(
            (group for group in self._groups.values() if last or group.due <= now), key=lambda group: group.due
        )
        found = []
        for group in due:
            del self._groups[(group.rule.name, group.kind)]
            if group.said and not self._is_silenced(group.rule.name, now):
                found.append(self._message(group, wall, now))
        return found

    def is_told(self, rule: RuleName, subject: str = "") -> bool:
        """Whether receivers have heard of it, and not of its end."""
        return (rule, subject) in self._told

    def reports(self, now: float, wall: float) -> Iterator[AlertReport]:
        """Every rule, and everything under it that has been read."""
        for name, rule in self._rules.items():
            known = sorted((key[1], condition) for key, condition in self._conditions.items() if key[0] == name)
            if rule.threshold is None:
                known = []
            for subject, condition in known or [("", Condition(phase="well"))]:
                yield AlertReport(
                    rule=name,
                    what=rule.what,
                    subject=subject,
                    phase="off" if rule.threshold is None else condition.phase,
                    severity=rule.severity,
                    value=condition.value,
                    threshold=rule.threshold,
                    shown=_shown(rule, condition),
                    since=None if condition.bad_since is None else condition.bad_since + wall,
                    silenced_until=self._silenced_until(name, now, wall),
                )

    # -- parts of these -------------------------------------------------------------------------------------------

    def _settle(self, rule: Rule, key: Key, before: Condition, after: Condition, now: float) -> None:
        self._conditions[key] = after
        if after.phase == before.phase:
            return
        if before.phase in ("well", "pending") and after.phase == "firing":
            self._say(rule, "firing", Said("firing", key, after), now)
        elif before.phase in ("firing", "clearing") and after.phase == "well":
            began = before.since if before.bad_since is None else before.bad_since
            over = before.since if before.phase == "clearing" else now
            self._say(rule, "recovered", Said("recovered", key, before, over - began), now)

    def _say(self, rule: Rule, kind: Kind, said: Said, now: float) -> None:
        if self._is_silenced(rule.name, now):
            return
        if kind == "recovered" and said.key not in self._told and not self._is_waiting(said.key):
            return  # nobody was told that it was bad
        group = self._groups.get((rule.name, kind))
        if group is None:
            group = self._groups[(rule.name, kind)] = Group(rule, kind, now + self._group_seconds)
        group.said[said.key] = said

    def _is_waiting(self, key: Key) -> bool:
        group = self._groups.get((key[0], "firing"))
        return group is not None and key in group.said

    def _remind(self, now: float) -> None:
        """What goes on and has not been told, since the rule was silenced, or not for long."""
        for key, condition in self._conditions.items():
            if condition.phase != "firing" or self._is_waiting(key):
                continue
            rule = self._rules[key[0]]
            told = self._told.get(key)
            if told is None:
                self._say(rule, "firing", Said("firing", key, condition), now)
            elif self._repeat_after and now - told >= self._repeat_after:
                self._say(rule, "ongoing", Said("ongoing", key, condition), now)

    def _is_silenced(self, rule: RuleName, now: float) -> bool:
        return rule in self._for_good or self._silences.get(rule, 0.0) > now

    def _silenced_until(self, rule: RuleName, now: float, wall: float) -> float | None:
        if rule in self._for_good or self._silences.get(rule) == FOREVER:
            return 0.0
        until = self._silences.get(rule, 0.0)
        return until + wall if until > now else None

    def _message(self, group: Group, wall: float, now: float) -> Message:
        subjects = []
        for said in group.said.values():
            condition = said.condition
            if group.kind == "recovered":
                self._told.pop(said.key, None)
            else:
                self._told[said.key] = now
            subjects.append(
                Subject(
                    name=said.key[1],
                    value=condition.value,
                    detail=condition.detail,
                    since=(condition.since if condition.bad_since is None else condition.bad_since) + wall,
                    lasted=said.lasted,
                )
            )
        return message_of(group.rule, group.kind, subjects, next(self._ids), now + wall, self._fleet)


_HEADS: Mapping[Kind, str] = {"firing": "", "ongoing": "goes on: ", "recovered": "over: ", "test": "test: "}


def message_of(
    rule: Rule, kind: Literal["firing", "ongoing", "recovered", "test"], subjects: Sequence[Subject], id: str,  # noqa: A002  # as everywhere
    time: float, fleet: str,
) -> Message:  # fmt: skip
    """A message in words."""
    named = ", ".join(subject.name for subject in subjects[:5] if subject.name)
    more = f" and {len(subjects) - 5} more" if len(subjects) > 5 else ""
    title = f"{fleet + ': ' if fleet else ''}{_HEADS[kind]}{rule.name}{f' ({named}{more})' if named else ''}"
    return Message(
        id=id,
        time=time,
        kind=kind,
        rule=rule.name,
        severity=rule.severity,
        title=title,
        text="\n".join(_line(rule, kind, subject, time) for subject in subjects),
        unit=rule.unit,
        threshold=rule.threshold,
        subjects=tuple(subjects),
        fleet=fleet,
    )


def _line(rule: Rule, kind: Kind, subject: Subject, time: float) -> str:
    about = f"{subject.name}: " if subject.name else ""
    if kind == "recovered":
        return f"{about}is well again, was not so for {duration_text(subject.lasted or 0.0)} ({rule.what})"
    value = "" if subject.value is None else value_text(subject.value, rule.unit)
    parts = [about + rule.what]
    if value:
        limit = value_text(rule.threshold or 0.0, rule.unit)
        parts.append(f"{value}, the limit is {limit}")
    if kind == "ongoing":
        parts.append(f"for {duration_text(time - subject.since)}")
    if subject.detail:
        parts.append(subject.detail)
    return "; ".join(parts)


def _shown(rule: Rule, condition: Condition) -> str:
    if rule.threshold is None or rule.unit == "state":
        return ""
    value = "–" if condition.value is None else value_text(condition.value, rule.unit)
    return f"{value} ({'<' if rule.below else '≥'} {value_text(rule.threshold, rule.unit)})"


def duration_text(seconds: float) -> str:
    """`4 min`, `1 h 5 min`, `12 s`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
