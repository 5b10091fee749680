"""The five clocks: which runs, what starts it anew, and what it is called when it runs out."""

from __future__ import annotations

from math import inf

import pytest

from llamastream.errors import (
    ConnectTimeoutError,
    ContentIdleTimeoutError,
    FirstByteTimeoutError,
    PrefillTimeoutError,
    StreamTimeoutError,
    TotalTimeoutError,
)
from llamastream.policy.clocks import Clocks, Phase
from llamastream.types import Timeouts

TIMEOUTS = Timeouts(connect=1, first_byte=2, prefill=3, content_idle=4, total=100)


@pytest.mark.parametrize(
    ("phase", "limit", "kind"),
    [
        (Phase.CONNECT, 1, ConnectTimeoutError),
        (Phase.FIRST_BYTE, 2, FirstByteTimeoutError),
        (Phase.PREFILL, 3, PrefillTimeoutError),
        (Phase.CONTENT, 4, ContentIdleTimeoutError),
    ],
)
def test_each_clock_has_its_limit_and_its_error(phase: Phase, limit: float, kind: type[StreamTimeoutError]) -> None:
    clocks = Clocks(TIMEOUTS, 10)
    clocks.enter(phase, 20)
    assert clocks.deadline == 20 + limit
    assert clocks.expired(20 + limit - 0.001, "u") is None
    error = clocks.expired(20 + limit, "u")
    assert type(error) is kind
    assert f"Timeouts.{phase.value}" in str(error)
    assert error.retryable


def test_content_starts_the_idle_clock_anew_and_progress_the_prefill_clock() -> None:
    clocks = Clocks(TIMEOUTS, 0)
    clocks.enter(Phase.PREFILL, 1)
    clocks.progress(3)
    assert clocks.deadline == 6
    clocks.content(5)
    assert clocks.deadline == 9
    clocks.progress(8)
    assert clocks.deadline == 9, "progress after content is no content"


def test_the_total_clock_stands_above_all_and_is_not_worth_a_retry() -> None:
    clocks = Clocks(TIMEOUTS, 0)
    clocks.content(99)
    clocks.restart(99)
    assert clocks.deadline == 100
    error = clocks.expired(100, "u")
    assert type(error) is TotalTimeoutError
    assert not error.retryable


def test_clocks_can_be_switched_off() -> None:
    clocks = Clocks(Timeouts(connect=None, first_byte=None, prefill=None, content_idle=None), 0)
    for phase in Phase:
        clocks.enter(phase, 5)
        assert clocks.deadline == inf
    clocks.content(5)
    assert clocks.expired(1e12, "u") is None
