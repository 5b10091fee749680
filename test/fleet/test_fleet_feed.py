"""Records: in one form, kept in bounds, and followed without gaps by readers of any speed."""

from __future__ import annotations

import json

import msgspec
import pytest

from llamastream.backends import InstanceState
from llamastream.events import InstanceChanged, InstanceWarning, SlotsRestored
from llamastream.fleet import feed
from llamastream.fleet.feed import KEPT, Feed
from llamastream.fleet.records import Record, as_dict, at_least, of_event, of_log
from llamastream.types import LogRecord


def record(number: int, instance: str = "a", event: str = "server_log") -> Record:
    return Record(time=float(number), level="info", event=event, message=str(number), instance=instance)


def every(_: Record) -> bool:
    return True


def test_the_last_records_of_all_instances_are_merged_by_time() -> None:
    feed = Feed()
    for number in (1, 3, 5):
        feed.publish(record(number, "a"))
    for number in (2, 4, 6):
        feed.publish(record(number, "b"))
    last, _ = feed.follow(every, 4)
    assert [each.message for each in last] == ["3", "4", "5", "6"]
    only, _ = feed.follow(lambda each: each.instance == "a", 2)
    assert [each.message for each in only] == ["3", "5"]


def test_a_follower_gets_what_comes_after_and_nothing_twice() -> None:
    feed = Feed()
    feed.publish(record(1))
    last, follower = feed.follow(every, 10)
    feed.publish(record(2))
    records, dropped = follower.take(0)
    assert ([each.message for each in last], [each.message for each in records], dropped) == (["1"], ["2"], 0)
    assert follower.take(0) == ([], 0)


def test_a_chatty_server_does_not_push_out_what_happened() -> None:
    feed = Feed()
    feed.publish(record(0, event="state"))
    for number in range(1, KEPT + 100):
        feed.publish(record(number))
    last, _ = feed.follow(every, 10 * KEPT)
    assert len(last) == KEPT + 1
    assert last[0].event == "state"


def test_a_slow_follower_is_told_what_it_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "QUEUED", 10)
    source = Feed()
    _, follower = source.follow(every)
    for number in range(25):
        source.publish(record(number))
    records, dropped = follower.take(0)
    assert (len(records), dropped) == (10, 15)


def test_the_end_of_the_feed_ends_its_followers_and_who_left_gets_nothing() -> None:
    source = Feed()
    _, left = source.follow(every)
    with left:
        pass
    _, follower = source.follow(every)
    source.publish(record(1))
    source.close()
    assert left.take(0) == ([], 0)
    assert len(follower.take(60)[0]) == 1
    assert follower.ended
    assert source.follow(every)[1].ended


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [
        ("starting", "loading", "debug"),
        ("loading", "ready", "info"),
        ("ready", "busy", "debug"),
        ("busy", "ready", "debug"),
        ("ready", "draining", "info"),
        ("draining", "restarting", "info"),
        ("ready", "restarting", "warning"),
        ("ready", "wedged", "warning"),
        ("restarting", "failed", "error"),
    ],
)
def test_a_change_is_as_important_as_it_was_unexpected(before: InstanceState, after: InstanceState, level: str) -> None:
    assert of_event(InstanceChanged("a", before, after, "why", 1.0, 1), 2.0).level == level


def test_every_event_becomes_a_record() -> None:
    changed = of_event(InstanceChanged("a", "ready", "restarting", "killed", 1.0, 3, -9), 2.0)
    assert (changed.event, changed.instance, changed.message) == ("state", "a", "restarting: killed")
    assert changed.fields == {"before": "ready", "after": "restarting", "generation": 3, "last_exit": -9}
    warned = of_event(InstanceWarning("a", "memory", "grows", 1.0), 2.0)
    assert (warned.event, warned.level, warned.fields) == ("warning", "warning", {"topic": "memory"})
    restored = of_event(SlotsRestored("a", 100, 2, 4096, 0.5), 2.0)
    assert (restored.event, restored.time, restored.fields["tokens"]) == ("slots_restored", 2.0, 100)
    logged = of_log("a", LogRecord(time=1.5, level="error", message="no", source="srv"))
    assert (logged.event, logged.level, logged.source) == ("server_log", "error", "srv")


def test_a_record_is_one_object_of_json_with_its_time_in_utc() -> None:
    line = as_dict(of_log("a", LogRecord(time=1_700_000_000.1234, level="info", message="hi\nthere", source="srv")))
    assert line == {
        "time": "2023-11-14T22:13:20.123Z", "level": "info", "instance": "a", "event": "server_log",
        "message": "hi\nthere", "source": "srv",
    }  # fmt: skip
    assert list(line)[:4] == ["time", "level", "instance", "event"]
    assert json.loads(msgspec.json.encode(line)) == line


def test_fields_do_not_replace_what_every_record_has() -> None:
    shown = as_dict(Record(time=0.0, level="info", event="ready", message="m", fields={"message": "other", "n": 1}))
    assert (shown["message"], shown["n"]) == ("m", 1)


def test_levels_are_in_order() -> None:
    assert at_least("warning") == {"warning", "error"}
    assert at_least("debug") == {"debug", "info", "warning", "error"}
