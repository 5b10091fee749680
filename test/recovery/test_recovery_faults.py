"""Every fault of the kit, in mid-answer and on the way back, on a real server: whole, or a clear error; never wrong."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from llamastream.engine import Engine
from llamastream.errors import LlamaStreamError
from llamastream.testing import (
    EndlessHeaders,
    Fault,
    Garbage,
    Gzip,
    HalfClose,
    HtmlError,
    Refuse,
    Reset,
    SlowHeaders,
    Stall,
    Trickle,
    TruncatedChunk,
    Unavailable,
    WrongChunkSize,
)
from llamastream.types import RetryPolicy, Timeouts
from recovering import Whole
from tools.faults.asking import Ask, How, chat, structured
from tools.faults.breaking import cut

ASKS = [chat("Hello!"), chat("Hello!", max_tokens=300, name="limited chat"), structured("Hello!")]
SHORT = Timeouts(connect=2, first_byte=2, prefill=2, content_idle=0.3, total=20)
QUICK = RetryPolicy(base_delay=0.02, recovery_patience=10)
IMPATIENT = RetryPolicy(base_delay=0.02, recovery_patience=0.5)
SHORT_FIRST = Timeouts(connect=1, first_byte=0.3, prefill=0.3, content_idle=0.3, total=20)


def title(fault: Fault) -> str:
    return type(fault).__name__ + (" too large" if isinstance(fault, WrongChunkSize) and fault.size != b"zz" else "")


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.name)
@pytest.mark.parametrize(
    "kind",
    [
        lambda n: HalfClose(after_events=n),
        lambda n: Stall(after_events=n),
        lambda n: Garbage(after_events=n),
        lambda n: TruncatedChunk(after_events=n),
        lambda n: WrongChunkSize(after_events=n),
        lambda n: WrongChunkSize(after_events=n, size=b"fffff"),
    ],
    ids=lambda kind: title(kind(1)),
)
def test_a_fault_in_mid_answer_is_mended(engine: Engine, whole: Whole, kind: Callable[[int], Fault], ask: Ask) -> None:
    places: list[tuple[How, int]] = [("sync", 2), ("sync", 17), ("asyncio", 33)]
    for how, events in places:
        got = cut(engine.url, ask, whole(ask), kind(events), how=how, counted=False, timeouts=SHORT, retry=QUICK)
        assert not isinstance(got, LlamaStreamError), (events, got)
        assert len(got.recoveries) == 1 or isinstance(kind(events), WrongChunkSize)


@pytest.mark.parametrize("ask", ASKS, ids=lambda ask: ask.name)
@pytest.mark.parametrize(
    "fault",
    [
        Unavailable(times=2),
        Unavailable(times=2, message="busy", retry_after=0.05),
        Refuse(),
        Refuse(reset=True),
        Reset(),
        HalfClose(after_events=0),
        Stall(),
        Stall(after_events=0),
        Garbage(),
        SlowHeaders(delay=0.001),
        Trickle(),
        HtmlError(status="503 Service Unavailable"),
        HtmlError(),
    ],
    ids=title,
)
def test_a_fault_on_the_way_back_is_mended(engine: Engine, whole: Whole, fault: Fault, ask: Ask) -> None:
    how: How = "asyncio" if ask is ASKS[1] else "sync"
    got = cut(engine.url, ask, whole(ask), Reset(after_events=20), fault, how=how, timeouts=SHORT_FIRST, retry=QUICK)
    assert not isinstance(got, LlamaStreamError), got
    assert len(got.recoveries) == 1


@pytest.mark.parametrize("how", ["sync", "asyncio"])
@pytest.mark.parametrize("fault", [Gzip(), EndlessHeaders(delay=0.001), HtmlError(status="200 OK")], ids=title)
def test_what_cannot_be_mended_is_a_clear_error(engine: Engine, whole: Whole, fault: Fault, how: How) -> None:
    for ask in ASKS:
        faults = [Reset(after_events=20), *[fault] * 50]
        got = cut(engine.url, ask, whole(ask), *faults, how=how, timeouts=SHORT_FIRST, retry=IMPATIENT)
        assert isinstance(got, LlamaStreamError)
        assert got.partial is not None
        assert got.partial.stats.chunks > 10


def test_a_busy_server_is_no_reason_to_give_up_streaming(engine: Engine, whole: Whole) -> None:
    storm = Unavailable(times=5, message="busy")
    got = cut(engine.url, ASKS[2], whole(ASKS[2]), Reset(after_events=20), storm, retry=QUICK)
    assert not isinstance(got, LlamaStreamError), got
    assert got.kinds == ["replay"]
    assert got.result.stats.streamed
