"""The response cache on the real engine: what is kept, for whom, what a hit looks like, who shares a generation."""

from __future__ import annotations

import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from wires import Heard, ask, dial, hear, request_bytes

from fleets import Watched, running
from gateways import Running, serving
from llamastream import StreamingClient
from llamastream.backends import StaticBackends
from llamastream.bench.loop import run
from llamastream.bench.measure import Measurement
from llamastream.bench.settings import BenchSettings
from llamastream.engine import EngineOptions, launch
from llamastream.engine.demo import demo_model_path
from llamastream.gateway import GatewaySettings
from llamastream.gateway.sharing import Sharing
from llamastream.settings import ClientSettings
from llamastream.testing import ChaosProxy, Reset
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
ASKED = {"messages": STORY, "temperature": 0, "stream": True}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
ON = GatewaySettings(response_cache=True)
ANNA, BERT = "sk-anna-0123456789", "sk-bert-0123456789"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=8), instances=1) as watched:
        yield watched


@pytest.fixture
def gateway(fleet: Watched) -> Iterator[Running]:
    with serving(fleet.fleet, ON) as there:
        yield there


def test_a_measurement_is_of_the_model_and_not_of_the_cache(gateway: Running, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('"Tell me a story."\n')
    asked = BenchSettings(prompts=str(prompts), concurrency="1", requests=4, repeats=2, output_tokens="16")
    measurement = Measurement(ClientSettings(base_url=gateway.url), asked)
    run(measurement.run)
    (result,) = measurement.report().loads
    assert (result.requests, result.failed, result.repeated) == (8, 0, 0)
    figures = gateway.gateway.sharing.cache_figures()
    assert figures is not None
    assert (figures.hits, figures.shared, figures.misses) == (0, 0, 0)


def test_a_client_hears_what_the_cache_did(gateway: Running) -> None:
    with StreamingClient(gateway.url, temperature=0) as client:
        heard = [client.chat(STORY, max_tokens=4).stats.response_cache]
        wait_for(lambda: len(gateway.gateway.sharing._memory) == 1)
        heard.append(client.chat(STORY, max_tokens=4).stats.response_cache)
    assert heard == ["miss", "hit"]


def outcome(answer: Heard) -> str | None:
    found = re.search(rb"x-llamastream-cache: (\w+)", answer.head)
    return found[1].decode() if found else None


def instance(answer: Heard) -> str:
    found = re.search(rb"x-llamastream-instance: ([\w-]+)", answer.head)
    return found[1].decode() if found else ""


def stored(gateway: Running) -> int:
    found = gateway.gateway.sharing.samples()
    return sum(int(each.value) for each in found if each.name == "response_cache_entries")


def sample(gateway: Running, name: str, *labels: str) -> float:
    found = gateway.gateway.sharing.samples()
    return sum(each.value for each in found if each.name == name and each.labels == labels)


def kept(gateway: Running, body: dict[str, Any], path: str = "/v1/chat/completions", key: str = "") -> Heard:
    """Ask, and wait until the answer is kept."""
    before = stored(gateway)
    answer = ask(gateway.url, path=path, body=body, Authorization=f"Bearer {key}")
    assert (answer.status, outcome(answer)) == (200, "miss")
    wait_for(lambda: stored(gateway) > before)
    return answer


def bare(body: bytes) -> bytes:
    """Without the id and the time."""
    return re.sub(rb'"created":\d+', b"", re.sub(rb'"id":"[\w-]+"', b"", body))


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", ASKED),
        ("/v1/chat/completions", {**ASKED, "stream_options": {"include_usage": True}}),
        ("/v1/chat/completions", {**ASKED, "stream": False}),
        ("/v1/chat/completions", {**ASKED, "n": 2, "max_tokens": 6}),
        ("/v1/completions", {"prompt": "Once", "temperature": 0, "max_tokens": 5, "stream": True}),
        ("/v1/completions", {"prompt": "Once", "seed": 11, "max_tokens": 5}),
        ("/completion", {"prompt": "Once", "temperature": 0, "n_predict": 5, "stream": True}),
        ("/completion", {"prompt": "Once", "temperature": 0, "n_predict": 5}),
    ],
)
def test_an_answer_is_given_again_to_the_byte_but_for_its_id(gateway: Running, path: str, body: dict[str, Any]) -> None:
    first = kept(gateway, body, path)
    admitted = gateway.gateway.lanes.admitted
    again = ask(gateway.url, path=path, body=body)
    assert (outcome(again), gateway.gateway.lanes.admitted) == ("hit", admitted)
    assert bare(again.body) == bare(first.body)
    assert re.search(rb"\r\nage: \d", again.head)
    ids = [re.findall(rb'"id":"([\w-]+)"', each.body) for each in (first, again)]
    if path != "/completion":
        assert len(set(ids[0])) == len(set(ids[1])) == 1
        assert ids[0][0] != ids[1][0]
    content_type = re.compile(rb"content-type: ([^;\r]+)")
    kinds = [found[1] for each in (first, again) if (found := content_type.search(each.head))]
    assert kinds[0] == kinds[1]


def test_tool_calls_are_kept_too(gateway: Running) -> None:
    body = {**ASKED, "tools": [TOOL], "tool_choice": "required"}
    first = kept(gateway, body)
    again = ask(gateway.url, body=body)
    assert outcome(again) == "hit"
    assert bare(again.body) == bare(first.body)
    assert again.finish_reason == "tool_calls"


@pytest.mark.parametrize(
    "body",
    [
        {"temperature": 0.8},
        {},
        {"seed": -1},
        {"temperature": 0, "xtc_probability": 0.3},
        {"top_k": 1},
        {"temperature": 0, "t_max_predict_ms": 60_000},
    ],
)
def test_sampled_answers_and_timed_ones_are_not_kept(gateway: Running, body: dict[str, Any]) -> None:
    for _ in range(2):
        answer = ask(gateway.url, body={"messages": STORY, "stream": True, "max_tokens": 3, **body})
        assert (answer.status, outcome(answer)) == (200, None)
    assert stored(gateway) == 0


def test_a_seed_that_our_client_chose_is_not_the_users(gateway: Running) -> None:
    with StreamingClient(gateway.url) as client:
        client.chat(STORY, temperature=1.0, logprobs=True, max_tokens=3)
        assert stored(gateway) == 0
        assert sum(sample(gateway, "response_cache_requests", each) for each in ("hit", "miss", "shared")) == 0
        # at temperature 0 it draws nothing, and its seed, another each time, does not count
        for _ in range(2):
            client.chat(STORY, temperature=0, tools=[TOOL], tool_choice="required")
            wait_for(lambda: stored(gateway) == 1)
    assert sample(gateway, "response_cache_requests", "hit") == 1


def test_errors_and_answers_that_were_left_are_not_kept(gateway: Running) -> None:
    answer = ask(gateway.url, body={**ASKED, "messages": [{"role": "user", "content": "x " * 100_000}]})
    assert (answer.status, outcome(answer)) == (400, "miss")
    long = {**ASKED, "ignore_eos": True, "max_tokens": 7000}
    with dial(gateway.url) as connection:
        connection.sendall(request_bytes("POST", "/v1/chat/completions", long))
        hear(connection, lambda raw: b"content" in raw)
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    wait_for(lambda: not gateway.gateway.sharing._tasks)  # nothing that would still be stored
    assert stored(gateway) == 0
    assert gateway.gateway.sharing.held.used == 0


def test_cache_control_of_the_request(gateway: Running) -> None:
    assert ask(gateway.url, body=ASKED, Cache_Control="only-if-cached").status == 504
    assert outcome(ask(gateway.url, body=ASKED, Cache_Control="no-store")) is None
    assert stored(gateway) == 0
    kept(gateway, ASKED)
    assert outcome(ask(gateway.url, body=ASKED, Cache_Control="no-store")) is None
    assert outcome(ask(gateway.url, body=ASKED, Cache_Control="no-cache")) == "miss"
    assert outcome(ask(gateway.url, body=ASKED, Cache_Control="only-if-cached")) == "hit"
    assert outcome(ask(gateway.url, body=ASKED, Cache_Control="max-age=60")) == "hit"
    assert outcome(ask(gateway.url, body=ASKED, Cache_Control="max-age=0")) == "miss"


@pytest.mark.parametrize(
    ("on", "path", "body", "more"),
    [
        (False, "/v1/chat/completions", ASKED, ""),
        (True, "/v1/chat/completions", {**ASKED, "temperature": 0.8}, ""),
        (True, "/v1/chat/completions", ASKED, ", no-store"),
        (True, "/v1/messages", {**ASKED, "max_tokens": 5}, ""),
    ],
)
def test_who_wants_only_what_is_cached_gets_nothing_generated(
    fleet: Watched, on: bool, path: str, body: dict[str, Any], more: str
) -> None:
    with serving(fleet.fleet, GatewaySettings(response_cache=on)) as gateway:
        answer = ask(gateway.url, path=path, body=body, Cache_Control="only-if-cached" + more)
        assert (answer.status, "only-if-cached" in answer.json["error"]["message"]) == (504, True)
        assert gateway.gateway.lanes.admitted == 0


def test_off_is_the_default(fleet: Watched) -> None:
    with serving(fleet.fleet) as gateway:
        answers = [ask(gateway.url, body=ASKED) for _ in range(2)]
        assert [outcome(each) for each in answers] == [None, None]
        assert gateway.gateway.lanes.admitted == 2


@pytest.mark.parametrize("shared", [False, True])
def test_each_key_has_answers_of_its_own_unless_they_are_shared(fleet: Watched, shared: bool) -> None:
    settings = GatewaySettings(response_cache=True, response_cache_shared=shared, api_keys=f"{ANNA} {BERT}")
    with serving(fleet.fleet, settings) as gateway:
        kept(gateway, ASKED, key=ANNA)
        assert outcome(ask(gateway.url, body=ASKED, Authorization=f"Bearer {ANNA}")) == "hit"
        assert outcome(ask(gateway.url, body=ASKED, Authorization=f"Bearer {BERT}")) == ("hit" if shared else "miss")


def limits(answer: Heard) -> dict[bytes, bytes]:
    return dict(re.findall(rb"x-ratelimit-(limit|remaining)-requests: (\d+)", answer.head))


def test_hits_say_what_is_left_and_take_nothing_of_it(fleet: Watched) -> None:
    settings = GatewaySettings(response_cache=True, api_keys=ANNA, requests_per_minute=1)
    with serving(fleet.fleet, settings) as gateway:
        kept(gateway, ASKED, key=ANNA)
        refused = ask(gateway.url, body={**ASKED, "max_tokens": 3}, Authorization=f"Bearer {ANNA}")
        assert (refused.status, outcome(refused)) == (429, None)  # nobody looked for it to be generated
        for _ in range(3):
            hit = ask(gateway.url, body=ASKED, Authorization=f"Bearer {ANNA}")
            assert (hit.status, outcome(hit), instance(hit)) == (200, "hit", "")
            assert limits(hit) == {b"limit": b"1", b"remaining": b"0"}
        wait_for(lambda: len(gateway.served) == 5)
        assert [each.cache for each in gateway.served] == ["miss", "", "hit", "hit", "hit"]


def test_the_first_hit_of_a_key_says_what_is_left_too(fleet: Watched, tmp_path: Path) -> None:
    settings = GatewaySettings(response_cache=True, response_cache_dir=str(tmp_path), requests_per_minute=10)
    with serving(fleet.fleet, settings) as gateway:
        kept(gateway, ASKED)
    with serving(fleet.fleet, settings) as gateway:
        hit = ask(gateway.url, body=ASKED)
        assert (outcome(hit), limits(hit)) == ("hit", {b"limit": b"10", b"remaining": b"10"})


@pytest.mark.alone
def test_a_hit_is_quick(gateway: Running) -> None:
    kept(gateway, ASKED)
    with dial(gateway.url) as connection:
        times = []
        for _ in range(21):
            began = time.perf_counter()
            connection.sendall(request_bytes("POST", "/v1/chat/completions", ASKED))
            first = hear(connection, lambda raw: b'"content":"' in raw)
            times.append(time.perf_counter() - began)
            hear(connection, lambda raw, seen=first.raw: (seen + raw).endswith(b"0\r\n\r\n"))  # type: ignore[misc]  # default binds
        # of the quickest ones: what the gateway needs, and not what else the machine does
        assert sorted(times)[len(times) // 4] < 0.005


def test_what_is_counted(gateway: Running) -> None:
    kept(gateway, ASKED)
    answer = ask(gateway.url, body=ASKED)
    assert sample(gateway, "response_cache_requests", "hit") == 1
    assert sample(gateway, "response_cache_requests", "miss") == 1
    pieces = sum(bool(choice["delta"].get("content")) for choice in answer.choices)
    assert sample(gateway, "response_cache_tokens_saved") >= pieces > 10
    assert sample(gateway, "response_cache_bytes", "memory") > len(answer.body) / 2
    wait_for(lambda: len(gateway.served) == 2)
    miss, hit = gateway.served
    assert (miss.cache, hit.cache) == ("miss", "hit")
    assert miss.completion_tokens
    assert (hit.completion_tokens, hit.finish_reason, hit.streamed, hit.instance) == (None, "stop", True, "")
    text = ask(gateway.url, "GET", "/metrics").body.decode()
    assert 'llamastream_response_cache_requests_total{result="hit"} 1.0' in text


# -- the same request in flight -----------------------------------------------------------------------------------

LONG = {**ASKED, "ignore_eos": True, "max_tokens": 1500}


def test_the_same_requests_at_the_same_time_are_generated_once(gateway: Running) -> None:
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda _: ask(gateway.url, body=LONG), range(12)))
    assert gateway.gateway.lanes.admitted == 1
    assert {each.body for each in answers if outcome(each) != "hit"} == {
        next(each.body for each in answers if outcome(each) == "miss")
    }
    assert len({bare(each.body) for each in answers}) == 1
    assert {outcome(each) for each in answers} <= {"miss", "shared", "hit"}
    assert answers[0].finish_reason == "length"


def begun(gateway: Running, body: dict[str, Any], **headers: str) -> Any:
    """A connection on which the answer has begun."""
    connection = dial(gateway.url)
    connection.sendall(request_bytes("POST", "/v1/chat/completions", body, **{"Connection": "close", **headers}))
    first = hear(connection, lambda raw: b'"content":"' in raw)
    return connection, first


def test_a_generation_goes_on_for_those_who_share_it_when_the_first_leaves(gateway: Running) -> None:
    leader, _ = begun(gateway, LONG)
    follower, heard = begun(gateway, LONG)
    assert outcome(heard) == "shared"
    leader.close()
    with follower:
        rest = hear(follower)
    whole = Heard(heard.raw + rest.raw, rest.ended)
    assert (whole.events[-1], whole.finish_reason) == ("[DONE]", "length")
    assert gateway.gateway.lanes.admitted == 1
    assert outcome(ask(gateway.url, body=LONG)) in ("hit", "miss")
    wait_for(lambda: len(gateway.served) == 3)
    first, second = sorted(gateway.served[:2], key=lambda each: each.time)
    assert (first.cache, first.finish_reason, first.completion_tokens) == ("miss", "length", 1500)
    assert (second.cache, second.finish_reason, second.completion_tokens) == ("shared", "length", None)


def test_who_drops_an_id_ends_nothing_for_those_who_share_the_generation(gateway: Running) -> None:
    body = {**LONG, "max_tokens": 4000}
    leader, _ = begun(gateway, body, X_Conversation_Id="mine")
    follower, heard = begun(gateway, body)
    assert outcome(heard) == "shared"
    assert ask(gateway.url, "DELETE", "/v1/stream?conv_id=mine").status == 204
    with leader:
        assert b"[DONE]" not in hear(leader).raw
    with follower:
        rest = hear(follower)
    whole = Heard(heard.raw + rest.raw, rest.ended)
    assert (whole.events[-1], whole.finish_reason) == ("[DONE]", "length")


def test_a_generation_that_all_have_left_frees_its_slot(gateway: Running, fleet: Watched) -> None:
    body = {**LONG, "max_tokens": 7000}
    for connection in [begun(gateway, body)[0] for _ in range(3)]:
        connection.close()
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    fleet.wait_for(lambda: fleet.fleet.status()[0].in_flight == 0, "a free slot")
    assert gateway.gateway.sharing.held.used == 0


def test_an_error_is_everybodys(fleet: Watched) -> None:
    settings = GatewaySettings(response_cache=True, queue_limit=0)
    body = {**ASKED, "messages": [{"role": "user", "content": "x " * 50_000}]}
    with serving(fleet.fleet, settings) as gateway, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(gateway.url, body=body), range(6)))
    assert {(each.status, each.json["error"]["type"]) for each in answers} == {(400, "exceed_context_size_error")}


# -- what the model is ----------------------------------------------------------------------------------------------


def test_an_answer_of_another_model_is_not_given(tmp_path: Path) -> None:
    """The same name, the same address, another file: nothing that the one before it said."""
    model = tmp_path / "model.gguf"
    shutil.copy(demo_model_path(), model)
    with launch(EngineOptions(model=str(model), parallel=1)) as engine:
        url, port = engine.url, int(engine.url.rpartition(":")[2])
        source = StaticBackends((url,))
        with serving(source, ON) as gateway:
            kept(gateway, ASKED)
            assert outcome(ask(gateway.url, body=ASKED)) == "hit"
            engine.stop()
            os.utime(model, (1, 1))
            with launch(EngineOptions(model=str(model), parallel=1, port=port)):
                known = next(iter(gateway.gateway.sharing.identities._known.values()))
                wait_for(lambda: time.monotonic() > known.asked_at + 2.0)  # for so long its word is good
                assert outcome(ask(gateway.url, body=ASKED)) == "miss"


def test_a_restart_of_the_same_model_changes_nothing() -> None:
    with running(EngineOptions(parallel=2), instances=1) as watched, serving(watched.fleet, ON) as gateway:
        kept(gateway, ASKED)
        watched.fleet.restart("demo-0").done.result(60)
        assert outcome(ask(gateway.url, body=ASKED)) == "hit"


def test_an_answer_that_was_mended_is_not_kept() -> None:
    with running(EngineOptions(parallel=4), instances=2) as watched, serving(watched.fleet, ON) as gateway:
        connection, first = begun(gateway, {**LONG, "max_tokens": 6000})
        os.kill(next(each.pid for each in watched.fleet.snapshot() if instance(first) == each.id), signal.SIGKILL)
        with connection:
            rest = hear(connection)
        assert Heard(first.raw + rest.raw, rest.ended).finish_reason == "length"
        wait_for(lambda: not gateway.gateway.sharing._tasks)
        wait_for(lambda: bool(gateway.served))
        assert gateway.served[0].recoveries
        assert stored(gateway) == 0


def test_a_hit_can_be_taken_up_again_too(gateway: Running) -> None:
    with StreamingClient(gateway.url, temperature=0) as client:
        whole = client.chat(STORY, max_tokens=500).text
    wait_for(lambda: stored(gateway) == 1)
    with (
        ChaosProxy(gateway.url, Reset(after_events=5)) as proxy,
        StreamingClient(proxy.url, temperature=0, recovery="reattach") as client,
    ):
        result = client.chat(STORY, max_tokens=500)
    assert result.text == whole
    assert [each.kind for each in result.stats.recoveries] == ["reattach"]
    assert gateway.gateway.lanes.admitted == 1


def test_many_answers_at_once_stay_apart(gateway: Running) -> None:
    """Different questions from many threads, twice: each gets the answer to its own."""
    questions = [{**ASKED, "max_tokens": 8, "messages": [{"role": "user", "content": f"Say {n}"}]} for n in range(20)]
    barrier = threading.Barrier(20)

    def one(body: dict[str, Any]) -> bytes:
        barrier.wait(20)
        return bare(ask(gateway.url, body=body).body)

    with ThreadPoolExecutor(20) as pool:
        first = list(pool.map(one, questions))
        wait_for(lambda: stored(gateway) == 20)
        assert list(pool.map(one, questions)) == first
    assert sample(gateway, "response_cache_requests", "hit") == 20


def test_a_directory_without_a_cache_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Sharing(GatewaySettings(response_cache_dir=str(tmp_path)))
    assert [each.message for each in caplog.records] == [
        "response_cache_dir is set, but response_cache is off: no answer is kept"
    ]
    assert not list(tmp_path.iterdir())
