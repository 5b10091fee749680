"""Requests with tools: what servers say of them, and answers to them that are none."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, TypeAlias

import msgspec

from llamastream.errors import MalformedOutputError
from llamastream.protocol.failures import reported, response_error, streaming_unsupported
from llamastream.tools import ToolSupport
from llamastream.types import Result

Question: TypeAlias = tuple[str, dict[str, Any]]
"""Path and body of a POST."""

Reply: TypeAlias = tuple[int, bytes]
"""Status and body of its answer."""

_NAME = "llamastream_probe"
_PROBE = {
    "messages": [{"role": "user", "content": "hi"}],
    "tools": [
        {
            "type": "function",
            "function": {"name": _NAME, "description": "a probe", "parameters": {"type": "object", "properties": {}}},
        }
    ],
}
_REFUSALS = frozenset({400, 422, 500, 501})


def tool_questions(props: Mapping[str, Any]) -> Generator[Question, Reply, ToolSupport]:
    """What a server does with tools: yields questions, takes the replies, returns what they mean.

    `/props` tells of the template alone, and that a template knows tools even where `--jinja` is missing. Writing a
    prompt goes through the same checks as generating, and costs nothing. `props`: what `/props` answered.
    """
    caps = props.get("chat_template_caps")
    caps = caps if isinstance(caps, dict) else {}
    known = ToolSupport(rendered=_flag(caps, "supports_tools"), parallel=_flag(caps, "supports_parallel_tool_calls"))
    streamed: bool | None = None
    for stream in (True, False):
        status, body = yield "/apply-template", {**_PROBE, "stream": stream}
        if status == 200:
            shown = _NAME in body.decode("utf-8", "replace")
            streamed = stream if streamed is None else streamed
            return msgspec.structs.replace(known, accepted=True, rendered=shown, streamed=streamed)
        if status not in _REFUSALS:
            break  # too old for this endpoint, or something else answers
        error = response_error(status, {}, body, "/apply-template")
        known = msgspec.structs.replace(known, reason=reported(body), streamed=False)
        if not stream or not streaming_unsupported(error):
            return msgspec.structs.replace(known, accepted=False)
        streamed = False
    return msgspec.structs.replace(known, streamed=streamed)


def _flag(caps: Mapping[str, Any], name: str) -> bool | None:
    value = caps.get(name)
    return value if isinstance(value, bool) else None


def without_answer(result: Result, url: str) -> MalformedOutputError | None:
    """The error for an answer to a request with tools that ended in good order, but has neither text nor a call.

    Where tools are offered, llama-server holds text back that may become a call, until it knows its name and the
    beginning of its arguments. What is cut before that has no trace in the stream but its token counts.
    """
    for choice in result.choices:
        if choice.text.strip() or choice.tool_calls or (choice.reasoning and choice.finish_reason == "length"):
            return None
    tokens = "" if result.usage is None else f", {result.usage.completion_tokens} tokens"
    if result.finish_reason == "length":
        advice = (
            "the limit was reached within a tool call, of which the server shows nothing before its first argument; "
            "allow more tokens (max_tokens)"
        )
    elif result.reasoning:
        advice = "all that the model wrote is reasoning (in `partial`); ask again, or without it"
    else:
        advice = 'the model wrote nothing that can be shown; ask again, or force a call with tool_choice="required"'
    return MalformedOutputError(
        f"{url} ended its answer ({result.finish_reason}{tokens}) without text and without a tool call: {advice}"
    )


def tool_advice(body: Mapping[str, Any], result: Result) -> tuple[str, str] | None:
    """(Topic, message) of a hint on a whole answer to a request with tools, if there is something to be said."""
    for call in result.tool_calls:
        if call.malformed:
            what = "; max_tokens was reached: allow more" if result.finish_reason == "length" else ""
            return (
                "malformed_tool_call",
                f"the model wrote a call that cannot be carried out: {call.malformed}{what}",
            )
    choice = body.get("tool_choice")
    forced = choice == "required" or isinstance(choice, Mapping)
    structured = body.get("json_schema") or body.get("response_format")  # which win
    if not forced or structured or result.tool_calls or result.finish_reason == "length":
        return None
    if isinstance(choice, Mapping):
        return "tool_choice", (
            "tool_choice names a tool, which llama-server takes for 'auto', and the model called none; to force it, "
            "offer it alone, with tool_choice='required'"
        )
    return "tools_ignored", (
        f"tool_choice is {choice!r}, but the answer has no call: the server's template does not know tools "
        "(`llamastream check` says so); start the server with one that does (--chat-template-file)"
    )
