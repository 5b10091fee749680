"""A request, its undisturbed answer, and what a disturbed one lacks: shared by the tests, the table and the soak."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Literal, TypeVar

from msgspec import Struct

from llamastream import AsyncStream, AsyncStreamingClient, Stream, StreamingClient
from llamastream.engine.demo import demo_questions
from llamastream.types import (
    ReasoningDelta,
    Recovery,
    Result,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    ToolCallDelta,
)

T = TypeVar("T")
How = Literal["sync", "asyncio", "uvloop"]

ANSWERS = {question.question: question.answer for question in demo_questions()}
SYSTEM = "You are a demo."

_PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}}
PARAMETERS = {"type": "object", "properties": _PROPERTIES, "required": ["city", "days"]}
TOOLS = [{"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}}]
# Short strings and numbers: at temperature 0 a free string of so small a model goes round in circles.
SCHEMA = {
    "type": "object",
    "properties": {
        "names": {"type": "array", "items": {"type": "string", "maxLength": 8}, "minItems": 4, "maxItems": 4},
        "count": {"type": "integer", "minimum": 0, "maximum": 99},
    },
    "required": ["names", "count"],
    "additionalProperties": False,
}


class Ask(Struct, frozen=True):
    """One request: a conversation, or with `prompt` a text completion; `body` goes into the request."""

    name: str
    messages: tuple[dict[str, Any], ...] = ()
    prompt: str | None = None
    body: dict[str, Any] = {}

    def with_body(self, **body: Any) -> Ask:
        return Ask(self.name, self.messages, self.prompt, {**self.body, **body})

    def named(self, name: str) -> Ask:
        return Ask(name, self.messages, self.prompt, self.body)


def chat(question: str, *, system: str | None = None, name: str = "chat", **body: Any) -> Ask:
    """A conversation of one question, at temperature 0."""
    first = () if system is None else ({"role": "system", "content": system},)
    return Ask(name, (*first, {"role": "user", "content": question}), None, {"temperature": 0, **body})


def completion(question: str, *, name: str = "completion", **body: Any) -> Ask:
    """The same question as a text completion."""
    prompt = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    return Ask(name, (), prompt, {"temperature": 0, **body})


def structured(question: str, **body: Any) -> Ask:
    """A question whose answer is to be JSON."""
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    return chat(question, name="JSON schema", response_format=form, **body)


def tool_call(**body: Any) -> Ask:
    """A question that a tool answers."""
    body = {"tools": TOOLS, "tool_choice": "required", **body}
    return chat("What is the weather in Berlin?", name="tool call", **body)


class Answer(Struct, frozen=True):
    """All events, and the result of the same stream."""

    events: list[StreamEvent]
    result: Result

    @property
    def recoveries(self) -> tuple[Recovery, ...]:
        return self.result.stats.recoveries

    @property
    def kinds(self) -> list[str]:
        return [recovery.kind for recovery in self.recoveries]

    @property
    def longest_gap(self) -> float:
        return max((recovery.gap for recovery in self.recoveries), default=0.0)


def stream(client: StreamingClient, ask: Ask) -> Stream:
    if ask.prompt is not None:
        return client.stream_completion(ask.prompt, **ask.body)
    return client.stream_chat(ask.messages, **ask.body)


def astream(client: AsyncStreamingClient, ask: Ask) -> AsyncStream:
    if ask.prompt is not None:
        return client.stream_completion(ask.prompt, **ask.body)
    return client.stream_chat(ask.messages, **ask.body)


def read(client: StreamingClient, ask: Ask) -> Answer:
    """The whole answer."""
    answer = stream(client, ask)
    return Answer(list(answer.events()), answer.result())


async def aread(client: AsyncStreamingClient, ask: Ask) -> Answer:
    """The whole answer."""
    answer = astream(client, ask)
    events = [event async for event in answer.events()]
    return Answer(events, await answer.result())


def run(how: How, work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on an event loop of the kind."""
    if how == "uvloop":
        import uvloop

        result: T = uvloop.run(work)
        return result
    return asyncio.run(work)


def answer(url: str | list[str], ask: Ask, how: How = "sync", **options: Any) -> Answer:
    """The whole answer, by a client of its own."""
    if how == "sync":
        with StreamingClient(url, **options) as client:
            return read(client, ask)

    async def work() -> Answer:
        async with AsyncStreamingClient(url, **options) as client:
            return await aread(client, ask)

    return run(how, work())


def undisturbed(url: str, ask: Ask) -> Answer:
    """The answer to compare with. Asked twice: the second finds the prompt in the server's cache, as all later ones."""
    answer(url, ask, recovery="off")
    return answer(url, ask, recovery="off")


def losses(got: Answer, whole: Answer, *, counted: bool = True) -> list[str]:
    """What is lost, doubled or changed in an answer beside the undisturbed one, in words; none if all is well.

    `counted`: token counts have to be there and right.
    """
    result, expected = got.result, whole.result
    found = [
        f"{name}: {here!r} instead of {there!r}"
        for name, here, there in (
            ("text", result.text, expected.text),
            ("reasoning", result.reasoning, expected.reasoning),
            ("finish reason", result.finish_reason, expected.finish_reason),
            ("tool calls", _calls(result), _calls(expected)),
            ("choices", len(result.choices), len(expected.choices)),
            ("token counts", _counts(result) or _counts(expected) * (not counted), _counts(expected)),
        )
        if here != there
    ]
    found += _told_twice(got)
    kinds = [type(event) for event in got.events]
    if kinds.count(StreamStart) != 1 or kinds.count(StreamEnd) != 1 or kinds[-1] is not StreamEnd:
        found.append(f"events: {kinds.count(StreamStart)} starts, {kinds.count(StreamEnd)} ends")
    return found


def _told_twice(got: Answer) -> list[str]:
    """Where the events of the first choice do not add up to the result."""
    result, texts, reasoning = got.result, "", ""
    calls: dict[int, list[str]] = {}
    for event in got.events:
        if isinstance(event, TextDelta) and event.index == 0:
            texts += event.text
        elif isinstance(event, ReasoningDelta) and event.index == 0:
            reasoning += event.text
        elif isinstance(event, ToolCallDelta) and event.index == 0:
            known = calls.setdefault(event.call, ["", "", ""])
            for place, piece in enumerate((event.id, event.name, event.arguments)):
                known[place] += piece
    told = [calls[number] for number in sorted(calls)]
    kept = [[call.id, call.name, call.arguments] for call in result.tool_calls]
    ids = [call.id for call in result.tool_calls]
    found = [f"ids of tool calls: {ids}"] * (not all(ids) or len(ids) != len(set(ids)))
    found += [
        f"events tell of {here!r}, the result of {there!r}"
        for here, there in ((texts, result.text), (reasoning, result.reasoning), (told, kept))
        if here != there
    ]
    return found


def _calls(result: Result) -> list[tuple[str, str]]:
    return [(call.name, call.arguments) for call in result.tool_calls]


def _counts(result: Result) -> tuple[int, ...]:
    usage = result.usage
    return () if usage is None else (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens)


def events_of(whole: Answer) -> int:
    """About how many events the server sent for an answer: the role, pieces of content, the end, usage, `[DONE]`."""
    return whole.result.stats.chunks + 4
