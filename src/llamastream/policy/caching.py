"""Which answers may be given again: what makes a request deterministic, what makes two the same, and what
`Cache-Control` asks for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import msgspec
from msgspec import Struct

CHAT, COMPLETION, NATIVE = "/v1/chat/completions", "/v1/completions", "/completion"
PATHS = frozenset({CHAT, COMPLETION, NATIVE})
"""Endpoints whose answers may be kept."""

FORM = 1
"""Of the keys and of what is stored under them: a change of either makes old entries unreadable, as it must."""

RANDOM_SEED = 2**32 - 1
"""llama-server's word for a seed of its own choice, besides negative ones."""

WITHOUT_EFFECT = frozenset({"user", "metadata", "store", "service_tier", "prompt_cache_key", "safety_identifier"})
"""Fields of OpenAI's API that say who asks, what for, or how to bill it: llama-server reads none of them."""


class Directives(Struct, frozen=True):
    """What a request's `Cache-Control` asks for. `max_age`: seconds, None: any."""

    no_store: bool = False
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: float | None = None


def directives(values: Iterable[str]) -> Directives:
    """Read the header's values. What is unknown is ignored, as HTTP wants it; a number that is none means 0."""
    words: dict[str, str] = {}
    for value in values:
        for word in value.split(","):
            name, _, argument = word.strip().lower().partition("=")
            words[name] = argument.strip('" ')
    age = words.get("max-age")
    return Directives(
        "no-store" in words,
        "no-cache" in words,
        "only-if-cached" in words,
        None if age is None else float(age) if age.isascii() and age.isdigit() else 0.0,
    )


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _greedy(body: dict[str, Any]) -> bool:
    """At temperature 0 the likeliest token is taken, unless the request brings in a sampler that draws lots all the
    same, or leaves the temperature out of the chain."""
    if _number(body.get("temperature")) != 0:
        return False
    lots = ("xtc_probability", "dynatemp_range", "mirostat")
    return (
        body.get("samplers") is None
        and body.get("sampler_seq") is None
        and body.get("adaptive_target") is None
        and all(_number(body.get(name, 0)) == 0 for name in lots)
    )


def _seeded(body: dict[str, Any]) -> bool:
    seed = body.get("seed")
    return type(seed) is int and 0 <= seed < RANDOM_SEED


def _timed(body: dict[str, Any]) -> bool:
    """Whether time cuts the answer off: where, depends on how busy the server is."""
    limit = body.get("t_max_predict_ms")
    return limit is not None and ((number := _number(limit)) is None or number > 0)


def _refers_elsewhere(value: Any) -> bool:
    """Whether the server would fetch something (a picture, say), which may be another one next time."""
    if isinstance(value, list):
        return any(map(_refers_elsewhere, value))
    if not isinstance(value, dict):
        return False
    for name, inner in value.items():
        if name in ("url", "image_url") and isinstance(inner, str) and not inner.startswith("data:"):
            return True
        if _refers_elsewhere(inner):
            return True
    return False


def deterministic(path: str, body: dict[str, Any]) -> bool:
    """Whether the same request gets the same answer: at temperature 0, or with a seed that its client chose. (A seed
    that this library chose for its own purposes comes with `Cache-Control: no-store`.)"""
    drawn = not (_greedy(body) or _seeded(body))
    return path in PATHS and not (drawn or _timed(body) or _refers_elsewhere(body.get("messages")))


def request_key(path: str, body: dict[str, Any], *, identity: str, owner: str) -> bytes:
    """The same for requests that may have the same answer, and for no others: 32 bytes.

    The order of fields matters nowhere but inside of messages, tools and schemas, where it becomes part of the prompt
    or of a grammar. Whole answers and streams are different things: a stream also says where its tokens ended.

    Args:
        identity: of the model that runs, see `gateway.identity`. owner: whose it is; "" for everybody's.
    """
    left_out = set(WITHOUT_EFFECT)
    if path != NATIVE and _greedy(body):
        left_out.add("seed")  # nothing is drawn; the native endpoint shows it in its answer
    if body.get("stream") is not True:
        left_out |= {"stream", "stream_options"}
    fields = sorted((name, value) for name, value in body.items() if name not in left_out)
    return hashlib.sha256(msgspec.json.encode([FORM, path, identity, owner, fields])).digest()
