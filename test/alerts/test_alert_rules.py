"""The rules of alerts as tables: what is read, when it fires, when it is over, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llamastream.alerts.book import Book, duration_text
from llamastream.alerts.measures import KEPT, Instances, Look, Reading, Requests, of_look, quantile, speed_of
from llamastream.alerts.messages import Message
from llamastream.alerts.rules import Rule, rules_of, value_text
from llamastream.alerts.settings import RULE_NAMES, AlertSettings
from llamastream.alerts.silences import SilenceFile
from llamastream.alerts.states import Condition, judge
from llamastream.backends import InstanceState
from llamastream.errors import SettingError
from llamastream.events import InstanceChanged, RequestServed
from llamastream.settings import load

WALL = 1_000_000.0


def rule(**changes: Any) -> Rule:
    chosen: dict[str, Any] = {"name": "queue_length", "what": "many wait", "unit": "", "threshold": 10, "clear": 5}
    return Rule(**{**chosen, **changes})


def phases(chosen: Rule, readings: Sequence[tuple[float, float | None]]) -> list[str]:
    condition = Condition()
    found: list[str] = []
    for now, value in readings:
        condition = judge(chosen, condition, value, now)
        found.append(condition.phase)
    return found


# -- one condition --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "readings", "expected"),
    [
        ({}, [(0, 9), (1, 10), (2, 6), (3, 5)], ["well", "firing", "firing", "well"]),
        ({"clear_hold": 2}, [(0, 10), (1, 5), (2, 5), (3, 5)], ["firing", "clearing", "clearing", "well"]),
        ({"clear_hold": 2}, [(0, 10), (1, 5), (2, 7), (4, 5)], ["firing", "clearing", "firing", "clearing"]),
        ({"clear_hold": 2}, [(0, 10), (1, 5), (2, 11)], ["firing", "clearing", "firing"]),
        ({"hold": 3}, [(0, 10), (2, 12), (3, 11)], ["pending", "pending", "firing"]),
        ({"hold": 3}, [(0, 10), (2, 9), (3, 11)], ["pending", "well", "pending"]),
        ({}, [(0, 10), (1, None), (2, None)], ["firing", "well", "well"]),
        ({"below": True, "threshold": 5, "clear": 6}, [(0, 5), (1, 4.9), (2, 5.5), (3, 6)],
         ["well", "firing", "firing", "well"]),
        ({"threshold": None}, [(0, 1e9)], ["well"]),
    ],
)  # fmt: skip
def test_a_condition_goes_through_its_phases(
    changes: dict[str, Any], readings: list[tuple[float, float | None]], expected: list[str]
) -> None:
    assert phases(rule(**changes), readings) == expected


# -- what is read ---------------------------------------------------------------------------------------------------


def served(**changes: Any) -> RequestServed:
    chosen: dict[str, Any] = {
        "time": 0.0, "request_id": "r", "method": "POST", "route": "/v1/chat/completions", "status": 200,
        "duration": 1.0, "finish_reason": "stop", "queue_wait": 0.0,
    }  # fmt: skip
    return RequestServed(**{**chosen, **changes})


def read(events: list[RequestServed], now: float = 0.0, fewest: int = 2) -> dict[str, float | None]:
    requests = Requests(10.0, fewest)
    for event in events:
        requests.add(event, 0.0)
    return {reading.rule: reading.value for reading in requests.readings(now)}


def test_requests_are_read_as_rates_and_percentiles() -> None:
    gaps = ((0.1, 10),)
    found = read(
        [
            served(queue_wait=3.0, time_to_first_token=2.0, gaps=gaps),
            served(status=503, finish_reason="error"),
            served(finish_reason="error", recoveries=("replay", "continue")),
            served(queue_wait=1.0, time_to_first_token=1.0, gaps=gaps),
        ]
    )
    assert found["error_rate"] == 0.5
    assert found["recoveries"] == 2
    assert (found["queue_wait"], found["time_to_first_token"]) == (3.0, 2.0)
    assert found["tokens_per_second"] == pytest.approx(10)


def test_too_few_requests_are_no_evidence() -> None:
    found = read([served(status=503, finish_reason="error")])
    assert (found["error_rate"], found["queue_wait"], found["recoveries"]) == (None, None, 0)


def test_requests_leave_the_window() -> None:
    events = [served(status=500, finish_reason="error", recoveries=("replay",))] * 3
    assert read(events, now=10.0)["error_rate"] == 1.0
    assert read(events, now=10.1)["recoveries"] == 0


def test_of_more_requests_than_are_kept_the_last_ones_count() -> None:
    bad, good = served(status=500, finish_reason="error", recoveries=("replay",)), served(time_to_first_token=2.0)
    assert read([*[bad] * 100, *[good] * KEPT])["error_rate"] == 0.0
    found = read([*[good] * KEPT, *[bad] * 100])
    assert found["error_rate"] == pytest.approx(100 / KEPT)
    assert found["recoveries"] == 100
    assert found["time_to_first_token"] == 2.0


def test_the_window_goes_on_over_the_end_of_what_is_kept() -> None:
    requests = Requests(10.0, 1)
    for second in range(2 * KEPT + 5):
        requests.add(served(queue_wait=float(second)), float(second))
    readings = {reading.rule: reading for reading in requests.readings(2.0 * KEPT + 4)}
    assert readings["queue_wait"].value == 2 * KEPT + 4
    assert readings["error_rate"].detail == "0 of 11 requests failed"


def test_what_asks_for_no_answer_is_no_evidence() -> None:
    scrapes = [served(route="/metrics", finish_reason="", queue_wait=None, status=500)] * 5
    assert read(scrapes)["error_rate"] is None


def test_what_is_refused_or_left_is_no_failure() -> None:
    refused = [served(status=status, finish_reason="refused", error="RequestError") for status in (400, 404, 429, 501)]
    left = [served(status=499, finish_reason="cancelled")]
    assert read([*refused, *left])["error_rate"] == 0.0
    # told in the middle of a stream that waited: of a status nothing is seen
    assert read([*refused, served(finish_reason="error")])["error_rate"] == pytest.approx(0.2)


def test_speed_is_that_of_all_tokens_after_the_first() -> None:
    assert speed_of(served(gaps=((0.1, 3),))) is None
    assert speed_of(served(gaps=((0.1, 10),), completion_tokens=21)) == pytest.approx(20)


def test_of_a_certain_model_only_its_streams_say_how_fast_they_are() -> None:
    requests = Requests(10.0, 2, "large")
    for model, gap in (("large", 0.1), ("small", 0.001), ("large", 0.1), ("small", 0.001)):
        requests.add(served(model=model, gaps=((gap, 10),)), 0.0)
    (speed,) = [reading for reading in requests.readings(0.0) if reading.rule == "tokens_per_second"]
    assert speed.value == pytest.approx(10)
    assert speed.detail == "of 2 requests"


@pytest.mark.parametrize(("values", "share", "expected"), [([1], 0.95, 1), ([1, 2, 3, 4], 0.5, 2), ([1, 2], 0.95, 2)])
def test_a_quantile_is_a_value_that_was_read(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def after(states: Sequence[InstanceState], window: float = 100.0) -> dict[str, float | None]:
    """What the rules read after an instance went through these states, a second each."""
    instances = Instances(window, 3)
    readings: list[Reading] = []
    for now, (before, state) in enumerate(zip(("stopped", *states), states, strict=False)):
        event = InstanceChanged("a", before, state, "why", WALL, 1)
        readings = list(instances.changed(event, float(now)))
    return {reading.rule: reading.value for reading in readings}


def test_other_figures_judge_what_instances_went_through_before() -> None:
    instances = Instances(10.0, 3)
    for now in (0.0, 8.0):
        list(instances.changed(InstanceChanged("a", "ready", "restarting", "why", WALL, 1), now))

    def ends(now: float) -> float | None:
        (found,) = [each.value for each in instances.readings(now) if each.rule == "crash_loop"]
        return found

    assert ends(9.0) == 2
    instances.judge_by(5.0, 7)
    assert ends(9.0) == 1
    list(instances.changed(InstanceChanged("a", "restarting", "failed", "why", WALL, 1), 9.0))
    assert ends(9.0) == 7  # failed for good: as bad as the limit, whatever that is


START: tuple[InstanceState, ...] = ("starting", "loading", "ready")
CRASH: tuple[InstanceState, ...] = ("restarting", *START)


@pytest.mark.parametrize(
    ("states", "down", "wedge", "ends"),
    [
        (("starting", "loading"), 0, 0, 0),
        (START, 0, 0, 0),
        (("starting", "restarting"), 1, 0, 1),
        ((*START, "restarting"), 1, 0, 1),
        ((*START, "restarting", "starting", "loading"), 1, 0, 1),
        ((*START, *CRASH), 0, 0, 1),
        ((*START, *CRASH, *CRASH, *CRASH), 0, 0, 3),
        ((*START, "draining"), 0, 0, 0),
        ((*START, "draining", "restarting", "starting", "loading"), 0, 0, 0),
        ((*START, "draining", *CRASH), 0, 0, 0),
        ((*START, "draining", "restarting", "starting", "loading", "restarting"), 1, 0, 1),
        ((*START, "wedged"), 1, 1, 0),
        ((*START, "wedged", "restarting", "starting"), 1, 1, 1),
        ((*START, "wedged", *CRASH), 0, 0, 1),
        ((*START, "restarting", "failed"), 1, 0, 3),
        ((*START, "stopped"), 0, 0, 0),
    ],
)
def test_instances_are_read_by_what_they_went_through(
    states: Sequence[InstanceState], down: float, wedge: float, ends: float
) -> None:
    assert after(states) == {"instance_down": down, "wedge": wedge, "crash_loop": ends}


def test_ends_leave_the_window_and_gone_instances_are_forgotten() -> None:
    instances = Instances(10.0, 3)
    for now, state in enumerate((*START, "restarting")):
        list(instances.changed(InstanceChanged("a", "ready", state, "", WALL, 1), float(now)))
    assert [reading.value for reading in instances.readings(13.0) if reading.rule == "crash_loop"] == [1]
    assert [reading.value for reading in instances.readings(13.1) if reading.rule == "crash_loop"] == [0]
    instances.seen({})
    assert list(instances.readings(13.1)) == []


def test_a_look_is_read_as_memory_queue_and_disk() -> None:
    look = Look(
        instances={"a": "ready", "b": "starting"}, memory={"a": 5}, growth={"a": 2.0}, waiting=3, free={"/x": 7}
    )
    found = {(reading.rule, reading.subject): reading.value for reading in of_look(look)}
    assert found == {
        ("memory", "a"): 5, ("memory", "b"): None, ("memory_growth", "a"): 7200.0, ("memory_growth", "b"): None,
        ("queue_length", ""): 3, ("disk", "/x"): 7,
    }  # fmt: skip


# -- the rules ------------------------------------------------------------------------------------------------------


def test_every_name_has_its_rule() -> None:
    assert tuple(each.name for each in rules_of(AlertSettings(), memory=1)) == RULE_NAMES


def test_thresholds_come_from_the_settings() -> None:
    settings = AlertSettings(memory="50%", memory_growth="1MiB", tokens_per_second_baseline=100, disk_free="1KiB")
    found = {each.name: each for each in rules_of(settings, memory=1000)}
    assert (found["memory"].threshold, found["memory_growth"].threshold) == (500, 1 << 20)
    assert (found["tokens_per_second"].threshold, found["tokens_per_second"].below) == (70, True)
    assert (found["disk"].threshold, found["disk"].below) == (1024, True)


@pytest.mark.parametrize(
    ("baseline", "threshold"), [(40, 28), ("40", 28), ("4e1", 28), ("nightly", None), (None, None)]
)
def test_a_baseline_is_a_number_or_a_name_that_somebody_else_has_to_look_up(
    baseline: float | str | None, threshold: float | None
) -> None:
    found = {each.name: each for each in rules_of(AlertSettings(tokens_per_second_baseline=baseline), memory=1)}
    assert found["tokens_per_second"].threshold == (None if threshold is None else pytest.approx(threshold))


@pytest.mark.parametrize("wrong", [0, -1, "0", "-1", "1e8", "nan", True, [1]])
def test_a_baseline_that_is_neither_is_refused(wrong: object) -> None:
    with pytest.raises(SettingError, match="tokens_per_second_baseline = .* from a table is not allowed; allowed: "):
        load(AlertSettings, environ={}, table={"tokens_per_second_baseline": wrong}, table_source="a table")


# -- silences that are kept -----------------------------------------------------------------------------------------


def test_silences_are_kept_until_they_are_over(tmp_path: Path) -> None:
    file = SilenceFile(tmp_path / "state" / "a.json")
    assert file.read(0) == {}
    file.write({"disk": 100.0, "wedge": None, "memory": 5.0}, 10.0)
    assert file.read(50.0) == {"disk": 100.0, "wedge": None}
    assert file.read(100.0) == {"wedge": None}
    assert (file.path.parent.stat().st_mode & 0o777, len(list(file.path.parent.iterdir()))) == (0o700, 1)
    file.write({"disk": 100.0}, 100.0)
    assert not file.path.exists()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"silences":[]}', b'{"silences":{"disk":"x"}}', b"[" * 60_000, b" " * 70_000]
)
def test_a_file_of_silences_that_is_none_is_an_error(tmp_path: Path, data: bytes) -> None:
    file = SilenceFile(tmp_path / "a.json")
    file.path.write_bytes(data)
    with pytest.raises(ValueError, match="."):
        file.read(0)


def test_silences_of_rules_that_are_no_more_are_forgotten(tmp_path: Path) -> None:
    file = SilenceFile(tmp_path / "a.json")
    file.path.write_text('{"silences":{"gone":9,"disk":9},"new":1}')
    assert file.read(0) == {"disk": 9}


def test_memory_is_judged_by_the_fleets_limit_where_there_is_no_other() -> None:
    found = {each.name: each for each in rules_of(AlertSettings(), memory=1)}
    look = Look(instances={"a": "ready", "b": "ready"}, memory={"a": 5, "b": 5}, heavy={"b": "5 bytes, 6 are allowed"})
    (well, heavy) = [reading for reading in of_look(look, sizes=False) if reading.rule == "memory"]
    assert not found["memory"].is_bad(well.value or 0)
    assert found["memory"].is_bad(heavy.value or 0)
    assert heavy.detail == "5 bytes, 6 are allowed"


@pytest.mark.parametrize(
    "each", rules_of(AlertSettings(memory="1B", memory_growth="1B"), memory=1), ids=lambda r: r.name
)
def test_what_is_well_again_is_not_bad(each: Rule) -> None:
    assert each.threshold is None or not each.is_bad(each.clear)
    assert each.is_well(each.clear)


# -- what is said ---------------------------------------------------------------------------------------------------


class Story:
    """A book of one rule, and what it said."""

    def __init__(self, **changes: Any) -> None:
        chosen: dict[str, Any] = {"group_seconds": 3.0, **changes}
        self.book = Book([rule(name="memory", what="it is large", unit="bytes")], fleet="serve", **chosen)
        self.said: list[Message] = []

    def at(self, now: float, **values: float) -> list[Message]:
        self.book.take([Reading("memory", name, value) for name, value in values.items()], now)
        self.book.absent(now)
        fresh = self.book.messages(now, WALL)
        self.said += fresh
        return fresh


def test_several_instances_within_seconds_are_one_message() -> None:
    story = Story()
    assert story.at(0, a=20, b=1) == []
    assert story.at(2, a=20, b=30) == []
    (message,) = story.at(3, a=20, b=30)
    assert (message.kind, message.title) == ("firing", "serve: memory (a, b)")
    assert (
        message.text
        == "a: it is large; 20 bytes, the limit is 10 bytes\nb: it is large; 30 bytes, the limit is 10 bytes"
    )
    assert [(each.name, each.value, each.since) for each in message.subjects] == [("a", 20, WALL), ("b", 30, WALL + 2)]
    assert story.at(100, a=20, b=30) == []


def test_the_recovery_says_for_how_long_it_was_bad() -> None:
    story = Story(group_seconds=0)
    story.at(0, a=20)
    (message,) = story.at(240, a=1)
    assert message.kind == "recovered"
    assert message.text == "a: is well again, was not so for 4 min (it is large)"
    assert message.subjects[0].lasted == 240
    assert [each.kind for each in story.said] == ["firing", "recovered"]


def test_one_that_is_gone_is_well() -> None:
    story = Story(group_seconds=0)
    story.at(0, a=20)
    assert [each.kind for each in story.at(1)] == ["recovered"]
    assert [report.subject for report in story.book.reports(2, WALL)] == [""]


def test_what_fires_and_recovers_within_the_group_is_told_in_order() -> None:
    story = Story()
    story.at(0, a=20)
    story.at(1, a=1)
    assert [each.kind for each in [*story.at(3, a=1), *story.at(4, a=1)]] == ["firing", "recovered"]


def test_a_silence_says_nothing_and_what_goes_on_is_told_after_it() -> None:
    story = Story(group_seconds=0)
    story.book.silence("memory", 10)
    assert story.at(0, a=20, b=20) == []
    assert [report.silenced_until for report in story.book.reports(0, WALL)] == [WALL + 10] * 2
    story.at(1, a=20, b=1)
    story.at(2, a=20, b=1)  # nobody was told of b, so nobody is told that it is over
    (message,) = story.at(10, a=20, b=1)
    assert [each.name for each in message.subjects] == ["a"]


def test_a_rule_that_is_silent_by_setting_is_never_told() -> None:
    story = Story(group_seconds=0, silenced=["memory"])
    for now in range(100):
        story.at(float(now), a=20)
    assert story.said == []
    assert [report.phase for report in story.book.reports(0, WALL)] == ["firing"]


def test_what_goes_on_is_told_again() -> None:
    story = Story(group_seconds=0, repeat_after=60)
    for now in range(0, 125, 5):
        story.at(float(now), a=20)
    assert [each.kind for each in story.said] == ["firing", "ongoing", "ongoing"]
    assert "for 1 min" in story.said[1].text
    assert len({each.id for each in story.said}) == 3


def test_a_rule_that_is_switched_off_lets_go() -> None:
    story = Story(group_seconds=0)
    story.at(0, a=20)
    off = [rule(name="memory", threshold=None)]
    story.book.change(off, group_seconds=0, repeat_after=0, silenced=())
    assert [each.kind for each in story.at(1, a=20)] == ["recovered"]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (59, "59 s"), (240, "4 min"), (3900, "1 h 5 min")])
def test_durations_in_words(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [(0.125, "share", "12.5 %"), (1.5, "seconds", "1.50 s"), (3 << 29, "bytes", "1.5 GiB"), (1, "state", ""),
     (12, "", "12"), (1 << 20, "bytes/h", "1.0 MiB an hour"), (9.96, "tokens/s", "10.0 tokens/s"),
     (3, "ends", "3 ends")],
)  # fmt: skip
def test_values_in_words(value: float, unit: Any, text: str) -> None:
    assert value_text(value, unit) == text
