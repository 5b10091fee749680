"""What CrewAI asks, in the words of llama-server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from crewai.llms.providers.utils.common import extract_tool_info
from crewai.utilities.string_utils import sanitize_tool_name
from pydantic import BaseModel

from llamastream import Result, ToolCall

_KNOWN = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")


def to_server(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The conversation as the request has it: without what CrewAI keeps in messages for itself or other providers."""
    return [_message(message) for message in messages]


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: message[name] for name in _KNOWN if message.get(name) is not None}
    if "tool_calls" in kept:
        # What the model wrote may be malformed, and the server would refuse a history with that in it.
        kept["tool_calls"] = [_call(call).to_message() for call in kept["tool_calls"]]
    return {"content": "", **kept}


def _call(call: Mapping[str, Any]) -> ToolCall:
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    if not isinstance(arguments, str):  # some providers hand them over parsed
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(str(call.get("id") or ""), str(function.get("name") or ""), arguments)


def whole_tokens(max_tokens: float | None) -> int | None:
    """`max_tokens` of the request: CrewAI allows a float there, and 20.0 is 20.

    Raises:
        ValueError: it is no whole number.
    """
    if isinstance(max_tokens, float):
        if not max_tokens.is_integer():
            raise ValueError(f"max_tokens={max_tokens} is not allowed; allowed: a whole number of tokens, or None")
        return int(max_tokens)
    return max_tokens


def tool_fields(tools: Sequence[Mapping[str, Any]] | None) -> dict[str, Any]:
    """`tools` of the request, from any form that CrewAI has for them; nothing if there are none."""
    return {"tools": [_tool(tool) for tool in tools]} if tools else {}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    name, description, parameters = extract_tool_info(dict(tool))
    function = {"name": sanitize_tool_name(name), "description": description}
    return {"type": "function", "function": {**function, **({"parameters": parameters} if parameters else {})}}


def format_fields(answer: type[BaseModel] | None) -> dict[str, Any]:
    """`response_format` of the request: the schema of a pydantic class, of which the server makes a grammar."""
    if answer is None:
        return {}
    schema = {"name": answer.__name__, "schema": answer.model_json_schema(), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def tool_call(call: ToolCall, index: int) -> dict[str, Any]:
    """A whole tool call, in the form in which CrewAI takes those of OpenAI."""
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function, "index": index}


def to_usage(result: Result) -> dict[str, Any]:
    """Token counts in CrewAI's names."""
    usage = result.usage
    if usage is None:
        return {}
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "cached_prompt_tokens": usage.cached_tokens,
    }
