"""A repeated answer is compared with what the caller has, whatever the pieces in which it comes."""

from __future__ import annotations

import random
from typing import Any

import pytest
from chunks import adapted, delta_of, said, wire

from llamastream.errors import StreamDivergedError
from llamastream.protocol.assembler import Assembler
from llamastream.protocol.resume import RepeatedAnswer
from llamastream.types import Choice, Result, Stats, StreamEvent, ToolCall

# -- repeated: whatever the pieces ------------------------------------------------------------------------------


WORDS = ["alpha ", "Grüße ", "🦙", "{", '"n":', "\n", "  ", "x", "yz ", "\\", "0 1 "]


class Script:
    """A made-up answer: for each choice reasoning, text, calls and log probabilities, and ways to cut it in pieces."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.choices: list[dict[str, Any]] = []
        for _ in range(rng.choice([1, 1, 2, 3])):
            self.choices.append(
                {
                    "reasoning": self.words(rng.choice([0, 5])),
                    "text": self.words(rng.choice([0, 8])) or "end",
                    "calls": [
                        (rng.choice("abc"), self.words(rng.choice([0, 1, 6]))) for _ in range(rng.choice([0, 0, 1, 3]))
                    ],
                    "logprobs": rng.random() < 0.3,
                }
            )

    def words(self, most: int) -> str:
        return "".join(self.rng.choice(WORDS) for _ in range(self.rng.randint(min(1, most), most))) if most else ""

    def cut(self, text: str) -> list[str]:
        pieces = []
        while text:
            length = self.rng.randint(1, 6)
            pieces.append(text[:length])
            text = text[length:]
        return pieces

    def deltas(self) -> list[dict[str, Any]]:
        """The same answer in new pieces: one wire choice each, in the order of each choice, the choices mixed."""
        queues = []
        for index, choice in enumerate(self.choices):
            queue = [said(index, role="assistant", content=None)]
            queue += [said(index, reasoning_content=piece) for piece in self.cut(choice["reasoning"])]
            for piece in self.cut(choice["text"]):
                one = said(index, content=piece)
                if choice["logprobs"]:
                    one["logprobs"] = {"content": [{"token": letter} for letter in piece]}
                queue.append(one)
            for number, (name, arguments) in enumerate(choice["calls"]):
                head = {"index": number, "id": f"call_{self.rng.random()}", "function": {"name": name, "arguments": ""}}
                queue.append(said(index, tool_calls=[head]))
                queue += [
                    said(index, tool_calls=[{"index": number, "function": {"arguments": piece}}])
                    for piece in self.cut(arguments)
                ]
            queue.append(said(index, "tool_calls" if choice["calls"] else "stop"))
            queues.append(queue)
        mixed = []
        while queues:
            queue = self.rng.choice(queues)
            mixed.append(queue.pop(0))
            queues = [each for each in queues if each]
        return mixed


def comparable(result: Result) -> list[Any]:
    return [
        (
            choice.index,
            choice.text,
            choice.reasoning,
            [(call.name, call.arguments) for call in choice.tool_calls],
            choice.finish_reason,
            choice.logprobs,
        )
        for choice in result.choices
    ]


def fed(assembler: Assembler, deltas: list[dict[str, Any]], resumed: RepeatedAnswer | None = None) -> list[StreamEvent]:
    events: list[StreamEvent] = []
    for one in deltas:
        chunk = wire(one)
        if resumed is not None:
            resumed.adapt(chunk)
        assembler.add(chunk, events)
    return events


def joined(events: list[StreamEvent]) -> dict[Any, Any]:
    """What a caller who joins the events has."""
    whole: dict[Any, Any] = {}
    for event in events:
        for field in ("text", "arguments", "name"):
            value = getattr(event, field, "")
            if value:
                piece = (type(event).__name__, field, getattr(event, "index", 0), getattr(event, "call", 0))
                whole[piece] = whole.get(piece, "") + value
        if type(event).__name__ == "ChoiceFinish":
            key = ("finish", getattr(event, "index", 0))
            assert key not in whole, "a choice ends once"
            whole[key] = getattr(event, "reason", "")
        if type(event).__name__ == "LogprobsDelta":
            content = getattr(event, "logprobs", {}).get("content")
            assert content, "no empty piece"
            whole.setdefault(("logprobs", getattr(event, "index", 0)), []).extend(content)
    return whole


@pytest.mark.parametrize("seed", range(400))
def test_a_repetition_in_other_pieces_gives_exactly_the_rest(seed: int) -> None:
    rng = random.Random(seed)
    script = Script(rng)
    expected = Assembler()
    expected_events = fed(expected, script.deltas())

    assembler = Assembler()
    deltas = script.deltas()
    events = fed(assembler, deltas[: rng.randint(1, len(deltas))])
    ids = [[call.id for call in choice.tool_calls] for choice in assembler.result(Stats()).choices]
    for _ in range(rng.choice([0, 0, 1, 2])):  # repetitions that break too
        again = script.deltas()
        resumed = RepeatedAnswer(assembler.result(Stats()).choices)
        events += fed(assembler, again[: rng.randint(0, len(again))], resumed)
    resumed = RepeatedAnswer(assembler.result(Stats()).choices)
    events += fed(assembler, script.deltas(), resumed)

    assert resumed.settled
    assert comparable(assembler.result(Stats())) == comparable(expected.result(Stats()))
    assert joined(events) == joined(expected_events)
    for choice, first in zip(assembler.result(Stats()).choices, ids, strict=False):
        assert [call.id for call in choice.tool_calls][: len(first)] == first, "the ids that the caller had stay"


@pytest.mark.parametrize("seed", range(300))
def test_a_changed_character_is_found(seed: int) -> None:
    rng = random.Random(seed)
    script = Script(rng)
    assembler = Assembler()
    fed(assembler, script.deltas())
    places: list[tuple[dict[str, Any], Any]] = [
        (choice, key) for choice in script.choices for key in ("text", "reasoning") if choice[key]
    ]
    places += [(choice, number) for choice in script.choices for number, call in enumerate(choice["calls"]) if call[1]]
    choice, key = rng.choice(places)
    text = choice["calls"][key][1] if isinstance(key, int) else choice[key]
    at = rng.randrange(len(text))
    changed = text[:at] + ("?" if text[at] != "?" else "!") + text[at + 1 :]
    if isinstance(key, int):
        choice["calls"][key] = (choice["calls"][key][0], changed)
    else:
        choice[key] = changed
    with pytest.raises(StreamDivergedError, match="differs from what the caller has"):
        fed(assembler, script.deltas(), RepeatedAnswer(assembler.result(Stats()).choices))


def repeated(**known: Any) -> RepeatedAnswer:
    return RepeatedAnswer((Choice(**known),))


@pytest.mark.parametrize(
    ("known", "pieces"),
    [
        ({"text": "0 1 2 "}, [said(content="0 1 "), said(0, "stop")]),
        ({"text": "0 1 2 "}, [said(0, "length")]),
        ({"text": "0 1 2 ", "finish_reason": "stop"}, [said(content="0 1 "), said(0, "stop")]),
        ({"reasoning": "hm so"}, [said(reasoning_content="hm "), said(0, "stop")]),
        ({"text": "0", "reasoning": "hm"}, [said(content="0"), said(0, "stop")]),
        ({"tool_calls": (ToolCall("a", "f", "[1,"),)}, [said(content="no"), said(0, "stop")]),
        ({"tool_calls": (ToolCall("a", "f", ""),)}, [said(content="no"), said(0, "stop")]),
        (
            {"tool_calls": (ToolCall("a", "f", "[]"), ToolCall("b", "g", ""))},
            [said(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": "[]"}}]), said(0, "tool_calls")],
        ),
    ],
)
def test_a_repetition_that_ends_early_is_another_answer(known: Any, pieces: list[Any]) -> None:
    answer = repeated(**known)
    with pytest.raises(StreamDivergedError, match="ended before it came to"):
        fed(Assembler(), pieces, answer)


@pytest.mark.parametrize("settled", [False, True], ids=["another choice is not settled", "all is settled"])
@pytest.mark.parametrize(
    "pieces",
    [
        [said(content="0 1 2 ")],
        [said(content="0 1 "), said(content="2 ")],
        [said(content="0 1 "), said(reasoning_content="hm")],
        [said(content="0 1 "), said(tool_calls=[{"index": 0, "function": {"name": "f", "arguments": ""}}])],
    ],
)
def test_a_choice_that_was_finished_must_not_go_on(pieces: list[Any], settled: bool) -> None:
    answer = RepeatedAnswer((Choice(text="0 1 ", finish_reason="stop"), Choice(1, text="" if settled else "0 ")))
    with pytest.raises(StreamDivergedError, match="where the one that the caller has was finished"):
        fed(Assembler(), pieces, answer)


def test_a_choice_that_was_finished_may_end_again() -> None:
    answer = RepeatedAnswer((Choice(text="0 1 ", finish_reason="stop"), Choice(1, text="0 ")))
    for piece in [said(content="0 1 "), said(content=""), said(0, "stop"), said(1, content="0 ")]:
        adapted(answer, piece)
    assert answer.settled


def test_another_tool_is_another_answer() -> None:
    answer = repeated(tool_calls=(ToolCall("a", "count", ""),))
    with pytest.raises(StreamDivergedError, match="calls 'add' where the caller has 'count'"):
        adapted(answer, said(tool_calls=[{"index": 0, "id": "b", "function": {"name": "add", "arguments": ""}}]))


def test_a_longer_piece_gives_its_end() -> None:
    answer = repeated(text="0 1 ")
    assert delta_of(adapted(answer, said(content="0 1 2 3 "))).content == "2 3 "
    assert (answer.settled, answer.swallowed) == (True, 1)


def test_a_piece_that_is_known_gives_nothing() -> None:
    answer = repeated(text="0 1 ")
    assert delta_of(adapted(answer, said(content="0 "))).content is None
    assert (answer.settled, answer.swallowed) == (False, 1)


def test_an_answer_of_which_nothing_is_known_is_settled() -> None:
    assert RepeatedAnswer(()).settled
    assert RepeatedAnswer((Choice(),)).settled


def test_a_choice_that_is_not_known_yet_comes_as_it_is() -> None:
    answer = repeated(text="0 1 ")
    assert delta_of(adapted(answer, said(1, content="0 1 "))).content == "0 1 "
    assert not answer.settled


def test_arguments_as_an_object_are_compared_as_text() -> None:
    answer = repeated(tool_calls=(ToolCall("a", "f", '{"n":1}'),))
    call = {"id": "b", "function": {"name": "f", "arguments": {"n": 1}}}
    message = {"content": None, "tool_calls": [call]}
    chunk = adapted(answer, {"index": 0, "message": message, "finish_reason": "tool_calls"})
    assert delta_of(chunk).tool_calls is None
    assert answer.settled


def test_the_calls_of_a_whole_reply_are_counted_by_position() -> None:
    answer = repeated(tool_calls=(ToolCall("a", "f", "[1]"), ToolCall("b", "g", "[2")))
    calls = [{"id": str(k), "function": {"name": "fgh"[k], "arguments": f"[{k + 1}]"}} for k in range(3)]
    delta = delta_of(adapted(answer, {"index": 0, "message": {"tool_calls": calls}, "finish_reason": "tool_calls"}))
    left = [(call.index, call.id, call.function.name, call.function.arguments) for call in delta.tool_calls]
    assert left == [(1, None, None, "]"), (2, "2", "h", "[3]")]


@pytest.mark.parametrize(("have", "come", "left"), [(1, 3, [1, 2]), (2, 2, None), (3, 2, None)])
def test_log_probabilities_are_skipped_by_number(have: int, come: int, left: list[int] | None) -> None:
    answer = repeated(text="a" * have, logprobs={"content": list(range(have))})
    choice = {**said(content="a" * come), "logprobs": {"content": list(range(come))}}
    chunk = adapted(answer, choice)
    assert chunk.choices is not None
    logprobs = chunk.choices[0].logprobs
    assert (logprobs or {}).get("content") == left
    assert not logprobs or left, "nothing new: nothing is said"


def probability(token: str, logprob: float, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "top_logprobs": [], **more}


@pytest.mark.parametrize(
    "again",
    [probability("a", -0.1000001, id=5), probability("a", -0.1)],
    ids=["other last digits", "a server that tells no ids"],
)
def test_log_probabilities_of_the_same_token_are_the_same(again: dict[str, Any]) -> None:
    answer = repeated(text="a", logprobs={"content": [probability("a", -0.1, id=5)]})
    adapted(answer, {**said(content="a"), "logprobs": {"content": [again]}})
    assert answer.settled


@pytest.mark.parametrize(
    ("known", "again"),
    [
        ({"content": [probability("a", -0.1, id=5)]}, {"content": [probability("a", -0.1, id=6)]}),
        ({"content": [probability("a", -0.1)]}, {"content": [probability("b", -0.1)]}),
        (
            {"tokens": ["x", "a"], "token_logprobs": [-1.0, -0.1]},
            {"tokens": ["x", "b"], "token_logprobs": [-1.0, -0.1]},
        ),
    ],
)
def test_log_probabilities_of_another_token_are_another_answer(known: dict[str, Any], again: dict[str, Any]) -> None:
    answer = repeated(text="a", logprobs=known)
    with pytest.raises(StreamDivergedError, match="the repeated answer has the token"):
        adapted(answer, {**said(content="a"), "logprobs": again})
