"""What of a request's body routing compares with other prompts: hashes of its parts, in the order in which a server
reads them. Nothing is rendered, and nothing of the text is kept."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from llamastream.policy.prefixes import NO_PROMPT, Prompt, chained

PIECE = 1024
"""Characters of a part at most: what is longer is several."""
MOST = 512
"""Parts that are told apart; what follows is one."""
AROUND = 16
"""Characters that stand for a message's role and marks."""
OPAQUE = 2048
"""Characters that stand for a picture or anything else that is no text."""
IDS = 256
"""Token ids of a part."""

Part = tuple[object, int]


def prompt_of(body: dict[str, Any], conversation: str | None = None) -> Prompt:
    """The prompt of a request to any of the endpoints.

    Args:
        conversation: what the client calls its conversation, if it says; else the first question stands for it.
    """
    parts: list[Part] = []
    rest, question = 0, 0
    for part in _parts(body):
        if part is None:
            question = question or len(parts)
        elif len(parts) < MOST:
            parts.append(part)
        else:
            rest += part[1]
    if not parts:
        return NO_PROMPT
    if rest:
        parts.append((object(), rest))
    chain, ends = chained(parts)
    user = body.get("user")
    name = conversation or (user if isinstance(user, str) else None)
    session = hash(name) if name else chain[min(question, len(chain) - 1)]
    return Prompt(chain, ends, session)


def _parts(body: dict[str, Any]) -> Iterator[Part | None]:
    """The parts, with None before the first question."""
    if tools := body.get("tools"):
        encoded = msgspec.json.encode(tools)
        yield encoded, len(encoded)
    for name in ("system", "instructions"):  # of /v1/messages and /v1/responses
        if content := body.get(name):
            yield from _content(name, content)
    messages = body.get("messages") or body.get("input")
    if isinstance(messages, str):
        yield from _text("", messages)
    elif isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                if message.get("role") == "user":
                    yield None
                yield from _message(message)
    prompt = body.get("prompt")
    if isinstance(prompt, str):
        yield from _text("", prompt)
    elif isinstance(prompt, list) and prompt and all(type(token) is int for token in prompt):
        for at in range(0, len(prompt), IDS):
            ids = tuple(prompt[at : at + IDS])
            yield ids, 4 * len(ids)


def _message(message: dict[str, Any]) -> Iterator[Part]:
    role = message.get("role")
    head: object = role if isinstance(role, str) else ""
    content = message.get("content")
    if len(message) > 2 or "content" not in message:
        others = msgspec.json.encode({name: value for name, value in message.items() if name != "content"})
        head = others
        yield others, len(others)
    yield from _content(head, content)


def _content(head: object, content: Any) -> Iterator[Part]:
    if isinstance(content, str):
        yield from _text(head, content)
    elif isinstance(content, list):
        for each in content:
            text = each.get("text") if isinstance(each, dict) else None
            if isinstance(text, str):
                yield from _text(head, text)
            else:
                yield (head, msgspec.json.encode(each)), OPAQUE


def _text(head: object, text: str) -> Iterator[Part]:
    if len(text) <= PIECE:
        yield (head, text), len(text) + AROUND
        return
    for at in range(0, len(text), PIECE):
        piece = text[at : at + PIECE]
        yield (head, piece), len(piece)
