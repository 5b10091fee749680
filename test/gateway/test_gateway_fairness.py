"""Fairness and routing on real servers: who waits for whom, what keys may use, and where requests go."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
from wires import Heard, ask, dial, hear, request_bytes

from fleets import Watched, running
from gateways import Running, serving
from llamastream.engine import Engine, EngineOptions
from llamastream.errors import SettingError
from llamastream.events import RequestServed
from llamastream.gateway import GatewaySettings, Upstreams, relay
from llamastream.gateway.keys import parse_keys
from llamastream.gateway.prompts import prompt_of
from llamastream.observe.metrics import Metrics
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
GREEDY, MODEST = "sk-greedy-0123456789", "sk-modest-0123456789"
KEYS = f"greedy:inference:{GREEDY} modest:inference:{MODEST}"
LONG = {"messages": STORY, "stream": True, "temperature": 0, "ignore_eos": True}


def bearer(key: str) -> dict[str, Any]:
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def narrow() -> Iterator[Watched]:
    """Two real servers with one slot each."""
    with running(EngineOptions(parallel=1, threads=1), instances=2, wedge_after=30.0) as watched:
        yield watched


@pytest.fixture(scope="module")
def single() -> Iterator[Watched]:
    with running(EngineOptions(parallel=1, threads=1), instances=1, wedge_after=30.0) as watched:
        yield watched


def ready(gateway: Running) -> None:
    wait_for(lambda: all(backend.models for backend in gateway.gateway.source.snapshot()))


def open_stream(url: str, stack: ExitStack, tokens: int = 4000, **headers: Any) -> socket.socket:
    """A stream that has begun, and goes on for long."""
    connection = stack.enter_context(dial(url))
    connection.sendall(request_bytes("POST", "/v1/chat/completions", {**LONG, "max_tokens": tokens}, **headers))
    return connection


def record_of(gateway: Running, name: str) -> RequestServed:
    """What became of a request; that is told a moment after its answer."""

    def found() -> list[RequestServed]:
        return [each for each in gateway.served if each.request_id == name]

    wait_for(lambda: bool(found()))
    return found()[0]


# -- fairness ---------------------------------------------------------------------------------------------------------


def test_a_key_with_a_thousand_requests_in_line_delays_another_by_one_service_time(single: Watched) -> None:
    settings = GatewaySettings(api_keys=KEYS, queue_limit=2000)
    body = {"messages": STORY, "max_tokens": 60, "temperature": 0, "ignore_eos": True}
    with serving(single.fleet, settings) as gateway, ExitStack() as stack:
        for _ in range(1001):
            connection = stack.enter_context(dial(gateway.url))
            connection.sendall(request_bytes("POST", "/v1/chat/completions", body, **bearer(GREEDY)))
        wait_for(lambda: gateway.gateway.lanes.waiting >= 900)
        for number in range(3):
            name = f"modest-{number}"
            assert ask(gateway.url, body=body, **bearer(MODEST), X_Request_Id=name).status == 200
            modest = record_of(gateway, name)
            greedy = [each for each in gateway.served if each.key == "greedy" and each.status == 200]
            services = sorted(each.duration - (each.queue_wait or 0) for each in greedy)
            assert gateway.gateway.lanes.waiting > 500, "the others still wait"
            assert modest.queue_wait is not None
            # one service time, and a moment for the machine, which 1,000 connections keep busy
            assert modest.queue_wait <= services[-1] + 0.05, (modest.queue_wait, services[-3:])
        stack.close()
        wait_for(lambda: gateway.gateway.lanes.waiting == gateway.gateway.lanes.active == 0)


def test_a_lower_priority_waits_and_a_client_can_only_lower_its_own(single: Watched) -> None:
    settings = GatewaySettings(api_keys=KEYS)
    body = {"messages": STORY, "max_tokens": 20, "temperature": 0, "ignore_eos": True}
    with serving(single.fleet, settings) as gateway, ExitStack() as stack:
        holder = open_stream(gateway.url, stack, **bearer(GREEDY))
        hear(holder, lambda raw: raw.count(b"data: ") > 3)
        order: list[str] = []
        with ThreadPoolExecutor(4) as pool:

            def wait_in_line(priority: str) -> Heard:
                heard = ask(gateway.url, body=body, **bearer(MODEST), X_Priority=priority)
                order.append(priority)
                return heard

            first = pool.submit(wait_in_line, "low")
            wait_for(lambda: gateway.gateway.lanes.waiting == 1)
            others = [pool.submit(wait_in_line, "high")]
            wait_for(lambda: gateway.gateway.lanes.waiting == 2)
            holder.close()
            assert all(each.result().status == 200 for each in [first, *others])
        assert order == ["high", "low"]
        wrong = ask(gateway.url, body=body, **bearer(MODEST), X_Priority="urgent")
        assert wrong.status == 400
        assert "allowed: high, normal, low" in wrong.json["error"]["message"]


# -- limits of keys ---------------------------------------------------------------------------------------------------


def test_requests_and_tokens_a_minute_and_requests_at_once(engine: Engine, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text(
        f"few:inference:{GREEDY} requests_per_minute=2\n"
        f"tokens:inference:{MODEST} tokens_per_minute=100 weight=2.5 priority=low\n"
        "one:inference:sk-at-once-0123456789 requests_at_once=1 requests_per_minute=0\n"
    )
    keys.chmod(0o600)
    settings = GatewaySettings(keys_file=str(keys), requests_per_minute=1000)
    body = {"messages": STORY, "max_tokens": 40, "temperature": 0, "ignore_eos": True}
    metrics = Metrics()
    with serving(Upstreams([engine.url]), settings, metrics=metrics) as gateway:
        ready(gateway)
        left = [ask(gateway.url, body=body, **bearer(GREEDY)) for _ in range(3)]
        assert [each.status for each in left] == [200, 200, 429]
        head = left[0].head.lower()
        assert b"x-ratelimit-limit-requests: 2" in head
        assert b"x-ratelimit-remaining-requests: 1" in head
        assert b"x-ratelimit-reset-requests: " in head
        assert b"retry-after: " in left[2].head.lower()
        assert "(requests_per_minute)" in left[2].json["error"]["message"]
        assert left[2].json["error"]["type"] == "rate_limit_error"

        answers = [ask(gateway.url, body=body, **bearer(MODEST)) for _ in range(3)]
        assert answers[0].status == 200
        assert answers[-1].status == 429
        assert "(tokens_per_minute)" in answers[-1].json["error"]["message"]
        assert b"x-ratelimit-limit-tokens: 100" in answers[0].head.lower()
        assert b"x-ratelimit-limit-requests: 1000" in answers[0].head.lower()  # of all keys

        with ExitStack() as stack:
            key = bearer("sk-at-once-0123456789")
            holder = open_stream(gateway.url, stack, **key)
            begun = hear(holder, lambda raw: raw.count(b"data: ") > 3)
            assert b"x-ratelimit-limit-requests" not in begun.head.lower()
            assert "(requests_at_once)" in ask(gateway.url, body=body, **key).json["error"]["message"]
        wait_for(lambda: gateway.gateway.lanes.active == 0)
        assert ask(gateway.url, body=body, **key).status == 200
        samples = {(each.name, each.labels): each.value for each in metrics.scraped()}
    assert samples["rate_limited_requests", ("requests_per_minute",)] == 1
    assert samples["rate_limited_requests", ("requests_at_once",)] == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"a:inference:{GREEDY} wieght=2", "weight="),
        (f"a:inference:{GREEDY} weight=0", "weight is not allowed"),
        (f"a:inference:{GREEDY} priority=urgent", "priority is not allowed"),
        (f"a:inference:{GREEDY} weight=1 weight=2", "each once"),
    ],
)
def test_what_a_key_may_use_is_checked(line: str, says: str) -> None:
    with pytest.raises(SettingError, match=says) as raised:
        parse_keys([line], "keys.txt")
    assert GREEDY not in str(raised.value)


def test_lines_without_more_are_as_before() -> None:
    (key,) = parse_keys([f"a:inference, metrics:{GREEDY}"], "keys.txt")
    assert (key.name, sorted(key.scopes), key.own) == ("a", ["inference", "metrics"], ())


# -- where requests go ------------------------------------------------------------------------------------------------


def test_a_conversation_comes_back_to_the_server_that_has_it(narrow: Watched) -> None:
    served_by: dict[str, set[str]] = {"a": set(), "b": set()}
    metrics = Metrics()
    with serving(narrow.fleet, metrics=metrics) as gateway:
        talks: dict[str, list[dict[str, str]]] = {
            name: [{"role": "user", "content": f"{name} " * 300}] for name in served_by
        }
        for _ in range(3):
            for name, messages in talks.items():
                body = {"messages": messages, "stream": True, "temperature": 0, "max_tokens": 8}
                heard = ask(gateway.url, body=body, X_LlamaStream_Explain="1")
                assert heard.status == 200
                head = {line.split(b": ")[0].lower(): line.split(b": ")[1] for line in heard.head.split(b"\r\n")[1:]}
                served_by[name].add(head[b"x-llamastream-instance"].decode())
                assert head[b"x-llamastream-route-reason"] in (b"least-busy", b"cached")
                messages += [
                    {"role": "assistant", "content": heard.joined()},
                    {"role": "user", "content": "And then?"},
                ]
        wait_for(lambda: len(gateway.served) == 6)
        assert b"x-llamastream-route-reason" not in ask(gateway.url, body={"messages": STORY}).head.lower()
    assert [len(each) for each in served_by.values()] == [1, 1]
    assert served_by["a"] != served_by["b"]
    later = gateway.served[2:6]
    assert {each.route_reason for each in later} == {"cached"}
    for each in later:
        assert each.cached_tokens is not None
        assert each.expected_cached_tokens is not None
        assert each.cached_tokens > 200
        assert abs(each.expected_cached_tokens - each.cached_tokens) < 0.3 * each.cached_tokens
        assert each.first_token is not None
    routed = dict(metrics.series.counters("routed_requests"))
    assert routed["cached",] == 4
    assert sum(count[-1][1] for _, count, _ in metrics.series.histograms("first_token_expectation_ratio")) >= 6


def test_never_more_at_a_server_than_it_has_slots(narrow: Watched) -> None:
    over: list[list[int]] = []
    with serving(narrow.fleet) as gateway, ThreadPoolExecutor(12) as pool:
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.002):
                for lane in gateway.gateway.lanes:
                    router = lane.admission.scheduler.router
                    loads = [router.instance(number).load for number in range(2)]
                    if max(loads) > 1:
                        over.append(loads)

        watcher = threading.Thread(target=watch)
        watcher.start()
        body = {"messages": STORY, "stream": True, "temperature": 0, "max_tokens": 30}
        answers = list(pool.map(lambda _: ask(gateway.url, body=body), range(40)))
        ended.set()
        watcher.join()
    assert {each.status for each in answers} == {200}
    assert {len(each.joined()) > 0 for each in answers} == {True}
    assert not over


# -- waiting ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages"])
def test_a_stream_in_line_hears_that_it_waits_and_gets_its_answer(
    single: Watched, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    monkeypatch.setattr(relay, "SIGN_OF_LIFE", 0.05)
    with serving(single.fleet) as gateway, ExitStack() as stack:
        holder = open_stream(gateway.url, stack)
        hear(holder, lambda raw: raw.count(b"data: ") > 3)
        waiter = stack.enter_context(dial(gateway.url))
        body = {"messages": STORY, "stream": True, "temperature": 0, "max_tokens": 5}
        waiter.sendall(request_bytes("POST", path, body, Connection="close"))
        begun = hear(waiter, lambda raw: raw.count(b": waiting\n\n") >= 3)
        assert begun.status == 200
        assert gateway.gateway.lanes.waiting == 1
        holder.close()
        whole = Heard(begun.raw + hear(waiter).raw, "closed")
    assert whole.raw.count(b"HTTP/1.1 ") == 1
    assert whole.body.rstrip().endswith(b"data: [DONE]" if path != "/v1/messages" else b'"type":"message_stop"}')


@pytest.mark.parametrize(
    ("path", "form"),
    [("/v1/chat/completions", b'data: {"error":'), ("/v1/messages", b'event: error\ndata: {"type":"error"')],
)
def test_who_waited_in_vain_is_told_inside_the_stream(
    single: Watched, monkeypatch: pytest.MonkeyPatch, path: str, form: bytes
) -> None:
    monkeypatch.setattr(relay, "SIGN_OF_LIFE", 0.05)
    with serving(single.fleet, GatewaySettings(queue_timeout=0.3)) as gateway, ExitStack() as stack:
        holder = open_stream(gateway.url, stack)
        hear(holder, lambda raw: raw.count(b"data: ") > 3)
        body = {"messages": STORY, "stream": True, "max_tokens": 5}
        heard = ask(gateway.url, path=path, body=body)
        assert (heard.status, heard.body.count(form)) == (200, 1)
        assert b"no slot was free within 0.3 s (queue_timeout)" in heard.body
        whole = ask(gateway.url, path=path, body={**body, "stream": False})
        assert whole.status == 503
        assert b"retry-after: " in whole.head.lower()


def test_a_refusal_after_comments_is_an_event(single: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SIGN_OF_LIFE", 0.05)
    with serving(single.fleet) as gateway, ExitStack() as stack:
        holder = open_stream(gateway.url, stack)
        hear(holder, lambda raw: raw.count(b"data: ") > 3)
        waiter = stack.enter_context(dial(gateway.url))
        body = {"messages": [{"role": "nobody", "content": 7}], "stream": True}
        waiter.sendall(request_bytes("POST", "/v1/messages", body, Connection="close"))
        begun = hear(waiter, lambda raw: b": waiting" in raw)
        holder.close()
        whole = Heard(begun.raw + hear(waiter).raw, "closed")
    assert whole.body.count(b"event: error\n") == 1
    assert json.loads(whole.body.rstrip().rpartition(b"data: ")[2])["type"] == "error"


# -- prompts ----------------------------------------------------------------------------------------------------------


def shared(one: dict[str, Any], other: dict[str, Any]) -> int:
    """Characters that two prompts begin with in common."""
    a, b = prompt_of(one), prompt_of(other)
    same = [end for x, y, end in zip(a.chain, b.chain, a.ends, strict=False) if x == y]
    return same[-1] if same else 0


def test_prompts_are_the_same_as_far_as_they_begin_the_same() -> None:
    system = {"role": "system", "content": "s" * 3000}
    tools = [{"type": "function", "function": {"name": "f"}}]
    talk = {"messages": [system, {"role": "user", "content": "a"}]}
    longer = {"messages": [*talk["messages"], {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}
    assert shared(talk, longer) == prompt_of(talk).characters
    assert 3000 <= shared(talk, {"messages": [system, {"role": "user", "content": "other"}]}) < 3100
    assert 2000 <= shared(talk, {"messages": [{"role": "system", "content": "s" * 2500}]}) <= 2100
    assert shared(talk, {**talk, "tools": tools}) == 0
    assert (
        shared({**longer, "tools": tools}, {**talk, "tools": tools}) == prompt_of({**talk, "tools": tools}).characters
    )
    assert shared({"prompt": "x" * 5000}, {"prompt": "x" * 4500 + "y"}) == 4096
    assert shared({"prompt": list(range(1000))}, {"prompt": list(range(900))}) == 3 * 4 * 256


def test_what_a_conversation_is() -> None:
    system = {"role": "system", "content": "s"}
    talk = {"messages": [system, {"role": "user", "content": "a"}]}
    later = {"messages": [*talk["messages"], {"role": "assistant", "content": "b"}]}
    other = {"messages": [system, {"role": "user", "content": "b"}]}
    assert prompt_of(talk).session == prompt_of(later).session != prompt_of(other).session
    assert prompt_of(talk, "x").session == prompt_of(other, "x").session
    assert prompt_of({**talk, "user": "u"}).session == prompt_of({**other, "user": "u"}).session


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": None},
        {"messages": [1, None, "x", {}]},
        {"messages": [{"role": 7, "content": {"a": 1}}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}, 3]}]},
        {"input": "text", "instructions": ["x"], "tools": {"a": 1}},
        {"prompt": ["several", "prompts"]},
        {"prompt": []},
    ],
)
def test_any_body_is_taken(body: dict[str, Any]) -> None:
    found = prompt_of(body)
    assert len(found.chain) == len(found.ends)
    assert list(found.ends) == sorted(found.ends)


def test_a_huge_prompt_has_a_bounded_number_of_parts() -> None:
    huge = prompt_of({"prompt": "x" * 10_000_000})
    assert len(huge.chain) <= 513
    assert huge.characters >= 10_000_000
