"""Several models behind one gateway: who asks for one gets that one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from wires import ask

from fleets import Watched, running
from gateways import Running, serving
from llamastream.backends import Backend
from llamastream.engine import Engine, EngineOptions
from llamastream.fleet import Fleet, Pool
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.lanes import UnknownModelError, lane_names, lane_of
from polling import wait_for

WHO = [{"role": "user", "content": "Who are you?"}]


def backend(*models: str) -> Backend:
    return Backend(id="-".join(models) or "none", url="http://127.0.0.1:1", models=models)


@pytest.mark.parametrize(
    ("servers", "asked", "lane"),
    [
        ([()], None, None),  # nobody has looked yet
        ([()], "any", None),
        ([("a",)], None, "a"),
        ([("a",)], "gpt-4o", "a"),  # as llama-server does
        ([("a",), ("a",), ()], "gpt-4o", "a"),
        ([("a", "a-alias")], "a-alias", "a"),
        ([("a", "a-alias")], "gpt-4o", "a"),
        ([("a",), ("b",)], "b", "b"),
    ],
)
def test_the_lane_of_a_request(servers: list[tuple[str, ...]], asked: str | None, lane: str | None) -> None:
    assert lane_of(asked, lane_names(backend(*models) for models in servers), strict=False) == lane


@pytest.mark.parametrize(
    ("servers", "asked", "strict", "words"),
    [
        ([("a",), ("b",)], "c", False, "'c' does not exist; there are: a, b"),
        ([("a",), ("b",)], None, False, "name a model; there are: a, b"),
        ([("a",), ("b",)], "", False, "name a model"),
        ([("a",)], "c", True, "'c' does not exist; there are: a"),
        ([()], "c", True, "there are: none yet"),
    ],
)
def test_a_request_without_a_lane(servers: list[tuple[str, ...]], asked: str | None, strict: bool, words: str) -> None:
    with pytest.raises(UnknownModelError, match=words):
        lane_of(asked, lane_names(backend(*models) for models in servers), strict=strict)


@pytest.fixture(scope="module")
def two_models() -> Iterator[tuple[Watched, Running]]:
    pools = [
        Pool(name="first", options=EngineOptions(alias="first", parallel=1)),
        Pool(name="second", options=EngineOptions(alias="second", parallel=1)),
    ]
    with running(pools) as watched, serving(watched.fleet) as gateway:
        yield watched, gateway


@pytest.mark.parametrize("model", ["first", "second"])
@pytest.mark.parametrize("stream", [True, False])
def test_the_model_that_is_named_answers(two_models: tuple[Watched, Running], model: str, stream: bool) -> None:
    _, gateway = two_models
    for _ in range(3):
        answer = ask(gateway.url, body={"messages": WHO, "model": model, "stream": stream})
        assert answer.status == 200
        assert (answer.events[0] if stream else answer.json)["model"] == model
        assert b"x-llamastream-instance: %s-0" % model.encode() in answer.head.lower()


def test_a_model_that_does_not_exist_is_told_with_those_that_do(two_models: tuple[Watched, Running]) -> None:
    _, gateway = two_models
    answer = ask(gateway.url, body={"messages": WHO, "model": "gpt-4o"})
    assert answer.status == 404
    assert answer.json["error"]["message"] == "the model 'gpt-4o' does not exist; there are: first, second"
    assert ask(gateway.url, body={"messages": WHO}).status == 400
    assert ask(gateway.url, "POST", "/tokenize", body={"content": "x", "model": "third"}).status == 404
    assert ask(gateway.url, "POST", "/tokenize", body={"content": "x", "model": "second"}).json["tokens"]


def test_a_model_whose_server_is_down_is_waited_for(two_models: tuple[Watched, Running]) -> None:
    watched, gateway = two_models
    before = watched.fleet.snapshot()[1]
    os.kill(before.pid, signal.SIGKILL)
    answer = ask(gateway.url, body={"messages": WHO, "model": "second", "stream": True})
    assert answer.status == 200
    assert answer.events[0]["model"] == "second"
    watched.wait_state(1, "ready", before.generation + 1)


def test_the_only_model_answers_to_any_name_unless_names_are_strict(engine: Engine) -> None:
    source = Upstreams([engine.url])
    with serving(source) as gateway:
        wait_for(lambda: bool(source.snapshot()[0].models))
        assert ask(gateway.url, body={"messages": WHO, "model": "gpt-4o"}).status == 200
    with serving(source, GatewaySettings(strict_model=True)) as gateway:
        refused = ask(gateway.url, body={"messages": WHO, "model": "gpt-4o"})
        assert (refused.status, refused.json["error"]["message"]) == (
            404,
            "the model 'gpt-4o' does not exist; there are: demo",
        )
        assert ask(gateway.url, body={"messages": WHO, "model": "demo"}).status == 200
        assert ask(gateway.url, body={"messages": WHO}).status == 200


def test_before_there_is_any_server_it_is_said() -> None:
    with serving(Fleet()) as gateway:
        for request in ({"messages": WHO}, {"messages": WHO, "model": "demo", "stream": True}):
            answer = ask(gateway.url, body=request)
            assert (answer.status, answer.json["error"]["code"]) == (503, 503)
        assert ask(gateway.url, "GET", "/props").status == 503
