"""What a `NumberedServer` says about itself: slots, properties, tokens, streams, errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from llamastream.testing.numbered_answers import words
from llamastream.testing.numbered_generation import Generation

ERROR_TYPES = {
    400: "invalid_request_error",
    404: "not_found_error",
    500: "server_error",
    503: "unavailable_error",
}
STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\nServer: llama.cpp\r\nX-Accel-Buffering: no\r\nContent-Type: text/event-stream\r\n"
    "Transfer-Encoding: chunked\r\n"
)


def error_of(code: int, message: str) -> dict[str, Any]:
    """The body of an error."""
    return {"error": {"code": code, "message": message, "type": ERROR_TYPES[code]}}


def props(slots: int, context: int) -> dict[str, Any]:
    """GET /props."""
    return {
        "default_generation_settings": {"params": {}, "n_ctx": context},
        "total_slots": slots,
        "model_alias": "numbered",
        "model_path": "numbered",
        "modalities": {"vision": False, "audio": False},
        "chat_template": "{% for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor %}",
        "build_info": "numbered",
        "is_sleeping": False,
    }


def slot_states(slots: int, context: int, live: Sequence[Generation]) -> list[dict[str, Any]]:
    """GET /slots."""
    states: list[dict[str, Any]] = []
    for slot in range(slots):
        state: dict[str, Any] = {"id": slot, "n_ctx": context, "speculative": False, "is_processing": False}
        for generation in live:
            if generation.slot == slot:
                remain = len(generation.answer.tokens) - generation.decoded
                state |= {
                    "is_processing": True,
                    "id_task": generation.answer.number,
                    "n_prompt_tokens": generation.answer.prompt_tokens,
                    "next_token": [{"n_decoded": generation.decoded, "n_remain": remain, "has_next_token": True}],
                }
        states.append(state)
    return states


def lookup(wanted: Sequence[str], conversations: Mapping[str, Generation]) -> list[dict[str, Any]]:
    """POST /v1/streams/lookup."""
    return [
        {
            "conversation_id": conversation,
            "is_done": conversations[conversation].done,
            "total_bytes": len(conversations[conversation].body),
            "started_at": conversations[conversation].started_at,
            "completed_at": conversations[conversation].completed_at,
        }
        for conversation in wanted
        if conversation in conversations
    ]


class Vocabulary:
    """One token for each word. A number is its own id; other words get one when they first come."""

    FIRST = 1_000_000

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}

    def ids(self, text: str) -> list[int]:
        return [
            int(word)
            if word.isdecimal() and str(int(word)) == word and int(word) < self.FIRST
            else self._ids.setdefault(word, self.FIRST + len(self._ids))
            for word in words(text)
        ]

    def text(self, ids: Sequence[int]) -> str:
        """The words, with a space behind each: "0 1 2 " comes back as it was."""
        known = {number: word for word, number in self._ids.items()}
        return "".join(f"{known.get(number, number)} " for number in ids)
