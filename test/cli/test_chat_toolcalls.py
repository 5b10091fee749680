"""Tool calls in `llamastream chat`: name and arguments, harmless on a terminal."""

from __future__ import annotations

import json

import msgspec
from toolanswers import answer, piece

from commandline import run
from llamastream.cli.toolcalls import MAX_SHOWN, ToolCallNotes
from llamastream.testing import Script, ServerDouble, chunked, sse_events
from llamastream.types import ToolCallDelta


def notes(*events: ToolCallDelta | None) -> list[str]:
    shown: list[str] = []
    tools = ToolCallNotes(shown.append)
    for event in events:
        if event is None:
            tools.end()
        else:
            tools.add(event)
    tools.end()
    return shown


def test_the_name_comes_at_once_and_the_arguments_when_they_are_whole() -> None:
    begun = ToolCallDelta(0, id="1", name="add"), ToolCallDelta(0, arguments='{"a":')
    assert notes(*begun, ToolCallDelta(0, arguments=" 1}"), None) == ["the model calls the tool add", '  {"a": 1}']
    assert notes(*begun, ToolCallDelta(0, arguments="1}"), ToolCallDelta(1, name="sub", arguments="{}")) == [
        "the model calls the tool add", '  {"a":1}', "the model calls the tool sub", "  {}",
    ]  # fmt: skip
    assert notes(ToolCallDelta(0, name="now")) == ["the model calls the tool now"]


def test_a_malformed_call_says_so_unless_the_answer_broke_off() -> None:
    cut = ToolCallDelta(0, id="1", name="a\x1b[1mdd", arguments='{"a":')
    why = "  this call is malformed: the arguments of tool call 'a\\x1b[1mdd' are not JSON (Expecting value"
    shown = notes(cut, None)
    assert shown[:2] == ["the model calls the tool a␛[1mdd", '  {"a":']
    assert shown[2].startswith(why)
    assert notes(ToolCallDelta(0, arguments="{}"))[-1] == "  this call is malformed: the call has no name"
    broken: list[str] = []
    tools = ToolCallNotes(broken.append)
    tools.add(cut)
    tools.end(broken=True)
    assert broken == shown[:2]


def test_what_a_model_puts_into_them_is_harmless_and_bounded() -> None:
    shown = notes(ToolCallDelta(0, name="a\x1b[1m\nb", arguments='{"a":\n"\x1b]0;x\x07"}'))
    assert shown[:2] == ["the model calls the tool a␛[1m b", '  {"a": "␛]0;x␇"}']
    assert notes(ToolCallDelta(0, name="x", arguments="x" * 9999))[1] == f"  {'x' * MAX_SHOWN}…"


def test_chat_shows_name_and_arguments_on_stderr(environ: dict[str, str]) -> None:
    events = sse_events(["Yes"], finish_reason="tool_calls")

    def piece(**function: str) -> bytes:
        call = {"index": 0, "id": "1", "type": "function", "function": function}
        return events[1].replace(b'"content":"Yes"', b'"tool_calls":' + msgspec.json.encode([call]))

    pieces = [piece(name="weather", arguments=""), piece(arguments='{"city": '), piece(arguments='"Paris"}')]
    with ServerDouble(Script(chunked([events[0], *pieces, *events[2:]]))) as server:
        done = run(environ, "chat", "--url", server.url, "weather?")
    assert done.returncode == 0
    assert "malformed" not in done.stderr
    assert 'the model calls the tool weather\n  {"city": "Paris"}\n' in done.stderr


def test_chat_says_that_a_call_is_malformed(environ: dict[str, str]) -> None:
    script = answer(piece(name="weather", arguments='{"city": "Pa'), finish_reason="tool_calls")
    with ServerDouble(script) as server:
        done = run(environ, "chat", "--url", server.url, "weather?")
    assert "this call is malformed: the arguments of tool call 'weather' are not JSON (" in done.stderr


def test_chat_ends_with_an_error_where_the_server_cannot_read_the_models_output(environ: dict[str, str]) -> None:
    unreadable = "The model produced output that does not match the expected peg-native format"
    with ServerDouble(answer({"content": "Let me see."}, error=unreadable)) as server:
        done = run(environ, "chat", "--url", server.url, "weather?")
        assert (done.returncode, len(server.requests)) == (1, 1)
    assert done.stdout == "Let me see.\n"
    assert unreadable in done.stderr


def test_with_json_every_error_is_an_object_on_stdout(environ: dict[str, str]) -> None:
    for arguments, kind in (
        (["--url", "http://127.0.0.1:1", "--max-retries", "0", "hi"], "ConnectError"),
        (["--url", "foo", "hi"], "SettingError"),
        (["--temperature", "-1", "hi"], "SettingError"),
        ([" "], "InvalidRequestError"),
    ):
        done = run(environ, "chat", "--json", *arguments)
        (line,) = done.stdout.splitlines()
        error = json.loads(line)
        assert (done.returncode, error["type"], error["error"]) == (1, "error", kind)
        assert error["message"] in done.stderr
