"""What the caller has of an answer, and the requests that go on from there."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llamastream.protocol.chunks import WireChunk, decode_chunk
from llamastream.protocol.journal import Journal, repetition, token_limit, with_seed
from llamastream.protocol.requests import GenerationRequest, chat_request, completion_request
from llamastream.protocol.resume import ContinuedAnswer, RepeatedAnswer
from llamastream.types import ChoiceFinish, Usage

USER = {"role": "user", "content": "count"}
TOOLS = [{"type": "function", "function": {"name": "count"}}]


def chat(*more: dict[str, Any], **fields: Any) -> GenerationRequest:
    return chat_request([USER, *more], extra=fields)


def completion(prompt: Any = "Count: ", **fields: Any) -> GenerationRequest:
    return completion_request(prompt, extra=fields)


def chunk(finish_reason: str | None = None, index: int = 0, **delta: Any) -> WireChunk:
    choice = {"index": index, "delta": delta, "finish_reason": finish_reason}
    return decode_chunk(msgspec.json.encode({"choices": [choice]}))


def journal(request: GenerationRequest, *deltas: dict[str, Any], finish: str | None = None) -> Journal:
    made = Journal(request)
    for delta in deltas:
        made.assembler.add(chunk(**delta), [])
    if finish:
        made.assembler.add(chunk(finish), [])
    return made


def continued(made: Journal, **arguments: Any) -> tuple[dict[str, Any], ContinuedAnswer]:
    options: dict[str, Any] = {"tokens": 2, "decode_ms": 10.0, "prompt_tokens": None, "whole": False}
    request, answer = made.continued(**{**options, **arguments})
    return request.body, answer


# -- what a request is ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 7}, 7),
        ({"n_predict": 7}, 7),
        ({"n_predict": 9, "max_completion_tokens": 8, "max_tokens": 10}, 8),
        ({"n_predict": -1}, None),
        ({"n_predict": 0}, None),
        ({"n_predict": True}, None),
        ({"n_predict": "7"}, None),
        ({"n_predict": -1, "max_tokens": 3}, 3),
    ],
)
def test_the_most_tokens_that_an_answer_may_have(fields: dict[str, Any], limit: int | None) -> None:
    assert token_limit(chat(**fields)) == limit


PARTS = {"role": "assistant", "content": [{"type": "text", "text": "Well"}]}
SCHEMA: dict[str, Any] = {"type": "object"}


@pytest.mark.parametrize(
    ("request_", "how"),
    [
        (chat(), "no"),
        (chat({"role": "assistant", "content": "Well"}), "no"),
        (chat({"role": "assistant", "content": None, "reasoning_content": "Hm"}), "no"),
        (chat(PARTS), "only"),
        (chat(PARTS, USER), "no"),
        (chat(n=1), "no"),
        (chat(n=2), "only"),
        (chat(logprobs=True), "only"),
        (chat(logprobs=False), "no"),
        (chat(n_probs=3), "only"),
        (chat(grammar='root ::= "a"'), "only"),
        (chat(tools=TOOLS), "only"),
        (chat(tools=TOOLS, tool_choice="auto"), "only"),
        (chat(tools=TOOLS, tool_choice="none"), "no"),
        (chat(tools=[]), "no"),
        (chat(response_format={"type": "json_object"}), "first"),
        (chat(json_schema=SCHEMA), "first"),
        (chat(json_schema=SCHEMA, tools=TOOLS), "only"),
        (chat(json_schema=SCHEMA, n=2), "only"),
        (completion(), "no"),
        (completion([1, 2, 3]), "no"),
        (completion(json_schema=SCHEMA), "only"),
        (completion(grammar='root ::= "a"'), "only"),
        (completion(n_probs=3), "only"),
        (completion(logprobs=2), "only"),
        (completion(n=2), "only"),
        (completion_request("", extra={"prompt": {"prompt_string": "x"}}), "only"),
    ],
)
def test_which_answers_can_be_continued(request_: GenerationRequest, how: str) -> None:
    assert repetition(request_) == how
    assert Journal(request_).repeat == how


@pytest.mark.parametrize(
    ("given", "sent"),
    [({}, 42), ({"seed": 7}, 7), ({"seed": 0}, 0), ({"seed": -1}, 42), ({"seed": None}, 42), ({"seed": True}, 42)],
)
def test_a_seed_is_added_where_the_server_would_choose_one(given: dict[str, Any], sent: int) -> None:
    request = chat(**given, n=2)
    seeded = with_seed(request, 42)
    assert (seeded.body["seed"], seeded.choices, seeded.path) == (sent, 2, request.path)
    assert request.body.get("seed") == given.get("seed"), "the caller's own is left alone"


# -- what the caller has --------------------------------------------------------------------------------------


def test_the_state_of_an_answer() -> None:
    made = Journal(chat())
    facts: dict[str, Any] = {"held": False, "fruitless": 0, "seconds": 0.0, "recoveries": 0}
    assert (made.state(**facts).emitted, made.state(**facts).finished, made.state(**facts).counted) == (0, 0, 0)
    made.assembler.add(chunk(role="assistant"), [])
    assert not made.state(**facts).emitted, "a role is no content"
    made.assembler.add(chunk(reasoning_content="Hm"), [])
    assert made.state(**facts).emitted
    made.assembler.add(chunk(content="0 1"), [])
    made.assembler.add(chunk("stop"), [])
    assert (made.state(**facts).finished, made.state(**facts).counted) == (True, False)
    made.assembler.usage = Usage(1, 2, 3)
    assert made.state(**facts).counted
    told = made.state(held=True, fruitless=2, seconds=3.5, recoveries=4)
    assert (told.held, told.fruitless, told.seconds, told.recoveries) == (True, 2, 3.5, 4)


@pytest.mark.parametrize(
    ("options", "counted"),
    [({"include_usage": True}, False), ({"include_usage": False}, True), ({}, True), (None, True)],
)
def test_counts_that_nobody_asked_for_are_not_missing(options: Any, counted: bool) -> None:
    assert Journal(chat(stream_options=options)).counted is counted


def test_all_characters_count() -> None:
    call = {"index": 0, "id": "c", "function": {"name": "count", "arguments": "12345"}}
    made = journal(chat(n=2), {"content": "abc"}, {"reasoning_content": "de"}, {"index": 1, "content": "fghi"})
    made.assembler.add(chunk(tool_calls=[call]), [])
    assert made.characters == 3 + 2 + 4 + 5
    assert (made.text, made.reasoning) == ("abc", "de")


def test_of_several_choices_each_must_have_its_end() -> None:
    made = journal(chat(n=2), {"content": "a"}, {"index": 1, "content": "b"}, finish="stop")
    state = made.state(held=False, fruitless=0, seconds=0, recoveries=0)
    assert (state.finished, state.repeat) == (False, "only")


def test_a_restart_begins_with_an_empty_answer() -> None:
    made = journal(chat(), {"role": "assistant"}, {"content": "x"})
    made.restart()
    assert (made.text, made.characters, made.assembler.content_chunks) == ("", 0, 0)


# -- going on: conversations ----------------------------------------------------------------------------------


def test_a_conversation_goes_on_with_the_text_as_the_assistants_last_message() -> None:
    request = chat(temperature=0.5)
    body, _ = continued(journal(request, {"content": "0 "}, {"content": "1 "}))
    assert body["messages"] == [USER, {"role": "assistant", "content": "0 1 "}]
    assert (body["continue_final_message"], body["add_generation_prompt"]) == (True, False)
    assert (body["temperature"], body["stream"], body["stream_options"]) == (0.5, True, {"include_usage": True})
    assert request.body["messages"] == [USER], "the caller's request is left alone"
    assert "continue_final_message" not in request.body


def test_reasoning_goes_on_as_reasoning() -> None:
    body, _ = continued(journal(chat(), {"reasoning_content": "Hm, "}, {"reasoning_content": "well"}))
    assert body["messages"][-1] == {"role": "assistant", "content": "", "reasoning_content": "Hm, well"}


def test_text_after_reasoning_keeps_the_reasoning() -> None:
    body, _ = continued(journal(chat(), {"reasoning_content": "Hm"}, {"content": "Yes"}))
    assert body["messages"][-1] == {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}


@pytest.mark.parametrize(
    ("begun", "merged"),
    [
        ({"content": "Well, "}, {"content": "Well, yes"}),
        ({"content": None, "reasoning_content": "Hm"}, {"content": "yes", "reasoning_content": "Hm"}),
        ({"content": "", "name": "bob"}, {"content": "yes", "name": "bob"}),
    ],
)
def test_an_answer_that_the_caller_had_begun_is_one_message(begun: dict[str, Any], merged: dict[str, Any]) -> None:
    request = chat({"role": "assistant", **begun})
    body, _ = continued(journal(request, {"content": "yes"}))
    assert body["messages"] == [USER, {"role": "assistant", **merged}]
    assert request.body["messages"][-1] == {"role": "assistant", **begun}


def test_begun_reasoning_is_joined_too() -> None:
    request = chat({"role": "assistant", "content": "", "reasoning_content": "Hm, "})
    body, _ = continued(journal(request, {"reasoning_content": "so"}))
    assert body["messages"][-1] == {"role": "assistant", "content": "", "reasoning_content": "Hm, so"}


def test_the_begun_message_that_a_server_repeats_has_the_callers_part() -> None:
    request = chat({"role": "assistant", "content": "Well, "})
    _, answer = continued(journal(request, {"content": "0 "}, {"content": "1 "}))
    piece = chunk(content="Well, 0 1 2 ")
    answer.adapt(piece)
    assert piece.choices is not None
    assert piece.choices[0].delta is not None
    assert piece.choices[0].delta.content == "2 "


# -- going on: completions ------------------------------------------------------------------------------------


def test_a_completion_goes_on_behind_its_prompt() -> None:
    body, _ = continued(journal(completion(), {"content": "0 1 "}))
    assert body["prompt"] == "Count: 0 1 "
    assert body.keys().isdisjoint({"continue_final_message", "add_generation_prompt", "messages"})


def test_a_prompt_of_token_ids_goes_on_with_token_ids() -> None:
    request = completion([1, 2, 3])
    made = journal(request, {"content": "0 1 "})
    assert continued(made, prompt_tokens=[8, 9])[0]["prompt"] == [1, 2, 3, 8, 9]
    assert request.body["prompt"] == [1, 2, 3]


# -- going on: limits, budgets, seeds -------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["max_tokens", "max_completion_tokens", "n_predict"])
@pytest.mark.parametrize(
    ("limit", "tokens", "left"), [(10, 3, 7), (10, None, 10), (10, 0, 10), (10, 9, 1), (10, 12, 1), (-1, 3, -1)]
)
def test_what_was_generated_is_taken_from_the_limit(key: str, limit: int, tokens: int | None, left: int) -> None:
    request = GenerationRequest("/v1/completions", {"prompt": "x", "stream": True, key: limit})
    assert continued(journal(request, {"content": "a"}), tokens=tokens)[0][key] == left


def test_all_limits_are_reduced() -> None:
    body, _ = continued(journal(chat(max_tokens=10, n_predict=20), {"content": "a"}), tokens=4)
    assert (body["max_tokens"], body["n_predict"]) == (6, 16)


@pytest.mark.parametrize("key", ["reasoning_budget_tokens", "thinking_budget_tokens"])
@pytest.mark.parametrize("delta", ["reasoning_content", "content"])
@pytest.mark.parametrize("budget", [10, 0, -1])
def test_a_reasoning_budget_stays_whole_since_the_server_counts_what_it_is_given(
    key: str, delta: str, budget: int
) -> None:
    made = journal(chat(**{key: budget}), {delta: "x"})
    assert continued(made, tokens=4)[0][key] == budget


@pytest.mark.parametrize(
    ("seed", "sent"), [(100, 102), (0, 2), (2**32 - 1, 1), (-1, -1), (None, None), (True, True), ("7", "7")]
)
def test_the_seed_is_another_one_so_that_its_sequence_does_not_begin_anew(seed: Any, sent: Any) -> None:
    assert continued(journal(chat(seed=seed), {"content": "a"}), tokens=2)[0]["seed"] == sent


def test_without_a_seed_none_is_sent() -> None:
    assert "seed" not in continued(journal(chat(), {"content": "a"}))[0]


def test_the_rest_can_be_asked_for_in_one_piece() -> None:
    body, _ = continued(journal(chat(), {"content": "a"}), whole=True)
    assert (body["stream"], "stream_options" in body) == (False, False)
    assert body["messages"][-1]["content"] == "a"


# -- repeating ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whole", [False, True])
def test_a_repetition_asks_for_the_same(whole: bool) -> None:
    request = with_seed(chat(tools=TOOLS), 7)
    repeated, answer = journal(request, {"content": "a"}).repeated(whole=whole)
    assert isinstance(answer, RepeatedAnswer)
    assert not answer.settled
    expected = request.without_stream() if whole else request
    assert repeated == expected


# -- all is there but the end -----------------------------------------------------------------------------------


def test_an_answer_that_reached_its_limit_is_ended_with_that_reason() -> None:
    made = journal(chat(max_tokens=1), {"content": "a"})
    assert made.complete(5, 1) == [ChoiceFinish("length"), Usage(5, 1, 6)]
    assert made.assembler.finish_reason() == "length"
    assert made.assembler.usage == Usage(5, 1, 6)


@pytest.mark.parametrize(("prompt", "tokens"), [(None, None), (5, None), (None, 1)])
def test_counts_that_are_not_known_are_not_made_up(prompt: int | None, tokens: int | None) -> None:
    made = journal(chat(), {"content": "a"}, finish="stop")
    assert made.complete(prompt, tokens) == []
    assert (made.assembler.finish_reason(), made.assembler.usage) == ("stop", None)


@pytest.mark.parametrize(
    ("request_", "reason", "tokens"),
    [
        (chat(), "length", 5),
        (chat(), "stop", 6),  # the end mark
        (chat(stop=["\n"]), "stop", None),  # or a stop text that is not shown
        (chat(stop=["\n"]), "length", 5),
        (chat(tools=TOOLS), "stop", None),
        (chat(json_schema=SCHEMA), "stop", None),
    ],
)
def test_how_many_tokens_a_finished_answer_took(request_: GenerationRequest, reason: str, tokens: int | None) -> None:
    assert journal(request_, {"content": "a"}, finish=reason).generated_tokens(5) == tokens
