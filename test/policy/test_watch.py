"""Looks at the slots before a prefill is given up, also where they come late."""

from __future__ import annotations

from typing import Any

import pytest

from llamastream.policy.watch import Watch
from llamastream.types import Timeouts


def slots(done: int) -> list[dict[str, Any]]:
    return [{"id": 0, "id_task": 1, "is_processing": True, "n_prompt_tokens_processed": done}]


@pytest.fixture
def watch() -> Watch:
    """A prefill that began at 0 and may take 10 s."""
    watch = Watch(Timeouts(prefill=10, total=100), 0)
    watch.prefill(0)
    return watch


def test_two_looks_without_progress_end_it(watch: Watch) -> None:
    assert (watch.wants_slots(4.9), watch.wait_until) == (False, 5)
    assert watch.wants_slots(5)
    assert watch.slots_seen(slots(7), 5.1)
    assert (watch.wants_slots(9.9), watch.wait_until) == (False, 10)
    assert watch.wants_slots(10)
    assert not watch.slots_seen(slots(7), 10.1)


def test_progress_starts_the_clock_anew_and_is_the_next_to_compare_with(watch: Watch) -> None:
    watch.slots_seen(slots(7), 5)
    assert watch.slots_seen(slots(8), 10)
    assert watch.wait_until == 20
    assert not watch.slots_seen(slots(8), 20)


def test_a_first_look_that_comes_too_late_is_compared_with_once_more(watch: Watch) -> None:
    """Whoever waits may have had no CPU for a while; that says nothing of the server."""
    assert watch.wants_slots(11)
    assert watch.slots_seen(slots(7), 11)
    assert (watch.wants_slots(20.9), watch.wait_until) == (False, 21)
    assert not watch.slots_seen(slots(7), 21)


@pytest.mark.parametrize("first", [5, 11])
def test_a_server_without_slots_has_its_clock_and_no_more(watch: Watch, first: float) -> None:
    assert watch.slots_seen(None, first) is (first < 10)
    assert first > 10 or not watch.slots_seen(None, 10)
    assert not watch.slots_seen(slots(7), 12)


def test_nothing_is_asked_once_there_is_content_or_the_whole_time_is_over(watch: Watch) -> None:
    assert not watch.wants_slots(100)
    watch.arrived(3)
    assert not watch.wants_slots(50)
    assert watch.slots_seen(slots(7), 50), "it came after all"
