"""Going on with an answer: what becomes of the chunks of a continued and of a repeated one, and where it was left."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from shortway import short_way

from llamastream.errors import StreamDivergedError
from llamastream.protocol.assembler import Assembler
from llamastream.protocol.chunks import WireChunk, decode_chunk
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.resume import ContinuedAnswer, RepeatedAnswer
from llamastream.protocol.sse import SseDecoder
from llamastream.testing import chunked, sse_answer
from llamastream.types import Choice, Result, Stats, StreamEvent, StreamStart, TextDelta, ToolCall


def wire(*choices: dict[str, Any], **fields: Any) -> WireChunk:
    return decode_chunk(msgspec.json.encode({"choices": list(choices), **fields}))


def said(index: int = 0, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": finish_reason}


def adapted(answer: ContinuedAnswer | RepeatedAnswer, *choices: dict[str, Any], **fields: Any) -> WireChunk:
    chunk = wire(*choices, **fields)
    answer.adapt(chunk)
    return chunk


def delta_of(chunk: WireChunk) -> Any:
    assert chunk.choices is not None
    return chunk.choices[0].delta or chunk.choices[0].message


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


# -- where a stream was left ------------------------------------------------------------------------------------


EVENTS = {
    "events": [b"data: a\n\n", b"data: b\n\n", b"data: c\n\n"],
    "pings": [b": ping\n\n", b"data: a\n\n", b":\n\n", b":\n\n", b"data: b\n\n", b": ping\n\n"],
    "several lines": [b"data: a\ndata: b\n\n", b"event: x\nid: 7\ndata: c\n\n", b"retry: 5\n\n", b"data: d\n\n"],
    "a comment inside": [b": hello\ndata: a\n\n", b"data: b\n: in between\n\n", b": x\n: y\ndata: c\n\n"],
    "blank lines": [b"\n\n", b"data: a\n\n", b"\n", b"data: b\n\n"],
    "a BOM": [b"\xef\xbb\xbfdata: a\n\n", b"data: b\n\n"],
}
LINE_ENDS = {"LF": b"\n", "CRLF": b"\r\n", "CR": b"\r"}


@pytest.mark.parametrize("end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("events", EVENTS.values(), ids=EVENTS)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
def test_what_is_unfinished_is_what_must_come_again(events: list[bytes], end: bytes, step: int) -> None:
    stream = b"".join(events).replace(b"\n", end)
    whole = [event.data for event in SseDecoder().feed(stream)]
    for cut in range(len(stream) + 1):
        decoder = SseDecoder()
        before = [event.data for at in range(0, cut, step) for event in decoder.feed(stream[at : min(cut, at + step)])]
        boundary = cut - decoder.unfinished_bytes
        assert 0 <= boundary <= cut
        after = [event.data for event in SseDecoder().feed(stream[boundary:])]
        assert before + after == whole, f"cut at {cut}, taken up at {boundary}"


@pytest.mark.parametrize("seed", range(200))
def test_what_is_unfinished_whatever_the_reads(seed: int) -> None:
    rng = random.Random(seed)
    lines = [b"data: x\n", b"data: yy\n", b"\n", b"\n", b": c\n", b": a longer comment\n", b"id: 3\n"]
    stream = b"".join(rng.choice(lines) for _ in range(30)) + b"\n"
    if seed % 2:
        stream = stream.replace(b"\n", rng.choice([b"\r\n", b"\r"]))
    whole = [event.data for event in SseDecoder().feed(stream)]
    decoder, position, got = SseDecoder(), 0, []
    while position < len(stream):
        step = rng.randint(1, 12)
        got += [event.data for event in decoder.feed(stream[position : position + step])]
        position = min(len(stream), position + step)
        boundary = position - decoder.unfinished_bytes
        assert got + [event.data for event in SseDecoder().feed(stream[boundary:])] == whole


TEXTS = ["Once ", "upon ", "a ", "🦙 time", " there", "\n\n", "was"]
PING = b":\n\n"


def bodies() -> dict[str, list[bytes]]:
    """The de-chunked events of an answer, in several dresses."""
    plain = [event + b"\n\n" for event in dechunked(sse_answer(TEXTS)).split(b"\n\n")[:-1]]
    return {
        "plain": plain,
        "pings": [piece for event in plain for piece in (PING, event)],
        "CRLF": [event.replace(b"\n", b"\r\n") for event in plain],
        "CRLF and pings": [piece.replace(b"\n", b"\r\n") for event in plain for piece in (event, b": ping\n\n")],
    }


def dechunked(answer: bytes) -> bytes:
    framed = answer.partition(b"\r\n\r\n")[2]
    body = b""
    while framed and (size := int(framed[: framed.index(b"\r\n")], 16)):
        start = framed.index(b"\r\n") + 2
        body += framed[start : start + size]
        framed = framed[start + size + 2 :]
    return body


def texts(events: list[StreamEvent]) -> list[Any]:
    return [event.text if isinstance(event, TextDelta) else type(event).__name__ for event in events]


@pytest.mark.parametrize("dress", ["plain", "pings", "CRLF", "CRLF and pings"])
@pytest.mark.parametrize("split", ["whole events", "all in one chunk", "cut anywhere"])
@pytest.mark.parametrize("reads", ["at once", "bytewise"])
def test_an_answer_is_taken_up_again_where_it_was_left(dress: str, split: str, reads: str) -> None:
    pieces = bodies()[dress]
    body = b"".join(pieces)
    if split == "all in one chunk":
        pieces = [body]
    elif split == "cut anywhere":
        pieces = [body[at : at + 13] for at in range(0, len(body), 13)]
    wire_bytes = chunked(pieces)
    reference = GenerationExchange("http://x")
    expected = texts(reference.feed(wire_bytes))
    head = wire_bytes.index(b"\r\n\r\n") + 4
    cuts = range(head, len(wire_bytes)) if reads == "at once" else range(head, len(wire_bytes), 17)
    for cut in cuts:
        assembler = Assembler()
        first = GenerationExchange("http://x", assembler=assembler)
        events: list[StreamEvent] = []
        for part in [wire_bytes[:cut]] if reads == "at once" else [wire_bytes[at : at + 1] for at in range(cut)]:
            text = short_way(first, part)
            events += [TextDelta(text)] if text is not None else first.feed(part)
        if first.done:
            break
        boundary = first.event_boundary
        assert boundary is not None
        second = GenerationExchange("http://x", assembler=assembler)
        rest = second.feed(chunked([body[boundary:]]) if body[boundary:] else chunked([]))
        assert type(rest.pop(0)) is StreamStart
        assert texts(events + rest) == expected, f"cut at {cut}, taken up at {boundary}"
        assert assembler.text(0) == "".join(TEXTS)
        assert (second.error, second.done) == (None, True)


def test_where_an_event_was_left_in_the_middle_nothing_can_be_said() -> None:
    exchange = GenerationExchange("http://x")
    exchange.feed(chunked([b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n', b"data: {nonsense}\n\n"], end=False))
    assert exchange.error is not None
    assert exchange.event_boundary is None


def test_broken_framing_leaves_what_came_before_it() -> None:
    event = b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n'
    exchange = GenerationExchange("http://x")
    exchange.feed(chunked([event], end=False) + b"this is no chunk\r\n")
    assert exchange.error is not None
    assert exchange.event_boundary == len(event)


def test_a_whole_answer_has_no_events() -> None:
    exchange = GenerationExchange("http://x", accept_whole=True)
    exchange.feed(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{")
    assert exchange.event_boundary is None
