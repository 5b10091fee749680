"""A continued answer: what it repeats is taken away, and counts and times cover the whole."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from chunks import adapted, delta_of, said

from llamastream.protocol.resume import ContinuedAnswer

# -- continued: a repeated beginning --------------------------------------------------------------------------


def continuation(text: str = "0 1 ", reasoning: str = "", chunks: int = 2, **changes: Any) -> ContinuedAnswer:
    options: dict[str, Any] = {"tokens": 2, "decode_ms": 50.0, "whole": False}
    return ContinuedAnswer(text=text, reasoning=reasoning, chunks=chunks, **{**options, **changes})


def test_a_continuation_is_taken_as_it_comes() -> None:
    answer = continuation()
    assert delta_of(adapted(answer, said(content="2 "))).content == "2 "
    assert answer.settled
    assert delta_of(adapted(answer, said(content="0 1 "))).content == "0 1 ", "only a beginning can be a repetition"
    assert answer.swallowed == 0


@pytest.mark.parametrize("rest", ["", "2 "])
def test_a_repeated_beginning_is_taken_away(rest: str) -> None:
    answer = continuation()
    assert delta_of(adapted(answer, said(content="0 1 " + rest))).content == rest
    assert (answer.settled, answer.swallowed) == (True, 1)


def test_a_role_settles_nothing() -> None:
    answer = continuation()
    adapted(answer, said(role="assistant", content=None))
    adapted(answer, said(content=""))
    assert not answer.settled
    assert delta_of(adapted(answer, said(content="0 1 2 "))).content == "2 "


def test_one_piece_may_be_said_twice() -> None:
    answer = continuation(text="ha", chunks=1)
    assert delta_of(adapted(answer, said(content="haha"))).content == "haha"


def test_of_a_whole_reply_one_piece_is_known_too() -> None:
    answer = continuation(text="ha", chunks=1, whole=True)
    chunk = adapted(answer, {"index": 0, "message": {"content": "hahaha"}, "finish_reason": "stop"})
    assert delta_of(chunk).content == "haha"


def test_a_whole_reply_with_reasoning_and_text() -> None:
    answer = continuation(text="0 1 ", reasoning="hm ", whole=True)
    message = {"content": "0 1 2 ", "reasoning_content": "hm "}
    delta = delta_of(adapted(answer, {"index": 0, "message": message, "finish_reason": "stop"}))
    assert (delta.content, delta.reasoning_content, answer.swallowed) == ("2 ", "", 2)


def test_a_whole_reply_that_goes_on_with_the_reasoning() -> None:
    answer = continuation(text="", reasoning="hm ", whole=True)
    message = {"content": "0 1 ", "reasoning_content": "hm so "}
    delta = delta_of(adapted(answer, {"index": 0, "message": message, "finish_reason": "stop"}))
    assert (delta.content, delta.reasoning_content) == ("0 1 ", "so ")


def test_repeated_reasoning_and_text_are_both_taken_away() -> None:
    answer = continuation(reasoning="hm so ", chunks=4)
    first = delta_of(adapted(answer, said(reasoning_content="hm so ")))
    assert (first.reasoning_content, answer.settled) == ("", False)
    second = delta_of(adapted(answer, said(content="0 1 ")))
    assert (second.content, answer.settled) == ("", True)


def test_repeated_reasoning_alone() -> None:
    answer = continuation(text="", reasoning="hm so ")
    assert delta_of(adapted(answer, said(reasoning_content="hm so well"))).reasoning_content == "well"
    assert answer.settled


def test_a_completion_has_its_text_elsewhere() -> None:
    answer = continuation()
    chunk = adapted(answer, {"index": 0, "text": "2 "})
    assert chunk.choices is not None
    assert (chunk.choices[0].text, answer.settled) == ("2 ", True)


@pytest.mark.parametrize("whole", [False, True])
def test_a_completion_never_repeats_its_prompt(whole: bool) -> None:
    chunk = adapted(continuation(text="ha", chunks=2, whole=whole), {"index": 0, "text": "hahaha"})
    assert chunk.choices is not None
    assert chunk.choices[0].text == "hahaha"


def test_other_choices_are_left_alone() -> None:
    assert delta_of(adapted(continuation(), said(1, content="0 1 2 "))).content == "0 1 2 "


# -- continued: counts and times ------------------------------------------------------------------------------


def test_what_was_given_as_prompt_is_counted_as_answer() -> None:
    usage = {
        "prompt_tokens": 12,
        "completion_tokens": 3,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 11},
    }
    corrected = adapted(continuation(tokens=4), usage=usage).usage
    assert corrected is not None
    assert msgspec.to_builtins(corrected) == {
        "prompt_tokens": 8,
        "completion_tokens": 7,
        "total_tokens": 15,
        "prompt_tokens_details": {"cached_tokens": 8},
    }


@pytest.mark.parametrize("tokens", [None, 0])
def test_counts_stay_where_nothing_is_known(tokens: int | None) -> None:
    corrected = adapted(continuation(tokens=tokens), usage={"prompt_tokens": 12, "completion_tokens": 3}).usage
    assert corrected is not None
    assert (corrected.prompt_tokens, corrected.completion_tokens, corrected.total_tokens) == (12, 3, 15)


def test_counts_never_fall_below_zero() -> None:
    corrected = adapted(continuation(tokens=40), usage={"prompt_tokens": 12, "completion_tokens": 3}).usage
    assert corrected is not None
    assert (corrected.prompt_tokens, corrected.completion_tokens) == (0, 43)


def test_a_text_that_is_cut_anew_counts_as_the_server_cuts_it() -> None:
    """Five tokens were generated, and are four when the text is read again: the prompt is less by four."""
    answer = continuation(tokens=5, as_prompt=4)
    corrected = adapted(answer, usage={"prompt_tokens": 24, "completion_tokens": 7}).usage
    assert corrected is not None
    assert (corrected.prompt_tokens, corrected.completion_tokens, corrected.total_tokens) == (20, 12, 32)


def test_times_cover_the_whole_answer() -> None:
    timings = {"cache_n": 10, "prompt_n": 2, "prompt_ms": 20.0, "predicted_n": 3, "predicted_ms": 50.0}
    corrected = adapted(continuation(tokens=4, decode_ms=90.0), timings=timings).timings
    assert corrected is not None
    assert (corrected.cache_n, corrected.prompt_n, corrected.prompt_per_second) == (8, 0, 0.0)
    assert (corrected.predicted_n, corrected.predicted_ms, corrected.predicted_per_second) == (7, 140.0, 50.0)


def test_times_that_are_zero_give_no_rate() -> None:
    corrected = adapted(continuation(decode_ms=0.0), timings={"prompt_n": 5, "predicted_n": 0}).timings
    assert corrected is not None
    assert (corrected.prompt_per_second, corrected.predicted_per_second) == (None, None)


def test_counts_are_corrected_however_far_the_text_is() -> None:
    answer = continuation(tokens=2)
    adapted(answer, said(content="2 "))
    corrected = adapted(answer, usage={"prompt_tokens": 5, "completion_tokens": 1}).usage
    assert corrected is not None
    assert (corrected.prompt_tokens, corrected.completion_tokens) == (3, 3)
