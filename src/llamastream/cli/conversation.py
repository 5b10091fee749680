"""A conversation: what was asked and answered, what of it the model gets to see, and how it is saved. Pure."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from msgspec import Struct

from llamastream.errors import InvalidRequestError
from llamastream.types import Result, Stats, ToolCall

State = Literal["open", "complete", "interrupted", "broken"]
"""Of a turn: not answered yet, answered, stopped by the user, ended by an error."""


class Turn(Struct, frozen=True):
    """A question and its answer, as far as there is one."""

    question: str
    answer: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    state: State = "open"


class Conversation:
    """The turns so far, the system prompt, and the figures of the last answer. Holds no terminal and no client."""

    def __init__(self, system: str | None = None) -> None:
        self.system = system
        self.turns: list[Turn] = []
        self.last_stats: Stats | None = None
        self.last_finish_reason: str | None = None

    def ask(self, question: str) -> list[dict[str, Any]]:
        """Begin a turn; the messages to send for it."""
        self.turns.append(Turn(question))
        return self.messages()

    def answered(self, result: Result, state: State) -> None:
        """End the turn that `ask` or `retry` began."""
        self.turns[-1] = Turn(self.turns[-1].question, result.text, result.reasoning, result.tool_calls, state)
        self.last_stats = result.stats
        self.last_finish_reason = result.finish_reason

    def messages(self) -> list[dict[str, Any]]:
        """What the model gets: questions with what was said to them, and the last question in any case.

        A question that got no answer is left out once another one follows: two questions in a row are something that
        many chat templates refuse. Of the reasoning nothing is sent, as the templates of reasoning models want it.
        """
        messages: list[dict[str, Any]] = []
        if self.system is not None:
            messages.append({"role": "system", "content": self.system})
        for number, turn in enumerate(self.turns, start=1):
            if turn.answer or number == len(self.turns):
                messages.append({"role": "user", "content": turn.question})
            if turn.answer:
                messages.append({"role": "assistant", "content": turn.answer})
        return messages

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.turns.clear()
        self.last_stats = self.last_finish_reason = None

    def retry(self) -> list[dict[str, Any]] | None:
        """Drop the last answer; the messages to ask again with, or None if nothing was asked yet."""
        if not self.turns:
            return None
        return self.ask(self.turns.pop().question)


# -- saved conversations ------------------------------------------------------------------------------------


class _Message(Struct, omit_defaults=True):
    """A message of a saved conversation, in the form of the OpenAI interface; `state` is ours."""

    role: Literal["system", "user", "assistant"]
    content: str
    reasoning_content: str = ""
    tool_calls: list[_ToolCall] = []
    state: State = "complete"


class _Function(Struct):
    name: str
    arguments: str


class _ToolCall(Struct):
    id: str
    function: _Function
    type: str = "function"


class _Saved(Struct):
    messages: list[_Message]
    model: str = ""


def to_json(conversation: Conversation, model: str) -> str:
    """As JSON: `messages` can be sent to a server again."""
    messages = [_Message("system", conversation.system)] if conversation.system is not None else []
    for turn in conversation.turns:
        messages.append(_Message("user", turn.question))
        if turn.state != "open":
            calls = [_ToolCall(call.id, _Function(call.name, call.arguments)) for call in turn.tool_calls]
            messages.append(_Message("assistant", turn.answer, turn.reasoning, calls, turn.state))
    return msgspec.json.format(msgspec.json.encode(_Saved(messages, model)), indent=2).decode() + "\n"


def from_json(text: str | bytes) -> Conversation:
    """A conversation that was saved as JSON.

    Raises:
        InvalidRequestError: it is none.
    """
    try:
        saved = msgspec.json.decode(text, type=_Saved)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequestError(f"this is no saved conversation: {error}") from None
    conversation = Conversation()
    for number, message in enumerate(saved.messages):
        if message.role == "system" and number == 0:
            conversation.system = message.content
        elif message.role == "user":
            conversation.turns.append(Turn(message.content))
        elif message.role == "assistant" and conversation.turns and conversation.turns[-1].state == "open":
            calls = tuple(ToolCall(c.id, c.function.name, c.function.arguments) for c in message.tool_calls)
            conversation.turns[-1] = Turn(
                conversation.turns[-1].question, message.content, message.reasoning_content, calls, message.state
            )
        else:
            raise InvalidRequestError(
                f"this is no conversation of questions and answers in turn: message {number + 1} is {message.role}'s"
            )
    return conversation


_REMARKS: dict[State, str] = {
    "open": "*(no answer)*",
    "complete": "",
    "interrupted": "*(stopped here)*",
    "broken": "*(broken off here)*",
}


def to_markdown(conversation: Conversation, model: str) -> str:
    """As Markdown, to read: a heading for each question, the answers as the model wrote them."""
    parts = [f"# Conversation with {model or 'a model'}"]
    if conversation.system is not None:
        parts += ["## System prompt", conversation.system]
    for turn in conversation.turns:
        parts += ["## You", turn.question, "## Model"]
        if turn.reasoning:
            # A quotation keeps the two apart wherever the file is read.
            parts.append("\n".join(f"> {line}".rstrip() for line in turn.reasoning.strip().split("\n")))
        parts.append(turn.answer.strip())
        parts += [f"Tool call: `{call.name}({call.arguments})`" for call in turn.tool_calls]
        parts.append(_REMARKS[turn.state])
    return "\n\n".join(part for part in parts if part) + "\n"
