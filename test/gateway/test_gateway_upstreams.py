"""A gateway before servers that somebody else runs."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from wires import ask, chat

from gateways import serving
from llamastream import StreamingClient
from llamastream.backends import StaticBackends
from llamastream.engine import EngineOptions, launch
from llamastream.errors import SettingError
from llamastream.events import InstanceChanged
from llamastream.gateway import Upstreams, create_app, gateway_thread, patience
from llamastream.gateway.exposure import is_own_address
from llamastream.gateway.hops import MOST_HOPS, LoopError, new_mark, onward
from llamastream.testing import NumberedServer, ServerDouble
from polling import wait_for
from ports import free_port
from serving import busy

STORY = [{"role": "user", "content": "Tell me a story."}]


def test_servers_are_found_with_their_slots_and_models() -> None:
    with launch(EngineOptions(parallel=3)) as first, launch(EngineOptions(parallel=2, alias="other")) as second:
        source = Upstreams([first.url, second.url + "/v1"])
        with serving(source) as gateway:
            wait_for(lambda: [backend.slots for backend in source.snapshot()] == [3, 2])
            assert [model["id"] for model in ask(gateway.url, "GET", "/v1/models").json["data"]] == ["demo", "other"]
            for model in ("demo", "other"):
                assert chat(gateway.url, STORY, temperature=0, model=model).finish_reason == "stop"


def test_one_that_is_gone_is_left_alone_until_it_is_back() -> None:
    with launch(EngineOptions()) as first:
        second = launch(EngineOptions()).start()
        source = Upstreams([first.url, second.url])
        with serving(source) as gateway:
            wait_for(lambda: all(backend.models for backend in source.snapshot()))
            os.kill(second.pid, signal.SIGKILL)
            second.wait(10)
            wait_for(lambda: source.snapshot()[1].state == "failed")
            for _ in range(4):
                assert chat(gateway.url, STORY, temperature=0).finish_reason == "stop"
            with launch(EngineOptions(port=second.options.port)):
                wait_for(lambda: source.snapshot()[1].state == "ready")
                assert source.snapshot()[1].generation == 2
        second.stop()


def test_a_server_that_freezes_over_a_whole_answer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in (("LOOK_AFTER", 0.5), ("LOOK_EVERY", 0.1), ("LOOK_TIMEOUT", 0.3)):
        monkeypatch.setattr(patience, name, seconds)
    body = {"messages": STORY, "temperature": 0, "max_tokens": 3000, "ignore_eos": True}
    with launch(EngineOptions()) as first, launch(EngineOptions()) as second:
        source = Upstreams([first.url, second.url])
        with serving(source) as gateway, ThreadPoolExecutor(1) as pool:
            wait_for(lambda: all(backend.models for backend in source.snapshot()))
            answer = pool.submit(ask, gateway.url, body=body)
            wait_for(lambda: any(gateway.gateway.lanes.at_work().values()))
            frozen = (first, second)[gateway.busy()]
            with StreamingClient(frozen.url) as client:
                wait_for(lambda: any(slot["is_processing"] for slot in client.slots()))
            os.kill(frozen.pid, signal.SIGSTOP)
            try:
                assert answer.result(60).status == 200
            finally:
                os.kill(frozen.pid, signal.SIGCONT)


def test_a_server_that_takes_long_over_a_whole_answer_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOOK_AFTER", "LOOK_EVERY"):
        monkeypatch.setattr(patience, name, 0.01)
    with launch(EngineOptions()) as engine, serving(Upstreams([engine.url])) as gateway:
        body = {"messages": STORY, "temperature": 0, "max_tokens": 3000, "ignore_eos": True}
        assert ask(gateway.url, body=body).json["usage"]["completion_tokens"] == 3000


def test_no_server_at_all_is_said() -> None:
    told: list[InstanceChanged] = []
    with ServerDouble() as double:
        url = double.url
    source = Upstreams([url], listeners=[told.append])
    assert [backend.state for backend in source.snapshot()] == ["starting"]
    with serving(source) as gateway:
        wait_for(lambda: bool(told))
        health = ask(gateway.url, "GET", "/health")
        assert (health.status, health.json["states"]) == (503, {"failed": 1})
        assert health.json["error"]["message"] == "no server takes requests now: 1 failed"
        refused = ask(gateway.url, body={"messages": STORY})
        assert (refused.status, refused.json["error"]["type"]) == (503, "unavailable_error")
        for heard in (health, refused):
            assert url.encode() not in heard.raw
    (change,) = told
    assert (change.id, change.before, change.after) == ("upstream-0", "starting", "failed")
    assert "refused" in change.reason


def test_one_that_loads_its_model_is_waited_for() -> None:
    with NumberedServer(loading=2) as double:
        told: list[InstanceChanged] = []
        with serving(Upstreams([double.url], listeners=[told.append])) as gateway:
            assert ask(gateway.url, "GET", "/health").json["error"]["message"] == "Loading model"
            wait_for(lambda: len(told) > 1)
            assert ask(gateway.url, "GET", "/health").status == 200
    assert [change.after for change in told] == ["loading", "ready"]


def test_what_the_gateway_has_at_work_is_told_at_once() -> None:
    with launch(EngineOptions()) as engine, serving(Upstreams([engine.url])) as gateway:
        with busy(gateway.url):
            assert ask(gateway.url, "GET", "/fleet").json["instances"][0]["in_flight"] == 1
            metrics = ask(gateway.url, "GET", "/metrics").body
            assert b'llamastream_instance_requests_active{instance="upstream-0"} 1.0' in metrics
        wait_for(lambda: ask(gateway.url, "GET", "/fleet").json["instances"][0]["in_flight"] == 0)


# -- gateways before gateways ---------------------------------------------------------------------------------------


def test_a_gateway_before_a_gateway_is_no_circle() -> None:
    with (
        launch(EngineOptions()) as engine,
        serving(Upstreams([engine.url])) as inner,
        serving(Upstreams([inner.url])) as outer,
    ):
        assert chat(outer.url, STORY, temperature=0).finish_reason == "stop"
        assert ask(outer.url, body={"messages": STORY, "max_tokens": 2}).status == 200


@pytest.mark.parametrize("stream", [False, True])
def test_a_circle_of_gateways_is_noticed(stream: bool) -> None:
    port = free_port()
    with (
        serving(StaticBackends((f"http://127.0.0.1:{port}",))) as one,
        gateway_thread(create_app(StaticBackends((one.url,))), port=port) as other,
    ):
        for url in (one.url, other.url):
            heard = ask(url, body={"messages": STORY, "stream": stream})
            assert heard.status == 508, heard.raw
            assert "come back" in heard.json["error"]["message"]
    assert len(one.served) < 20


def test_marks() -> None:
    mark = new_mark()
    assert onward([(b"host", b"x")], mark) == mark
    others = [new_mark() for _ in range(MOST_HOPS)]
    via = ", ".join(["1.1 proxy.example", *others[1:]]).encode()
    assert onward([(b"via", via)], mark) == ", ".join((*others[1:], mark))
    with pytest.raises(LoopError, match=f"passed {MOST_HOPS} gateways"):
        onward([(b"via", others[0].encode()), (b"via", via)], mark)
    with pytest.raises(LoopError, match="come back"):
        onward([(b"via", mark.encode())], mark)


@pytest.mark.parametrize(
    ("url", "host", "port", "socket", "own"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, None, True),
        ("http://localhost:8080/v1", "127.0.0.1", 8080, None, True),
        ("http://127.0.0.1:8080", "0.0.0.0", 8080, None, True),
        ("http://[::1]:8080", "localhost", 8080, None, True),
        ("http://10.0.0.5:8080", "10.0.0.5", 8080, None, True),
        ("http://10.0.0.5:8080", "127.0.0.1", 8080, None, False),
        ("http://127.0.0.1:8080", "10.0.0.5", 8080, None, False),
        ("http://127.0.0.1:8081", "127.0.0.1", 8080, None, False),
        ("http://127.0.0.1:8080", "127.0.0.1", 0, None, False),
        ("unix:///tmp/a.sock", "127.0.0.1", 8080, "/tmp/../tmp/a.sock", True),
        ("unix:///tmp/a.sock", "127.0.0.1", 8080, None, False),
        ("http://127.0.0.1:8080", "127.0.0.1", 8080, "/tmp/a.sock", False),
    ],
)
def test_the_own_address_is_known(url: str, host: str, port: int, socket: str | None, own: bool) -> None:
    assert is_own_address(url, host, port, socket) is own


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(SettingError, match="ftp"):
        Upstreams(["ftp://x"])


def test_the_same_server_twice_is_refused() -> None:
    for other in ("http://x:1/v1", "http://x:1"):
        with pytest.raises(SettingError, match="is the same server as 'http://x:1'"):
            Upstreams(["http://x:1", other])
