"""One generation over HTTP: good ends."""

from __future__ import annotations

from itertools import pairwise

from exchanges import ANSWER, TEXTS, delta, event, result, run, stream
from hypothesis import given
from hypothesis import strategies as st

from llamastream.errors import (
    ConnectionLostError,
    StreamTruncatedError,
)
from llamastream.testing import sse_answer
from llamastream.types import (
    ChoiceFinish,
    LogprobsDelta,
    PromptProgress,
    ReasoningDelta,
    StreamStart,
    TextDelta,
    Timings,
    ToolCallDelta,
    Usage,
)

# -- good ends ----------------------------------------------------------------------------------------------


def test_an_answer_whole_bytewise_and_cut_everywhere() -> None:
    _, expected = run(ANSWER)
    assert [e.text for e in expected if isinstance(e, TextDelta)] == TEXTS
    assert isinstance(expected[0], StreamStart)
    assert expected[-2:] == [ChoiceFinish("stop"), Usage(5, 4, 9)]
    cuts = [[ANSWER[i : i + 1] for i in range(len(ANSWER))]]
    cuts += [[ANSWER[:i], ANSWER[i:]] for i in range(len(ANSWER))]
    for pieces in cuts:
        exchange, events = run(*pieces, eof=False)
        assert events == expected
        assert (exchange.done, exchange.error) == (True, None)
        assert result(exchange).text == "".join(TEXTS)


@given(st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_an_answer_cut_anywhere_any_number_of_times(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(ANSWER)]
    exchange, events = run(*(ANSWER[a:b] for a, b in pairwise(edges)), eof=False)
    assert events == run(ANSWER)[1]
    assert (exchange.done, exchange.error) == (True, None)


def test_truncated_at_every_byte_it_is_an_error_until_the_finish_reason_is_there() -> None:
    finish = ANSWER.index(b'"finish_reason":"stop"')
    complete_from = ANSWER.index(b"\n\n", finish) + 2
    for cut in range(len(ANSWER)):
        exchange, events = run(ANSWER[:cut])
        got = "".join(e.text for e in events if isinstance(e, TextDelta))
        assert "".join(TEXTS).startswith(got)
        assert result(exchange).text == got
        if cut < complete_from:
            assert isinstance(exchange.error, ConnectionLostError)
            assert exchange.error.retryable
        else:
            assert (exchange.error, got) == (None, "".join(TEXTS))


def test_reasoning_tool_calls_logprobs_progress_and_timings() -> None:
    def call(index: int, **function: str) -> dict[str, object]:
        return {"index": index, "function": function}

    exchange, events = run(
        stream(
            event(choices=[], prompt_progress={"total": 9, "cache": 4, "processed": 9, "time_ms": 1.5}),
            event(
                choices=[delta(role="assistant", content=None)], id="c1", model="m", created=7, system_fingerprint="f"
            ),
            event(choices=[delta(reasoning_content="hm")]),
            event(choices=[delta(content="ok")]),
            event(choices=[{**delta(content="!"), "logprobs": {"content": [{"token": "!", "logprob": -0.5}]}}]),
            event(choices=[delta(tool_calls=[{"id": "a", **call(0, name="f", arguments="")}])]),
            event(choices=[delta(tool_calls=[call(0, arguments='{"x":')])]),
            event(
                choices=[delta(tool_calls=[{"id": "b", **call(1, name="g", arguments="{}")}, call(0, arguments="1}")])]
            ),
            event(choices=[delta(finish_reason="tool_calls")], timings={"cache_n": 4, "prompt_n": 5, "predicted_n": 6}),
            event(
                choices=[],
                usage={"prompt_tokens": 9, "completion_tokens": 6, "prompt_tokens_details": {"cached_tokens": 4}},
            ),
        )
    )
    got = result(exchange)
    assert (got.text, got.reasoning, got.finish_reason, got.id, got.model) == ("ok!", "hm", "tool_calls", "c1", "m")
    assert [(c.id, c.name, c.arguments) for c in got.tool_calls] == [("a", "f", '{"x":1}'), ("b", "g", "{}")]
    assert got.tool_calls[0].parsed_arguments() == {"x": 1}
    assert got.usage == Usage(9, 6, 15, 4)
    assert got.timings == Timings(cache_n=4, prompt_n=5, predicted_n=6)
    assert got.choices[0].logprobs == {"content": [{"token": "!", "logprob": -0.5}]}
    kinds = [type(e) for e in events]
    assert kinds == [
        StreamStart, PromptProgress, ReasoningDelta, TextDelta, TextDelta, LogprobsDelta, ToolCallDelta, ToolCallDelta,
        ToolCallDelta, ToolCallDelta, ChoiceFinish, Timings, Usage,
    ]  # fmt: skip
    assert exchange.assembler.content_chunks == 6


def test_several_choices_end_when_each_has_its_finish_reason() -> None:
    events = [
        event(choices=[delta(0, content="a"), delta(1, content="b")]),
        event(choices=[delta(1, "stop")]),
        event(choices=[delta(0, "length")]),
    ]
    exchange, _ = run(stream(*events), choices=2)
    assert exchange.error is None
    assert [(c.index, c.text, c.finish_reason) for c in result(exchange).choices] == [
        (0, "a", "length"),
        (1, "b", "stop"),
    ]
    exchange, _ = run(stream(*events[:2]), choices=2)
    assert isinstance(exchange.error, StreamTruncatedError)


def test_text_completions() -> None:
    exchange, _ = run(stream(event(choices=[{"index": 0, "text": "abc", "finish_reason": None}]),
                             event(choices=[{"index": 0, "text": "", "finish_reason": "length"}])))  # fmt: skip
    assert (result(exchange).text, result(exchange).finish_reason) == ("abc", "length")


def test_a_finish_reason_without_done_is_a_good_end_of_the_body() -> None:
    exchange, _ = run(sse_answer(["x"], done=False), eof=False)
    assert (exchange.done, exchange.error) == (True, None)


def test_tool_arguments_given_as_an_object_become_json_text() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": {"x": 1}}}
    exchange, _ = run(stream(event(choices=[delta(tool_calls=[call], finish_reason="tool_calls")])))
    assert result(exchange).tool_calls[0].arguments == '{"x":1}'


def test_wrong_utf8_in_a_text_is_replaced_as_the_standard_says() -> None:
    body = b'data: {"choices":[{"index":0,"delta":{"content":"a\xffb"},"finish_reason":"stop"}]}\n\n'
    exchange, _ = run(stream(body))
    assert (result(exchange).text, exchange.error) == ("a\ufffdb", None)
