"""Answers that are kept: which of them are worth it, in what form, and how one is given again."""

from __future__ import annotations

import re
import secrets
import string
import time
from collections import OrderedDict
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.gateway.glimpse import Glimpse
from llamastream.gateway.relay import HEADERS

PROPER = frozenset({"stop", "length", "tool_calls"})
"""How an answer ends that is whole."""

_DONE = b"data: [DONE]"
_ID = re.compile(rb'"id":"(chatcmpl-)([A-Za-z0-9]+)"')
_CREATED = re.compile(rb'"created":(\d{10})\b')
_LETTERS = string.ascii_letters + string.digits


class Answer(Struct, frozen=True):
    """One answer, as the server sent it, comments left out.

    Attributes:
        stream: it consists of events. body: all of it. tokens: that were generated for it. stored: when, in seconds
            since the epoch.
    """

    stream: bool
    body: bytes
    tokens: int
    stored: float

    def age(self, now: float) -> float:
        """Seconds since it was stored."""
        return max(0.0, now - self.stored)


def answer_of(headers: list[tuple[bytes, bytes]] | tuple[tuple[bytes, bytes], ...], body: bytes) -> Answer | None:
    """A response of the status 200 as something to keep; None: it did not end as it should."""
    kind = dict(headers).get(b"content-type", b"")
    stream = kind.startswith(b"text/event-stream")
    if stream:
        blocks = [block for block in body.split(b"\n\n") if block and not block.startswith(b":")]
        if not blocks or not body.endswith(b"\n\n"):
            return None
        last = blocks[-1]
        if last != _DONE and _decoded(last).get("stop") is not True:  # the native endpoint has no [DONE]
            return None
        body = b"\n\n".join(blocks) + b"\n\n"
    elif not kind.startswith(b"application/json"):
        return None
    glimpse = Glimpse()
    glimpse.stream = stream
    glimpse.take(body)
    figures = glimpse.figures()
    if figures.finish_reason not in PROPER:
        return None
    tokens = figures.completion_tokens
    return Answer(stream, body, _tokens(body) if tokens is None else tokens, time.time())


def _decoded(block: bytes) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(block.removeprefix(b"data: "))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _tokens(body: bytes) -> int:
    """From the timings, which streams have where nobody asked for usage."""
    for block in reversed(body.split(b"\n\n")):
        timings = _decoded(block).get("timings")
        if isinstance(timings, dict) and type(count := timings.get("predicted_n")) is int:
            return count
    return 0


def replayed(answer: Answer, now: float) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Headers and body with which an answer is given again: as it was, but for its id and its time, which are new."""
    body = answer.body
    if found := _ID.search(body):
        # Inside of text, quotes are escaped: this can only be a field.
        fresh = "".join(secrets.choice(_LETTERS) for _ in range(len(found[2]))).encode()
        body = body.replace(found[0], b'"id":"%b%b"' % (found[1], fresh))
    if found := _CREATED.search(body):
        body = body.replace(found[0], b'"created":%d' % now)
    headers = [*HEADERS] if answer.stream else [(b"content-type", b"application/json; charset=utf-8")]
    if not answer.stream:
        headers.append((b"content-length", str(len(body)).encode()))
    headers.append((b"age", str(int(answer.age(now))).encode()))
    return headers, body


class AnswerMemory:
    """Answers in memory: so many bytes, those that were used last. `used`: bytes."""

    def __init__(self, limit: int) -> None:
        self.used = 0
        self._limit = limit
        self._answers: OrderedDict[bytes, Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: bytes) -> Answer | None:
        """What there is under this key."""
        answer = self._answers.get(key)
        if answer is not None:
            self._answers.move_to_end(key)
        return answer

    def put(self, key: bytes, answer: Answer) -> None:
        """Keep it, in the place of what was there; those that were not used for longest make room. One that is larger
        than an eighth of all is not kept: it would push out too many."""
        self.remove(key)
        if len(answer.body) > self._limit // 8:
            return
        self._answers[key] = answer
        self.used += _size(answer)
        while self.used > self._limit:
            _, oldest = self._answers.popitem(last=False)
            self.used -= _size(oldest)

    def remove(self, key: bytes) -> None:
        """Forget it, if it is there."""
        gone = self._answers.pop(key, None)
        if gone is not None:
            self.used -= _size(gone)


def _size(answer: Answer) -> int:
    return len(answer.body) + 512
