"""Chunks in, typed events out, and the whole answer at any moment."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import msgspec

from llamastream.errors import ProtocolError
from llamastream.protocol.chunks import WireChoice, WireChunk, WireDelta, WireToolCall
from llamastream.types import (
    Choice,
    ChoiceFinish,
    LogprobsDelta,
    PromptProgress,
    ReasoningDelta,
    Result,
    Stats,
    StreamEvent,
    TextDelta,
    Timings,
    ToolCall,
    ToolCallDelta,
    Usage,
)

MAX_CHOICES = 128
MAX_TOOL_CALLS = 1024
"""Limits on what a server can make grow by sending new indices."""


class _ToolCallState:
    __slots__ = ("arguments", "id", "name")

    def __init__(self) -> None:
        self.id = ""
        self.name = ""
        self.arguments = io.StringIO()


class _ChoiceState:
    __slots__ = ("finish_reason", "logprobs", "reasoning", "text", "tool_calls")

    def __init__(self) -> None:
        # StringIO keeps a million small pieces as one compact buffer; a list would keep a million objects.
        self.text = io.StringIO()
        self.reasoning = io.StringIO()
        self.tool_calls: dict[int, _ToolCallState] = {}
        self.finish_reason: str | None = None
        self.logprobs: dict[str, Any] | None = None


class Assembler:
    """Collects one answer.

    Attributes:
        content_chunks: how many chunks carried text, reasoning or a piece of a tool call.
        usage, timings: as last received, or None.
    """

    def __init__(self) -> None:
        self.content_chunks = 0
        self.usage: Usage | None = None
        self.timings: Timings | None = None
        self._choices: dict[int, _ChoiceState] = {}
        self._id = ""
        self._model = ""
        self._created = 0
        self._system_fingerprint = ""

    def add(self, chunk: WireChunk, out: list[StreamEvent]) -> None:
        """Take one chunk; what it means is appended to `out`.

        Raises:
            ProtocolError: more choices or tool calls than any request can ask for.
        """
        if not self._id and chunk.id:
            self._id = chunk.id
            self._model = chunk.model or ""
            self._created = chunk.created or 0
            self._system_fingerprint = chunk.system_fingerprint or ""
        if chunk.prompt_progress is not None:
            progress = chunk.prompt_progress
            out.append(PromptProgress(progress.total, progress.cache, progress.processed, progress.time_ms))
        if chunk.choices:
            for choice in chunk.choices:
                self._add_choice(choice, out)
        if chunk.usage is not None:
            self.usage = chunk.usage.usage()
            out.append(self.usage)
        if chunk.timings is not None:
            self.timings = Timings(**msgspec.structs.asdict(chunk.timings))
            out.append(self.timings)

    def add_text(self, text: str) -> None:
        """A piece of text of the only choice there is, in a stream that has had one before (see `sole_text`)."""
        self._choices[0].text.write(text)
        self.content_chunks += 1

    def text_writer(self) -> Callable[[str], object]:
        """What `add_text` does with the text, for whoever counts the chunks later."""
        return self._choices[0].text.write

    def sole_text(self, chunk: WireChunk) -> str | None:
        """The text of a chunk that carries nothing else, for the only choice of the answer; else None."""
        choices = chunk.choices
        if (
            choices is None
            or len(choices) != 1
            or chunk.usage is not None
            or chunk.timings is not None
            or chunk.prompt_progress is not None
            or list(self._choices) != [0]
        ):
            return None
        choice = choices[0]
        if choice.index != 0 or choice.finish_reason is not None or choice.logprobs or choice.message is not None:
            return None
        delta = choice.delta
        if delta is None:
            return choice.text
        if delta.reasoning_content or delta.tool_calls or choice.text:
            return None
        return delta.content

    def _add_choice(self, choice: WireChoice, out: list[StreamEvent]) -> None:
        index = choice.index
        state = self._choices.get(index)
        if state is None:
            if not 0 <= index < MAX_CHOICES:
                raise ProtocolError(
                    f"the server sent a choice with the index {index}; possible are 0 to {MAX_CHOICES - 1}"
                )
            state = self._choices[index] = _ChoiceState()
        delta = choice.delta or choice.message
        has_content = False
        if delta is not None:
            has_content = self._add_delta(delta, index, state, out)
        elif choice.text:
            state.text.write(choice.text)
            out.append(TextDelta(choice.text, index))
            has_content = True
        if has_content:
            self.content_chunks += 1
        if choice.logprobs:
            _merge_logprobs(state, choice.logprobs)
            out.append(LogprobsDelta(choice.logprobs, index))
        if choice.finish_reason is not None and state.finish_reason is None:
            state.finish_reason = choice.finish_reason
            out.append(ChoiceFinish(choice.finish_reason, index))

    def _add_delta(self, delta: WireDelta, index: int, state: _ChoiceState, out: list[StreamEvent]) -> bool:
        has_content = False
        if delta.reasoning_content:
            state.reasoning.write(delta.reasoning_content)
            out.append(ReasoningDelta(delta.reasoning_content, index))
            has_content = True
        if delta.content:
            state.text.write(delta.content)
            out.append(TextDelta(delta.content, index))
            has_content = True
        if delta.tool_calls:
            # Whole messages number their calls by position and leave `index` out.
            positional = len(delta.tool_calls) > 1 and all(call.index == 0 for call in delta.tool_calls)
            for position, call in enumerate(delta.tool_calls):
                self._add_tool_call(call, position if positional else call.index, index, state, out)
            has_content = True
        return has_content

    def _add_tool_call(
        self, call: WireToolCall, number: int, index: int, state: _ChoiceState, out: list[StreamEvent]
    ) -> None:
        known = state.tool_calls.get(number)
        if known is None:
            if len(state.tool_calls) >= MAX_TOOL_CALLS:
                raise ProtocolError(f"the server sent more than {MAX_TOOL_CALLS} tool calls in one answer")
            known = state.tool_calls[number] = _ToolCallState()
        name = arguments = ""
        if call.function is not None:
            name = call.function.name or ""
            raw = call.function.arguments
            # Some templates hand the arguments over as an object instead of as JSON text.
            arguments = raw or "" if isinstance(raw, str | None) else msgspec.json.encode(raw).decode()
        # Name and id come once; servers that repeat them in every fragment must not double them.
        if name and not known.name:
            known.name = name
        if call.id and not known.id:
            known.id = call.id
        if arguments:
            known.arguments.write(arguments)
        out.append(ToolCallDelta(number, call.id or "", name, arguments, index))

    def finished(self, expected_choices: int = 1) -> bool:
        """Whether as many choices as were asked for have a finish reason."""
        done = sum(1 for state in self._choices.values() if state.finish_reason is not None)
        return done >= max(1, expected_choices) and done == len(self._choices)

    def text(self, index: int) -> str:
        """The text of a choice so far."""
        state = self._choices.get(index)
        return state.text.getvalue() if state else ""

    def reasoning(self, index: int) -> str:
        """The reasoning of a choice so far."""
        state = self._choices.get(index)
        return state.reasoning.getvalue() if state else ""

    def close(self, reason: str) -> None:
        """Give the only choice its finish reason."""
        self._choices[0].finish_reason = reason

    def finish_reason(self) -> str | None:
        """The finish reason of the first choice, if it has one."""
        first = self._choices.get(min(self._choices, default=0))
        return first.finish_reason if first else None

    def result(self, stats: Stats, finish_reason: str | None = None) -> Result:
        """The answer so far; `finish_reason` stands in for choices that have none of their own."""
        choices = tuple(
            Choice(
                index=index,
                text=state.text.getvalue(),
                reasoning=state.reasoning.getvalue(),
                tool_calls=tuple(
                    ToolCall(call.id, call.name, call.arguments.getvalue())
                    for _, call in sorted(state.tool_calls.items())
                ),
                finish_reason=state.finish_reason or finish_reason,
                logprobs=state.logprobs,
            )
            for index, state in sorted(self._choices.items())
        )
        first = choices[0] if choices else Choice(finish_reason=finish_reason)
        return Result(
            text=first.text,
            reasoning=first.reasoning,
            tool_calls=first.tool_calls,
            finish_reason=first.finish_reason,
            choices=choices,
            usage=self.usage,
            timings=self.timings,
            stats=stats,
            id=self._id,
            model=self._model,
            created=self._created,
            system_fingerprint=self._system_fingerprint,
        )


def _merge_logprobs(state: _ChoiceState, new: dict[str, Any]) -> None:
    """Log probabilities come as parallel lists, a piece per chunk; joined they are those of the whole answer."""
    if state.logprobs is None:
        state.logprobs = {}
    for key, value in new.items():
        old = state.logprobs.get(key)
        if isinstance(old, list) and isinstance(value, list):
            old.extend(value)
        elif value is not None:
            state.logprobs[key] = list(value) if isinstance(value, list) else value
