"""Tool calls as data: what is wrong with one, and how it goes into the next request."""

from __future__ import annotations

import json
import re

import pytest

from llamastream.tools import ToolCall
from llamastream.types import Result


@pytest.mark.parametrize("arguments", ["{}", "", '{"city": "Zürich"}', ' {"a": [1, {"b": null}]} '])
def test_a_call_with_an_object_can_be_carried_out(arguments: str) -> None:
    call = ToolCall("1", "look", arguments)
    assert call.malformed is None
    assert isinstance(call.parsed_arguments(), dict)


@pytest.mark.parametrize(
    ("name", "arguments", "why"),
    [
        ("look", '{"city": "Pa', "the arguments of tool call 'look' are not JSON .Unterminated string"),
        ("look", "{'city': 'Paris'}", "not JSON"),
        ("look", "nonsense", "not JSON"),
        ("look", "[" * 100_000, "not JSON"),
        ("look", "[1, 2]", "are list, no object"),
        ("look", "null", "are NoneType, no object"),
        ("", "{}", "the call has no name"),
    ],
)
def test_a_malformed_call_says_what_is_wrong_with_it(name: str, arguments: str, why: str) -> None:
    told = ToolCall("1", name, arguments).malformed
    assert told is not None
    assert re.search(why, told)


def test_arguments_that_are_no_json_are_an_error_where_they_are_asked_for() -> None:
    with pytest.raises(ValueError, match="'look' are not JSON .*: '.\"city\": '"):
        ToolCall("1", "look", '{"city": ').parsed_arguments()


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ('{"city": "Zürich"}', {"city": "Zürich"}),
        ('{"city": "Zü', '{"city": "Zü'),
        ("", {}),
        ("[1]", [1]),
    ],
)
def test_in_the_next_request_the_arguments_are_json_whatever_the_model_wrote(arguments: str, written: object) -> None:
    entry = ToolCall("1", "look", arguments).to_message()
    assert (entry["id"], entry["type"], entry["function"]["name"]) == ("1", "function", "look")
    assert json.loads(entry["function"]["arguments"]) == written


def test_an_answer_becomes_the_message_that_it_was() -> None:
    assert Result(text="hi").to_message() == {"role": "assistant", "content": "hi"}
    call = ToolCall("1", "look", "{}")
    message = Result(text="", reasoning="hm", tool_calls=(call,)).to_message()
    assert message == {
        "role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [call.to_message()],
    }  # fmt: skip
