"""What servers say of tools, and answers that are none: by bytes alone."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llamastream.errors import (
    BadRequestError,
    InternalServerError,
    MalformedOutputError,
    MidStreamError,
    NotSupportedError,
    ServerError,
    ToolsUnsupportedError,
)
from llamastream.protocol.failures import mid_stream_error, response_error
from llamastream.protocol.toolcalls import Reply, tool_advice, tool_questions, without_answer
from llamastream.tools import ToolSupport
from llamastream.types import Choice, Result, ToolCall, Usage

NO_JINJA = "tools param requires --jinja flag"
NO_STREAM = "Cannot use tools with stream"


def error(message: str, status: int = 500) -> bytes:
    return msgspec.json.encode({"error": {"code": status, "message": message, "type": "server_error"}})


# -- what a server can do -----------------------------------------------------------------------------------


def asked(caps: dict[str, Any] | None, *replies: Reply) -> tuple[ToolSupport, list[bool]]:
    """What comes of these replies, and which of the questions were about streaming."""
    questions = tool_questions({} if caps is None else {"chat_template_caps": caps})
    path, body = next(questions)
    streams = []
    for reply in replies:
        assert path == "/apply-template"
        streams.append(body["stream"])
        try:
            path, body = questions.send(reply)
        except StopIteration as end:
            return end.value, streams
    raise AssertionError(f"one more question: {body}")


SHOWN = (200, b'{"prompt": "You may call llamastream_probe."}')
NOT_SHOWN = (200, b'{"prompt": "hi"}')
ALL = {"supports_tools": True, "supports_tool_calls": True, "supports_parallel_tool_calls": True}
NONE = dict.fromkeys(ALL, False)


@pytest.mark.parametrize(
    ("caps", "replies", "support"),
    [
        (ALL, [SHOWN], ToolSupport(True, True, True, True)),
        (NONE, [NOT_SHOWN], ToolSupport(True, False, True, False)),
        (None, [SHOWN], ToolSupport(True, True, True, None)),
        (ALL, [(500, error(NO_JINJA))], ToolSupport(False, True, False, True, NO_JINJA)),
        (None, [(500, error(NO_STREAM)), SHOWN], ToolSupport(True, True, False, None, NO_STREAM)),
        (None, [(500, error(NO_STREAM)), (500, error(NO_JINJA))], ToolSupport(False, None, False, None, NO_JINJA)),
        (None, [(500, error("this template raises"))], ToolSupport(False, None, False, None, "this template raises")),
        (ALL, [(404, error("File Not Found", 404))], ToolSupport(None, True, None, True)),
        (None, [(0, b"")], ToolSupport()),
        ({"supports_tools": "yes"}, [(404, b"")], ToolSupport()),
    ],
)
def test_what_the_replies_mean(caps: dict[str, Any] | None, replies: list[Reply], support: ToolSupport) -> None:
    found, streams = asked(caps, *replies)
    assert found == support
    assert streams == [True, False][: len(replies)]


# -- refusals and output that cannot be read ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        (NO_JINJA, ToolsUnsupportedError),
        ("tool_choice param requires --jinja flag", ToolsUnsupportedError),
        ("The model produced output that does not match the expected peg-native format", MalformedOutputError),
        ("Failed to parse input at pos 184: <tool_call>{", MalformedOutputError),
        ("Invalid diff: now finding less tool calls!", MalformedOutputError),
        ("Failed to parse tool call arguments as JSON: [json.exception.parse_error.101]", BadRequestError),
        ("Context size has been exceeded.", InternalServerError),
        (NO_STREAM, InternalServerError),
    ],
)
def test_which_error_an_answer_of_500_is(message: str, kind: type[ServerError]) -> None:
    found = response_error(500, {}, error(message), "http://server")
    assert type(found) is kind
    assert (found.status, found.retryable) == (500, False)
    assert message in found.message
    assert issubclass(ToolsUnsupportedError, NotSupportedError)


def test_a_history_with_broken_arguments_says_how_to_mend_it() -> None:
    found = response_error(500, {}, error("Failed to parse tool call arguments as JSON: ..."), "http://server")
    assert "Result.to_message()" in found.message


def test_inside_a_stream_it_is_the_same_error_and_others_stay_what_they_were() -> None:
    raw = b'{"code":500,"message":"The model produced output that does not match the expected x format"}'
    found = mid_stream_error(raw, "http://server")
    assert (type(found), found.status, found.retryable, found.body) == (MalformedOutputError, 500, False, raw)
    other = mid_stream_error(b'{"code":500,"message":"Context size has been exceeded."}', "http://server")
    assert (type(other), other.retryable) == (MidStreamError, True)


# -- answers ------------------------------------------------------------------------------------------------

CALL = ToolCall("1", "look", "{}")


def result(finish_reason: str = "stop", **fields: Any) -> Result:
    return Result(finish_reason=finish_reason, choices=(Choice(finish_reason=finish_reason, **fields),), **fields)


@pytest.mark.parametrize(
    "answer",
    [
        result(text="hi"),
        result("tool_calls", tool_calls=(CALL,)),
        result("length", reasoning="I think"),
        result("length", text="\nhi"),
        Result(choices=(Choice(), Choice(text="hi"))),
    ],
)
def test_an_answer_is_text_or_a_call_or_reasoning_that_was_cut(answer: Result) -> None:
    assert without_answer(answer, "http://server") is None


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (result(), "http://server ended its answer .stop. without text and without a tool call: .*required"),
        (result("tool_calls"), "ended its answer .tool_calls."),
        (result(text=" \n"), "without text"),
        (result(reasoning="I think"), "all that the model wrote is reasoning"),
        (msgspec.structs.replace(result("length"), usage=Usage(5, 3, 8)), "length, 3 tokens.*allow more tokens"),
    ],
)
def test_all_else_is_an_error(answer: Result, says: str) -> None:
    found = without_answer(answer, "http://server")
    assert found is not None
    with pytest.raises(MalformedOutputError, match=says):
        raise found


@pytest.mark.parametrize(
    ("choice", "answer", "topic", "says"),
    [
        ("auto", result("length", tool_calls=(ToolCall("1", "look", "{"),)), "malformed_tool_call", "allow more"),
        ("auto", result("tool_calls", tool_calls=(CALL, ToolCall("", "", "{}"))), "malformed_tool_call", "no name"),
        ("required", result(text="hi"), "tools_ignored", "template does not know tools"),
        ({"type": "function"}, result(text="hi"), "tool_choice", "offer it alone"),
    ],
)
def test_what_is_worth_a_hint(choice: Any, answer: Result, topic: str, says: str) -> None:
    advice = tool_advice({"tool_choice": choice}, answer)
    assert advice is not None
    assert advice[0] == topic
    assert says in advice[1]


@pytest.mark.parametrize(
    ("choice", "answer"),
    [
        (None, result(text="hi")),
        ("auto", result("tool_calls", tool_calls=(CALL,))),
        ("required", result("tool_calls", tool_calls=(CALL,))),
        ("required", result("length", text="hi")),
        ("none", result(text="hi")),
    ],
)
def test_what_is_not(choice: Any, answer: Result) -> None:
    assert tool_advice({"tool_choice": choice}, answer) is None


def test_a_schema_wins_over_a_required_call() -> None:
    body = {"tool_choice": "required", "response_format": {"type": "json_object"}}
    assert tool_advice(body, result(text="{}")) is None
