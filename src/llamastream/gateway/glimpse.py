"""A look at answers that are passed on unread: token counts and how they ended, for logs and metrics.

Whole answers and the last events of streams say it, each API in its own words.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

TAIL = 64 * 1024
"""Bytes at the end of a stream in which its figures are looked for."""
LARGEST = 4 * 1024 * 1024
"""Bytes of a whole answer that is read for its figures."""

_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "tool_use": "tool_calls",
    "eos": "stop",
    "word": "stop",
    "limit": "length",
    "completed": "stop",
    "incomplete": "length",
}


class Figures(Struct, frozen=True):
    """What an answer said of itself; `finish_reason` in the words of `types.FinishReason`, "" if it does not say."""

    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    finish_reason: str = ""
    prompt_ms: float | None = None


class Glimpse:
    """Follows one answer. `stream`: it consists of events."""

    def __init__(self) -> None:
        self.stream = False
        self._body = bytearray()
        self._lost = False
        self._found: Figures | None = None

    def take(self, body: bytes) -> None:
        """The next piece of the body."""
        if self._lost:
            return
        self._found = None
        self._body += body
        if self.stream:
            if len(self._body) > 2 * TAIL:
                del self._body[:-TAIL]
        elif len(self._body) > LARGEST:
            self._lost = True
            self._body.clear()

    def figures(self) -> Figures:
        """What it said."""
        if self._found is None:
            self._found = self._look()
        return self._found

    def _look(self) -> Figures:
        if self._lost:
            return Figures()
        if not self.stream:
            return figures_of(_decoded(bytes(self._body)))
        found = Figures()
        for block in bytes(self._body).split(b"\n\n"):
            for line in block.splitlines():
                if line.startswith(b"data:"):
                    found = _joined(found, figures_of(_decoded(line[5:])))
        return found


def _decoded(text: bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _joined(earlier: Figures, later: Figures) -> Figures:
    """What the later one says, else the earlier."""
    return Figures(
        later.prompt_tokens if later.prompt_tokens is not None else earlier.prompt_tokens,
        later.cached_tokens if later.cached_tokens is not None else earlier.cached_tokens,
        later.completion_tokens if later.completion_tokens is not None else earlier.completion_tokens,
        later.finish_reason or earlier.finish_reason,
        later.prompt_ms if later.prompt_ms is not None else earlier.prompt_ms,
    )


def figures_of(data: Any) -> Figures:
    """What a JSON object says: an answer or an event of any of the APIs."""
    if not isinstance(data, dict):
        return Figures()
    if isinstance(data.get("response"), dict):  # of /v1/responses
        data = data["response"]
    elif isinstance(data.get("message"), dict):  # of /v1/messages
        data = data["message"]
    usage = _dict(data.get("usage"))
    timings = _dict(data.get("timings"))
    details = _dict(usage.get("prompt_tokens_details")) or _dict(usage.get("input_tokens_details"))
    cached = _count(details.get("cached_tokens"), usage.get("cache_read_input_tokens"), timings.get("cache_n"))
    prompt = _count(usage.get("prompt_tokens"), data.get("tokens_evaluated"))
    if prompt is None and timings:
        prompt = (_count(timings.get("prompt_n")) or 0) + (_count(timings.get("cache_n")) or 0)
    if prompt is None and (given := _count(usage.get("input_tokens"))) is not None:
        # Anthropic counts what came from the cache apart
        prompt = given + (_count(usage.get("cache_read_input_tokens")) or 0)
    return Figures(
        prompt,
        cached,
        _count(
            usage.get("completion_tokens"),
            usage.get("output_tokens"),
            data.get("tokens_predicted") if data.get("stop") else None,
        ),
        _reason(data),
        _milliseconds(timings.get("prompt_ms")),
    )


def _milliseconds(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 else None


def _reason(data: dict[str, Any]) -> str:
    choices = data.get("choices")
    first = _dict(choices[0]) if isinstance(choices, list) and choices else {}
    delta = _dict(data.get("delta"))
    said = [
        first.get("finish_reason"),
        data.get("stop_reason"),
        delta.get("stop_reason"),
        data.get("stop_type"),
        data.get("status") if data.get("object") == "response" else None,
    ]
    for reason in said:
        if isinstance(reason, str) and reason not in ("none", "in_progress"):
            return _REASONS.get(reason, reason)
    return ""


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(*values: Any) -> int | None:
    return next((value for value in values if type(value) is int and value >= 0), None)
