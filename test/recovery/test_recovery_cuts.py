"""A real server whose answer is cut behind one event after the other: the answer is the same, byte for byte."""

from __future__ import annotations

import pytest

from llamastream.engine import Engine
from llamastream.errors import LlamaStreamError
from llamastream.protocol.exchange import GenerationExchange
from llamastream.testing import HtmlError, Reset
from llamastream.types import RetryPolicy
from recovering import Whole
from tools.faults.asking import SCHEMA, SYSTEM, Ask, How, chat, completion, events_of, structured, tool_call
from tools.faults.breaking import cut

HELLO = "Hello!"
# The request, how its breaks are mended, and whether the server's token counts can be told if only they are lost.
ASKS: list[tuple[Ask, str, bool]] = [
    (chat(HELLO, max_tokens=300, name="limited chat"), "reattach", True),
    (chat(HELLO), "continue", True),
    (chat(HELLO, system=SYSTEM, name="system prompt"), "continue", True),
    (chat("Say something with emoji.", name="emoji"), "continue", True),
    (completion(HELLO, max_tokens=300, name="limited completion"), "reattach", True),
    (completion(HELLO), "continue", True),
    (structured(HELLO), "replay", False),
    (structured(HELLO, max_tokens=200).named("limited JSON schema"), "reattach", True),
    (completion(HELLO, json_schema=SCHEMA, name="schema of a completion"), "replay", False),
    (chat(HELLO, n=2, name="two choices"), "replay", False),
    (chat(HELLO, logprobs=True, name="log probabilities"), "replay", False),
    (tool_call(max_tokens=60).named("limited tool call"), "reattach", True),
]
# The sync client goes through every place (of most); the others through every seventh, since they share its machine.
# `make faults` leaves out none.
SAMPLED = {
    "emoji", "two choices", "log probabilities", "schema of a completion", "limited tool call", "system prompt",
    "limited completion", "limited JSON schema",
}  # fmt: skip
STEPS: list[tuple[How, int, int]] = [("sync", 1, 1), ("asyncio", 1, 7), ("uvloop", 4, 7)]


@pytest.mark.parametrize(("how", "first", "step"), STEPS, ids=[how for how, _, _ in STEPS])
@pytest.mark.parametrize(("ask", "kind", "countable"), ASKS, ids=[ask.name for ask, _, _ in ASKS])
def test_a_reset_behind_any_event_changes_nothing(
    engine: Engine, whole: Whole, ask: Ask, kind: str, countable: bool, how: How, first: int, step: int
) -> None:
    expected = whole(ask)
    assert expected.result.finish_reason in ("stop", "length", "tool_calls")
    last = events_of(expected)
    if ask.name in SAMPLED:
        step *= 5 if how == "sync" else 2
    kinds = []
    for events in range(first, last, step):
        got = cut(engine.url, ask, expected, Reset(after_events=events), how=how, counted=countable)
        assert not isinstance(got, LlamaStreamError), (events, got)
        kinds += got.kinds
        for recovery in got.recoveries:
            assert recovery.verified is (recovery.kind != "continue")
            assert 0 <= recovery.gap < 5
            assert recovery.error == "ConnectionLostError"
            assert recovery.server == recovery.from_server
    # Before the first content it is a retry, and at the end only marks are missing.
    assert set(kinds) <= {kind, "finish"}
    assert kinds.count(kind) >= max(1, (last - first) // step * 0.8 - 1)


@pytest.mark.parametrize("how", ["sync", "asyncio"])
def test_breaks_one_after_the_other(engine: Engine, whole: Whole, how: How) -> None:
    for ask, kind in ((chat(HELLO), "continue"), (chat(HELLO, max_tokens=300), "reattach")):
        faults = [Reset(after_events=events) for events in (5, 4, 6, 3, 5, 4)]
        got = cut(engine.url, ask, whole(ask), *faults, how=how)
        assert not isinstance(got, LlamaStreamError), got
        assert got.kinds == [kind] * 6
        breaks = [recovery.text_at_break for recovery in got.recoveries]
        assert breaks == sorted(breaks)


def test_a_reset_in_the_middle_of_an_event(engine: Engine, whole: Whole) -> None:
    for ask in (chat("Say something with emoji."), chat("Say something with emoji.", max_tokens=300)):
        for position in range(700, 3000, 290):
            got = cut(engine.url, ask, whole(ask), Reset(after_bytes=position))
            assert not isinstance(got, LlamaStreamError), (position, got)


def test_a_server_that_forgot_the_generation(engine: Engine, whole: Whole) -> None:
    ask = chat(HELLO, max_tokens=300)
    for events in (3, 20, 45):
        slow = RetryPolicy(base_delay=5)
        got = cut(engine.url, ask, whole(ask), Reset(after_events=events), reattach=False, retry=slow)
        assert not isinstance(got, LlamaStreamError), got
        assert got.kinds == ["continue"]
        assert got.longest_gap < 0.5  # another way is tried at once


def test_something_on_the_way_is_down_for_a_moment(engine: Engine, whole: Whole) -> None:
    ask = chat(HELLO, max_tokens=300)
    for status in ("502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "429 Too Many Requests"):
        retry = RetryPolicy(base_delay=0.02)
        got = cut(engine.url, ask, whole(ask), Reset(after_events=20), HtmlError(status=status), retry=retry)
        assert not isinstance(got, LlamaStreamError), got
        assert got.kinds == ["reattach"]  # the generation is still there


def test_bytes_of_an_error_page_are_no_bytes_of_the_answer() -> None:
    exchange = GenerationExchange("http://x/v1/chat/completions")
    exchange.feed(b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 99\r\n\r\n<html>")
    exchange.feed_eof()
    assert exchange.event_boundary == 0
