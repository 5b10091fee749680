"""LangChain's messages as llama-server wants them, and its answers as LangChain's messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, convert_to_openai_messages
from langchain_core.messages.ai import InputTokenDetails, UsageMetadata
from langchain_core.messages.tool import invalid_tool_call, tool_call, tool_call_chunk
from langchain_core.outputs import ChatGeneration
from langchain_core.utils.json import parse_partial_json

from llamastream import Result, ToolCall, Usage
from llamastream.types import Choice, LogprobsDelta, ReasoningDelta, StreamEvent, TextDelta, ToolCallDelta


def to_server(messages: Sequence[BaseMessage]) -> list[dict[str, Any]]:
    """The conversation in the form of the request body."""
    converted: list[dict[str, Any]] = []
    for message in messages:
        if isinstance(message, AIMessage):
            converted.append(_assistant(message))
        else:
            # In a list of its own: one message with tool results in Anthropic's form becomes several.
            converted += convert_to_openai_messages([message])
    return converted


def _assistant(message: AIMessage) -> dict[str, Any]:
    said: dict[str, Any] = {"role": "assistant", "content": str(message.text)}
    if message.name:
        said["name"] = message.name
    reasoning = message.additional_kwargs.get("reasoning_content") or "".join(
        str(block.get("reasoning", "")) for block in message.content_blocks if block["type"] == "reasoning"
    )
    if reasoning:
        said["reasoning_content"] = reasoning
    calls = [
        _function(call["id"], call["name"], json.dumps(call["args"], ensure_ascii=False)) for call in message.tool_calls
    ]
    # Templates read the arguments as JSON. What is none is shown to the model as the text that it was.
    calls += [
        _function(call["id"], call["name"] or "", json.dumps(call["args"] or "", ensure_ascii=False))
        for call in message.invalid_tool_calls
    ]
    if calls:
        said["tool_calls"] = calls
    return said


def _function(identity: str | None, name: str, arguments: str) -> dict[str, Any]:
    return {"id": identity or "", "type": "function", "function": {"name": name, "arguments": arguments}}


def to_chunk(event: StreamEvent) -> AIMessageChunk | None:
    """A piece of the answer (of its first choice), or None for what LangChain has no place for."""
    if isinstance(event, TextDelta):
        return AIMessageChunk(content=event.text) if event.index == 0 else None
    if isinstance(event, ReasoningDelta) and event.index == 0:
        return AIMessageChunk(content="", additional_kwargs={"reasoning_content": event.text})
    if isinstance(event, ToolCallDelta) and event.index == 0:
        piece = tool_call_chunk(name=event.name or None, args=event.arguments, id=event.id or None, index=event.call)
        return AIMessageChunk(content="", tool_call_chunks=[piece])
    if isinstance(event, LogprobsDelta) and event.index == 0:
        return AIMessageChunk(content="", response_metadata={"logprobs": event.logprobs})
    return None


def last_chunk(result: Result) -> AIMessageChunk:
    """The end of a stream: token counts, what the answer was, and marks on tool calls that are malformed."""
    marks = [
        tool_call_chunk(name=None, args=_mark(call), id=None, index=number)
        for number, call in enumerate(result.tool_calls)
        if call.malformed
    ]
    return AIMessageChunk(
        content="",
        tool_call_chunks=marks,
        chunk_position="last",
        usage_metadata=to_usage(result.usage),
        response_metadata=to_metadata(result, result.finish_reason),
    )


def _mark(call: ToolCall) -> str:
    """What makes a malformed call an invalid one, when it is added to the arguments' last piece.

    LangChain completes the arguments of a stream as well as it can: of `{"path": "/home` it makes a path, and an agent
    would carry that out. A closing bracket that nothing opened stops it.
    """
    for closing in (f"{quotes}{bracket}" for quotes in ("", '"', '""') for bracket in "]}"):
        try:
            guessed = parse_partial_json(call.arguments + closing)
        except ValueError:
            guessed = None
        if not isinstance(guessed, dict):
            return f"{closing} (malformed from here, or before)"
    return ""


def to_generations(result: Result) -> list[ChatGeneration]:
    """The whole answer, one generation for each choice; the token counts stand at the first."""
    choices = result.choices or (Choice(),)
    return [
        ChatGeneration(
            message=_to_message(result, choice, first=choice is choices[0]),
            generation_info={"finish_reason": choice.finish_reason},
        )
        for choice in choices
    ]


def _to_message(result: Result, choice: Choice, *, first: bool) -> AIMessage:
    good, bad = [], []
    for call in choice.tool_calls:
        if why := call.malformed:
            bad.append(invalid_tool_call(name=call.name, args=call.arguments, id=call.id, error=why))
        else:
            good.append(tool_call(name=call.name, args=call.parsed_arguments(), id=call.id))
    metadata = to_metadata(result, choice.finish_reason)
    if choice.logprobs is not None:
        metadata["logprobs"] = choice.logprobs
    return AIMessage(
        content=choice.text,
        additional_kwargs={"reasoning_content": choice.reasoning} if choice.reasoning else {},
        tool_calls=good,
        invalid_tool_calls=bad,
        usage_metadata=to_usage(result.usage) if first else None,
        response_metadata=metadata,
    )


def to_usage(usage: Usage | None) -> UsageMetadata | None:
    """Token counts in LangChain's names."""
    if usage is None:
        return None
    return UsageMetadata(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
        input_token_details=InputTokenDetails(cache_read=usage.cached_tokens),
    )


def to_metadata(result: Result, finish_reason: str | None) -> dict[str, Any]:
    """`response_metadata`: how the answer ended, what made it, and how it went."""
    stats = result.stats
    return {
        "finish_reason": finish_reason,
        "model_name": result.model,
        "model_provider": "llamastream",
        "id": result.id,
        "system_fingerprint": result.system_fingerprint,
        "stats": {
            "time_to_first_token": stats.time_to_first_token,
            "tokens_per_second": stats.tokens_per_second,
            "server_tokens_per_second": stats.server_tokens_per_second,
            "duration": stats.duration,
            "recoveries": len(stats.recoveries),
            "streamed": stats.streamed,
        },
    }
