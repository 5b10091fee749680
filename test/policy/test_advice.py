"""Stalls, buffering and a wasted prompt cache: what the figures give away, and what is said about it."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest

from llamastream.policy.buffering import buffering_advice, looks_buffered
from llamastream.policy.prompt_cache import PromptCacheWatch
from llamastream.policy.stall import made_progress
from llamastream.types import PromptFacts, Stats, Timings


def slot(task: int = 1, processed: int = 0, decoded: int = 0, busy: bool = True) -> dict[str, Any]:
    return {
        "id": 0, "id_task": task, "is_processing": busy, "n_prompt_tokens": 99,
        "n_prompt_tokens_processed": processed, "next_token": [{"n_decoded": decoded}],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after", "progress"),
    [
        (slot(processed=10), slot(processed=20), True),
        (slot(decoded=1), slot(decoded=2), True),
        (slot(task=1), slot(task=2), True),
        (slot(), slot(), False),
        (slot(), slot(processed=5, busy=False), False),
        ({"id": 0, "is_processing": True}, {"id": 0, "is_processing": True}, False),
        (
            {"id": 0, "next_token": {"n_decoded": 1}},
            {"id": 0, "is_processing": True, "next_token": {"n_decoded": 2}},
            True,
        ),
    ],
)
def test_progress_of_slots(before: dict[str, Any], after: dict[str, Any], progress: bool) -> None:
    assert made_progress([before], [after]) is progress


@pytest.mark.parametrize(
    ("predicted_ms", "first", "duration", "chunks", "buffered"),
    [
        (5000.0, 5.0, 5.01, 100, True),
        (5000.0, 0.1, 5.0, 100, False),
        (5000.0, 5.0, 5.0, 1, False),  # one chunk proves nothing
        (500.0, 0.5, 0.5, 100, False),  # nor does a short answer
    ],
)
def test_buffered_answers_are_recognised(
    predicted_ms: float, first: float, duration: float, chunks: int, buffered: bool
) -> None:
    stats = Stats(time_to_first_token=first, duration=duration, chunks=chunks)
    assert looks_buffered(stats, Timings(predicted_ms=predicted_ms)) is buffered


@pytest.mark.parametrize(
    ("silence", "spread", "chunks", "buffered"),
    [
        (3.0, 0.0, 80, True),
        (3.0, 0.005, 80, True),
        (3.0, 0.05, 80, False),  # a fast server, after a queue
        (1.0, 0.0, 80, False),  # a short wait proves nothing
        (3.0, 0.0, 10, False),  # nor do a few words
        (0.0, 0.0, 80, False),  # the header had come before
        (-inf, 0.0, 80, False),  # nobody can tell how long it was
    ],
)
def test_buffered_answers_without_timings_are_recognised_where_it_is_certain(
    silence: float, spread: float, chunks: int, buffered: bool
) -> None:
    stats = Stats(time_to_first_token=5.0, duration=5.0 + spread, chunks=chunks)
    assert looks_buffered(stats, None, silence) is buffered
    assert not looks_buffered(Stats(), None, silence)


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({"server": "nginx/1.22"}, "proxy_buffering off"),
        ({"server": "cloudflare", "cf-ray": "1"}, "Cloudflare"),
        ({"server": "uvicorn"}, "GZipMiddleware"),
        ({}, "proxy"),
    ],
)
def test_the_advice_names_the_setting(headers: dict[str, str], says: str) -> None:
    assert says in buffering_advice(headers)


RULES = "You are a helpful assistant who answers in short and friendly sentences. " * 5


def watch(prompts: list[str], cached: int = 5, tokens: int = 400) -> list[str | None]:
    watcher = PromptCacheWatch()
    return [watcher.observe(PromptFacts(prompt, tokens, cached)) for prompt in prompts]


def test_a_date_at_the_front_of_the_system_prompt_is_noticed_once() -> None:
    hints = watch([f"Today is 2026-11-{day:02}. {RULES}" for day in range(10, 20)])
    given = [hint for hint in hints if hint]
    assert len(given) == 1
    assert hints[2] == given[0]
    assert "Today is 2026-11-" in given[0]
    assert "put what changes" in given[0]


@pytest.mark.parametrize(
    ("prompts", "cached"),
    [
        ([RULES] * 9, 390),  # the same prompt
        ([RULES] * 9, 0),  # the same prompt on a server without a cache: not the prompt's fault
        ([f"{day} {RULES}" for day in range(9)], 390),  # it changes, but the cache helps all the same
        ([letter * 400 for letter in "abcdefghi"], 0),  # prompts of different agents
        (["", *[""] * 8], 0),
    ],
)
def test_nothing_is_said_where_nothing_is_wasted(prompts: list[str], cached: int) -> None:
    assert not any(watch(prompts, cached))


def test_short_prompts_are_not_worth_a_hint() -> None:
    assert not any(watch([f"It is {hour}. Be nice to people." for hour in range(9)], cached=1, tokens=20))
