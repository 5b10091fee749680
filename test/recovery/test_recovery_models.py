"""Reasoning, and a model that never says the same twice, on real servers of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import LlamaStreamError
from llamastream.testing import Reset
from tools.faults.asking import Ask, chat, events_of, losses, undisturbed
from tools.faults.breaking import cut, divergence
from tools.faults.models import THINKING, write_random_model

STORY = "Tell me a story."
BUDGET: dict[str, Any] = {"reasoning_budget_tokens": 30, "ignore_eos": True, "max_tokens": 90}


@pytest.fixture(scope="module")
def thinking(engine: Engine) -> Iterator[Engine]:
    """A server whose model thinks first; the demo model thinks until its budget ends."""
    options = EngineOptions(kind=engine.kind, threads=1, parallel=2, extra_args=("--chat-template", THINKING))  # type: ignore[arg-type]
    with launch(options) as running:
        yield running


@pytest.mark.parametrize(
    ("ask", "reattach", "kind", "counted"),
    [
        (chat(STORY, **BUDGET), True, "reattach", True),
        (chat(STORY, **BUDGET), False, "continue", True),
        (chat(STORY), True, "continue", False),
        (chat(STORY, reasoning_budget_tokens=10), True, "continue", False),
        (chat(STORY, thinking_budget_tokens=10), True, "continue", False),
    ],
    ids=["limited", "limited, forgotten", "until the end", "budget", "budget by its other name"],
)
def test_a_break_in_reasoning_and_after_it(
    thinking: Engine, ask: Ask, reattach: bool, kind: str, counted: bool
) -> None:
    expected = undisturbed(thinking.url, ask)
    assert len(expected.result.reasoning) > 10
    assert bool(expected.result.text) is ("max_tokens" in ask.body)
    kinds = set()
    step = 13 if "max_tokens" in ask.body else 1
    for events in range(2, events_of(expected) - 3, step):
        got = cut(thinking.url, ask, expected, Reset(after_events=events), reattach=reattach, counted=counted)
        assert not isinstance(got, LlamaStreamError), (events, got)
        kinds |= set(got.kinds)
    assert kinds <= {kind, "finish"}
    assert kind in kinds


@pytest.fixture(scope="module")
def noise(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """A server with a model of random weights."""
    path = tmp_path_factory.mktemp("noise") / "noise.gguf"
    write_random_model(path)
    with launch(EngineOptions(kind=engine.kind, threads=1, parallel=2, model=str(path))) as running:  # type: ignore[arg-type]
        yield running


NOISE = chat("hi", ignore_eos=True, max_tokens=60).with_body(temperature=1, seed=7)


def test_taking_up_the_same_generation_is_exact_whatever_the_model(noise: Engine) -> None:
    expected = undisturbed(noise.url, NOISE)
    assert undisturbed(noise.url, NOISE).result.text == expected.result.text
    for events in range(2, 60, 3):
        got = cut(noise.url, NOISE, expected, Reset(after_events=events))
        assert not isinstance(got, LlamaStreamError), got
        assert got.kinds == ["reattach"]
        assert got.recoveries[0].verified


def test_a_continuation_is_another_answer_and_says_so(noise: Engine) -> None:
    expected = undisturbed(noise.url, NOISE)
    for events in range(2, 50, 8):
        got, common = divergence(noise.url, NOISE, expected, events)
        assert got.kinds == ["continue"]
        assert not got.recoveries[0].verified
        # What the caller had stays, and the limit holds.
        assert common >= got.recoveries[0].text_at_break
        assert got.result.usage is not None
        assert got.result.usage.completion_tokens <= 60 + 3
        assert [loss for loss in losses(got, got) if loss] == []
