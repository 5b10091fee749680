"""Embeddings and reranking: a pool of servers for each, and generation nowhere near them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from wires import ask, chat

from fleets import running
from gateways import Running, serving
from llamastream.backends import Backend, StaticBackends
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import SettingError, UnsupportedFlagError
from llamastream.fleet import Pool
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.tasks import Doing, doing, elsewhere, task_of
from llamastream.protocol.tasks import task_questions
from llamastream.types import Task
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
POOLING = ("--pooling", "mean")  # the demo model has none of its own


def backend(name: str, *tasks: Task) -> Backend:
    return Backend(id=name, url="http://127.0.0.1:1", models=(name,), tasks=tasks)


# -- what is decided --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("route", "task"),
    [("/v1/embeddings", "embed"), ("/embedding", "embed"), ("/v1/rerank", "rerank"), ("/v1/messages", "generate")],
)
def test_what_a_route_asks_for(route: str, task: Task) -> None:
    assert task_of(route) == task


def test_a_server_gets_what_it_is_for_and_one_that_does_not_tell_gets_everything() -> None:
    every = [backend("a", "generate"), backend("b", "embed"), backend("c", "rerank"), backend("d")]
    found = {task: [each.id for each in doing(every, task)] for task in ("generate", "embed", "rerank")}
    assert found == {"generate": ["a", "d"], "embed": ["b", "d"], "rerank": ["c", "d"]}
    assert Doing(StaticBackends(("http://127.0.0.1:1",)), "embed").snapshot()[0].id == "0"
    assert elsewhere("b", every, "generate") == "the model 'b' is not one that generates text; it makes embeddings"
    assert elsewhere("b", every, "embed") is elsewhere("nobody", every, "embed") is None


@pytest.mark.parametrize(
    ("statuses", "tasks"),
    [
        ({"/v1/rerank": 501, "/v1/embeddings": 501}, ("generate",)),
        ({"/v1/rerank": 404, "/v1/embeddings": 404}, ("generate",)),  # too old to know them
        ({"/v1/rerank": 501, "/v1/embeddings": 400}, ("embed",)),
        ({"/v1/rerank": 400}, ("rerank",)),
        ({"/v1/rerank": 0}, ()),
        ({"/v1/rerank": 501, "/v1/embeddings": 401}, ()),
    ],
)
def test_what_a_server_is_for_by_what_it_refuses(statuses: dict[str, int], tasks: tuple[Task, ...]) -> None:
    questions = task_questions()
    reply: tuple[int, bytes] | None = None
    for _ in range(3):
        try:
            path, body = next(questions) if reply is None else questions.send(reply)
        except StopIteration as end:
            found = end.value
            break
        assert body == {}  # nothing to work on
        reply = statuses[path], b""
    assert found == tasks


# -- real servers -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedder() -> Iterator[Engine]:
    with launch(EngineOptions(threads=1, embedding=True, alias="vectors", extra_args=POOLING)) as running:
        yield running


@pytest.fixture
def both(engine: Engine, embedder: Engine) -> Iterator[Running]:
    source = Upstreams([embedder.url, engine.url])
    with serving(source) as gateway:
        wait_for(lambda: [each.tasks for each in source.snapshot()] == [("embed",), ("generate",)])
        yield gateway


def test_each_request_goes_to_the_servers_that_are_for_it(both: Running, embedder: Engine) -> None:
    body = {"input": ["a stream", "of tokens"], "model": "text-embedding-3-small"}
    direct = ask(embedder.url, path="/v1/embeddings", body=body).json
    for path in ("/v1/embeddings", "/embeddings", "/embedding"):
        heard = ask(both.url, path=path, body=body if path == "/v1/embeddings" else {"content": "a"})
        assert heard.status == 200, heard.body
        assert b"x-llamastream-instance: upstream-0" in heard.head
        if path == "/v1/embeddings":
            assert heard.json["data"] == direct["data"]
    for _ in range(6):
        answer = chat(both.url, STORY, temperature=0)
        assert answer.finish_reason == "stop"
        assert b"x-llamastream-instance: upstream-1" in answer.head
    tokens = [ask(both.url, path="/tokenize", body={"content": "a", "model": name}) for name in ("vectors", "demo", "")]
    assert [heard.status for heard in tokens] == [200, 200, 200]
    assert b"upstream-0" in tokens[0].head


def test_what_nobody_is_for_is_a_501_that_says_how_to_start_it(both: Running) -> None:
    heard = ask(both.url, path="/v1/rerank", body={"query": "a", "documents": ["b"]})
    assert (heard.status, heard.json["error"]["type"]) == (501, "not_supported_error")
    assert "serve --reranking --model FILE" in heard.json["error"]["message"]


@pytest.mark.parametrize("strict", [False, True])
def test_a_model_is_not_asked_for_what_it_is_not_for(engine: Engine, embedder: Engine, strict: bool) -> None:
    source = Upstreams([embedder.url, engine.url])
    with serving(source, GatewaySettings(strict_model=strict)) as gateway:
        wait_for(lambda: all(each.models for each in source.snapshot()))
        wrong = chat(gateway.url, STORY, model="vectors")
        assert (wrong.status, wrong.json["error"]["type"]) == (404, "not_found_error")
        assert "it makes embeddings" in wrong.json["error"]["message"]
        right = ask(gateway.url, path="/v1/embeddings", body={"input": "a", "model": "vectors"})
        assert right.status == 200


def test_generation_where_all_servers_are_for_embeddings(embedder: Engine) -> None:
    source = Upstreams([embedder.url])
    with serving(source) as gateway:
        wait_for(lambda: all(each.models for each in source.snapshot()))
        heard = chat(gateway.url, STORY)
        assert (heard.status, heard.json["error"]["type"]) == (501, "not_supported_error")
        assert ask(gateway.url, "GET", "/props").json["model_alias"] == "vectors"
        assert ask(gateway.url, path="/tokenize", body={"content": "a"}).status == 200


def test_pools_of_a_fleet() -> None:
    pools = [
        Pool(name="demo", options=EngineOptions(threads=1, alias="demo")),
        Pool(name="vectors", options=EngineOptions(threads=1, alias="vectors", embedding=True, extra_args=POOLING)),
        Pool(name="order", options=EngineOptions(threads=1, alias="order", reranking=True)),
    ]
    with running(pools, instances=1) as watched, serving(watched.fleet) as gateway:
        watched.wait_all_ready()
        assert [each.tasks for each in watched.fleet.snapshot()] == [("generate",), ("embed",), ("rerank",)]
        ranked = ask(gateway.url, path="/v1/rerank", body={"query": "a", "documents": ["b", "c"]})
        assert sorted(each["index"] for each in ranked.json["results"]) == [0, 1]
        assert b"x-llamastream-instance: order-0" in ranked.head
        vectors = ask(gateway.url, path="/v1/embeddings", body={"input": "a"})
        assert b"x-llamastream-instance: vectors-0" in vectors.head
        assert chat(gateway.url, STORY, temperature=0).finish_reason == "stop"
        listed: list[dict[str, Any]] = ask(gateway.url, "GET", "/v1/models").json["models"]
        kinds = {each["model"]: each["capabilities"] for each in listed}
        assert kinds == {"demo": ["completion"], "vectors": ["embedding"], "order": ["rerank"]}


def test_an_embedding_server_that_seems_stuck_is_asked_for_an_embedding() -> None:
    with launch(EngineOptions(threads=1, embedding=True, extra_args=POOLING)) as engine:
        from llamastream.fleet.questions import canary

        assert canary(engine, 5.0)
        engine.kill()
        engine.wait(10)
        assert not canary(engine, 1.0)


def test_a_server_is_for_one_of_them() -> None:
    with pytest.raises(SettingError, match="run one for each"):
        EngineOptions(embedding=True, reranking=True)


def test_a_build_that_cannot_is_refused() -> None:
    from llamastream.engine.flags import command_line
    from llamastream.engine.helptext import parse_help

    options = EngineOptions(threads=1, ctx_size=256, embedding=True)
    known = parse_help(
        "  -m, --model FNAME    model\n  --host HOST    address\n  --port PORT    port\n"
        "  -np, --parallel N    slots\n  -c, --ctx-size N    context\n  -t, --threads N    threads\n"
    )
    with pytest.raises(UnsupportedFlagError, match="embedding is on, but this llama-server has no --embeddings"):
        command_line(options, known, model="m.gguf")
