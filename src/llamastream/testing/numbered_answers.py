"""What a `NumberedServer` says: pure functions from a request to the tokens of its answer.

The text of an answer is "0 1 2 … ", its reasoning "r0 r1 r2 … ", and the arguments of its tool call `{"n":[0,1,2…]}`.
"""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from msgspec import Struct

Field = Literal["content", "reasoning_content", "arguments"]
Body = dict[str, Any]


class RequestError(Exception):
    """The request cannot be answered: a 400 with this message."""


class Style(Struct, frozen=True):
    """How a server answers: what `NumberedServer` was given."""

    tokens: int = 50
    reasoning_tokens: int = 0
    tool_call: bool = False
    continues: bool = True
    repeats_prefix: bool = False
    diverge_at: int | None = None


class Token(NamedTuple):
    """One token of an answer: the field it belongs to, and its text."""

    field: Field
    text: str


class Answer(Struct, frozen=True):
    """A whole answer, planned before it is given.

    Attributes:
        tokens: those to generate. content, reasoning: what the message had already, when it is continued.
        echo: repeat that in the stream. prompt_tokens: tokens of the prompt, the continued message included.
        number: the how-manieth generation of this server.
    """

    tokens: list[Token]
    finish_reason: str
    prompt_tokens: int
    number: int
    chat: bool = True
    model: str = "numbered"
    content: str = ""
    reasoning: str = ""
    echo: bool = False
    tool: str = "count"
    with_usage: bool = False


def plan_chat(body: Body, style: Style, number: int) -> Answer:
    """The answer to /v1/chat/completions."""
    messages = messages_of(body)
    mode = continuation(body, style)
    content = reasoning = ""
    tokens = _reasoning(style)
    if mode:
        content, reasoning = text_of(messages[-1]), messages[-1].get("reasoning_content") or ""
        tokens = _rest(tokens, reasoning, "r") if mode == "reasoning_content" else []
        content = "" if mode == "reasoning_content" else content
    tokens += _arguments(style, number) if style.tool_call else _rest(_numbers(style, number), content)
    tokens, cut = limited(tokens, body)
    finish = "length" if cut else "tool_calls" if style.tool_call else "stop"
    tools = body.get("tools") or [{"function": {"name": "count"}}]
    return Answer(
        tokens,
        finish,
        len(words(template(body, style))),
        number,
        model=body.get("model") or "numbered",
        content=content,
        reasoning=reasoning,
        echo=style.repeats_prefix and bool(mode),
        tool=tools[0]["function"]["name"],
        with_usage=bool((body.get("stream_options") or {}).get("include_usage")),
    )


def plan_completion(body: Body, style: Style, number: int) -> Answer:
    """The answer to /v1/completions: a prompt that ends with "0 1 2 … k " is continued there."""
    prompt = body.get("prompt")
    if not isinstance(prompt, str):
        raise RequestError("'prompt' is required, and NumberedServer takes text only")
    tokens, cut = limited(_rest(_numbers(style, number), answer_so_far(prompt)), body)
    finish = "length" if cut else "stop"
    model = body.get("model") or "numbered"
    return Answer(tokens, finish, len(words(prompt)), number, chat=False, model=model, with_usage=True)


def answer_so_far(prompt: str) -> str:
    """The longest end of a prompt that is a run from 0: "0 1 2 … k ". Each number has a space behind it."""
    last = re.search(r"(?<!\d)(\d+) $", prompt)
    if last is None:
        return ""
    run = "".join(f"{number} " for number in range(int(last[1]) + 1)) if int(last[1]) < len(prompt) else ""
    before = prompt[: len(prompt) - len(run)]
    return run if run and prompt.endswith(run) and not before[-1:].isalnum() else ""


def messages_of(body: Body) -> list[Body]:
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise RequestError("'messages' is required")
    return messages


def text_of(message: Body) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def continuation(body: Body, style: Style) -> Literal["", "content", "reasoning_content"]:
    """Which part of the final message the request continues; "" for none. As llama-server decides it."""
    wanted = body.get("continue_final_message", False)
    final = messages_of(body)[-1]
    if wanted not in (True, False, "content", "reasoning_content"):
        raise RequestError('Invalid continue_final_message: expected a boolean, "content" or "reasoning_content"')
    if wanted and not style.continues:
        raise RequestError("Unknown parameter: continue_final_message")
    if wanted and body.get("add_generation_prompt", True):
        raise RequestError("Cannot set both add_generation_prompt and continue_final_message to true.")
    if final.get("role") != "assistant" or not (wanted or style.continues):
        return ""
    if final.get("tool_calls"):
        if wanted:
            raise RequestError("Cannot continue an assistant message that contains tool calls.")
        return ""
    if isinstance(wanted, str):
        return "reasoning_content" if wanted == "reasoning_content" else "content"
    return "reasoning_content" if final.get("reasoning_content") and not text_of(final) else "content"


def _numbers(style: Style, number: int) -> list[Token]:
    diverges = style.diverge_at if number > 1 else None
    return [Token("content", f"x{k} " if k == diverges else f"{k} ") for k in range(style.tokens)]


def _reasoning(style: Style) -> list[Token]:
    return [Token("reasoning_content", f"r{k} ") for k in range(style.reasoning_tokens)]


def _arguments(style: Style, number: int) -> list[Token]:
    diverges = style.diverge_at if number > 1 else None
    numbers = [-k - 1 if k == diverges else k for k in range(style.tokens)]
    return [Token("arguments", f",{k}" if place else str(k)) for place, k in enumerate(numbers)]


def _rest(tokens: list[Token], said: str, letter: str = "") -> list[Token]:
    """What is still to say: where the text stopped, even within a token; else after its last number."""
    whole = "".join(token.text for token in tokens)
    if whole.startswith(said):
        rest = []
        skip = len(said)
        for token in tokens:
            if skip < len(token.text):
                rest.append(token._replace(text=token.text[skip:]))
            skip = max(0, skip - len(token.text))
        return rest
    numbers = re.findall(rf"{letter}(\d+)\b", said)
    return tokens[int(numbers[-1]) + 1 :] if numbers else tokens


def limited(tokens: list[Token], body: Body) -> tuple[list[Token], bool]:
    """The tokens that the request allows, and whether that cuts the answer short. 0 generates one, as llama-server."""
    given = [body[name] for name in ("max_tokens", "max_completion_tokens", "n_predict") if body.get(name) is not None]
    limit = given[0] if given else -1
    limit = len(tokens) if limit < 0 else max(1, limit)
    return tokens[:limit], limit < len(tokens)


def words(text: str) -> list[str]:
    """The tokens of a text."""
    return text.split()


def template(body: Body, style: Style) -> str:
    """The prompt that a chat becomes."""
    messages = messages_of(body)
    mode = continuation(body, style)
    lines = [f"<|{message.get('role')}|>\n{text_of(message)}\n" for message in (messages[:-1] if mode else messages)]
    if mode == "content":
        lines.append(f"<|assistant|>\n{text_of(messages[-1])}")
    elif mode:
        lines.append(f"<|assistant|>\n<think>\n{messages[-1].get('reasoning_content')}")
    elif body.get("add_generation_prompt", True):
        lines.append("<|assistant|>\n")
    return "".join(lines)
