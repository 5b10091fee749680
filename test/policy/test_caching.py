"""Which requests are deterministic, which are the same, and what Cache-Control asks for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llamastream.policy.caching import CHAT, COMPLETION, NATIVE, Directives, deterministic, directives, request_key

ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "x"}], "temperature": 0}


def key(body: dict[str, Any], path: str = CHAT, identity: str = "m", owner: str = "") -> bytes:
    return request_key(path, body, identity=identity, owner=owner)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"temperature": 0}, True),
        ({"temperature": 0.0, "top_p": 0.5}, True),
        ({"seed": 0}, True),
        ({"seed": 7, "temperature": 1.5}, True),
        ({}, False),
        ({"temperature": None}, False),
        ({"temperature": False}, False),
        ({"temperature": "0"}, False),
        ({"temperature": 0.01}, False),
        ({"top_k": 1}, False),
        ({"seed": -1}, False),
        ({"seed": 2**32 - 1}, False),
        ({"seed": True}, False),
        ({"seed": 1.0}, False),
        ({"temperature": 0, "xtc_probability": 0.5}, False),
        ({"temperature": 0, "dynatemp_range": 0.5}, False),
        ({"temperature": 0, "mirostat": 2}, False),
        ({"temperature": 0, "adaptive_target": 0.5}, False),
        ({"temperature": 0, "samplers": ["top_k"]}, False),
        ({"temperature": 0, "samplers": ["top_k"], "seed": 3}, True),
        ({"temperature": 0, "xtc_probability": 0}, True),
        ({"temperature": 0, "t_max_predict_ms": 500}, False),
        ({"seed": 3, "t_max_predict_ms": 500}, False),
        ({"temperature": 0, "t_max_predict_ms": "500"}, False),
        ({"temperature": 0, "t_max_predict_ms": -1}, True),
        ({"temperature": 0, "t_max_predict_ms": None}, True),
    ],
)
def test_only_what_draws_no_lots_or_by_a_given_seed_and_is_not_timed_is_deterministic(
    fields: dict[str, Any], expected: bool
) -> None:
    for path in (CHAT, COMPLETION, NATIVE):
        assert deterministic(path, {"prompt": "x", "messages": [], **fields}) is expected
    assert not deterministic("/v1/embeddings", {"input": "x", **fields})


def test_what_the_server_would_fetch_is_not_deterministic() -> None:
    def asked(url: Any) -> dict[str, Any]:
        return {"temperature": 0, "messages": [{"role": "user", "content": [{"type": "image_url", "image_url": url}]}]}

    assert deterministic(CHAT, asked({"url": "data:image/png;base64,AA=="}))
    assert not deterministic(CHAT, asked({"url": "https://example.org/a.png"}))
    assert not deterministic(CHAT, asked("file:///a.png"))


@pytest.mark.parametrize(
    "same",
    [
        {**ASKED, "user": "anna"},
        {**ASKED, "metadata": {"a": "b"}, "store": True},
        {**ASKED, "stream": False},
        {**ASKED, "stream_options": {"include_usage": True}},
        {**ASKED, "seed": 5},
        dict(reversed(ASKED.items())),
    ],
)
def test_what_has_no_effect_makes_no_other_request(same: dict[str, Any]) -> None:
    assert key(same) == key(ASKED)


TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {}, "b": {}}}}}]
TOOLS_TURNED = [{"type": "function", "function": {"name": "f", "parameters": {"properties": {"b": {}, "a": {}}}}}]


@pytest.mark.parametrize(
    "other",
    [
        {**ASKED, "stream": True},
        {**ASKED, "max_tokens": 5},
        {**ASKED, "model": "m"},
        {**ASKED, "n": 2},
        {**ASKED, "unknown": 1},
        {**ASKED, "tools": TOOLS},
        {**ASKED, "tools": TOOLS_TURNED},
        {**ASKED, "messages": [{"role": "user", "content": "X"}]},
        {**ASKED, "temperature": 1, "seed": 1},
        {**ASKED, "temperature": 1, "seed": 2},
    ],
)
def test_what_may_have_an_effect_makes_another_request(other: dict[str, Any]) -> None:
    assert key(other) != key(ASKED)


def test_the_order_of_a_schema_is_part_of_it() -> None:
    assert key({**ASKED, "tools": TOOLS}) != key({**ASKED, "tools": TOOLS_TURNED})


def test_model_owner_and_endpoint_are_part_of_it() -> None:
    found = {key(ASKED), key(ASKED, identity="n"), key(ASKED, owner="n"), key(ASKED, COMPLETION), key(ASKED, NATIVE)}
    assert len(found) == 5
    assert {len(each) for each in found} == {32}


def test_spelling_in_json_is_no_part_of_it() -> None:
    spelt = msgspec.json.decode(b'{"temperature":0 ,"messages":[{"role":"user","content":"\\u0078"}]}')
    assert key(spelt) == key(ASKED)


def test_the_native_endpoint_shows_the_seed_so_it_counts() -> None:
    body = {"prompt": "x", "temperature": 0}
    assert key({**body, "seed": 1}, NATIVE) != key({**body, "seed": 2}, NATIVE)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], Directives()),
        (["no-cache"], Directives(no_cache=True)),
        (["No-Store, max-age=0"], Directives(no_store=True, max_age=0.0)),
        (["max-age=60", "only-if-cached"], Directives(only_if_cached=True, max_age=60.0)),
        (['max-age="5"'], Directives(max_age=5.0)),
        (["max-age=soon"], Directives(max_age=0.0)),
        (["stale-if-error=5, no-transform"], Directives()),
    ],
)
def test_cache_control(values: list[str], expected: Directives) -> None:
    assert directives(values) == expected
