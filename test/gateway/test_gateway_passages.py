"""Streams that no recovery continues: whole events, an explicit error in the form of their API, another server before
the first."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import Any

import pytest
from wires import Heard, ask, dial, hear, request_bytes

from fleets import running
from gateways import serving
from llamastream.backends import StaticBackends
from llamastream.engine import Engine, EngineOptions
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.testing import ChaosProxy, Reset, Script, ServerDouble, Stall, chunked
from llamastream.testing.faults import Fault
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
RESPONSES = {"input": "Tell me a story.", "stream": True, "temperature": 0}
MESSAGES = {"messages": STORY, "stream": True, "temperature": 0, "max_tokens": 500}
NATIVE = {"prompt": "Once", "stream": True, "n_predict": 50, "ignore_eos": True}
KINDS: dict[str, dict[str, Any]] = {"/v1/responses": RESPONSES, "/v1/messages": MESSAGES, "/completion": NATIVE}


def first(path: str, fault: Fault) -> Callable[[int, str], Fault | None]:
    """The fault for every request to a path."""
    return lambda number, line: fault if line.startswith(f"POST {path} ") else None


def parsed(heard: Heard) -> list[tuple[str, Any]]:
    """Name and data of each event; what is no whole event fails."""
    found = []
    for block in heard.body.split(b"\n\n")[:-1]:
        fields = dict(line.split(b": ", 1) for line in block.splitlines() if not line.startswith(b":"))
        if fields:
            found.append((fields.get(b"event", b"").decode(), json.loads(fields[b"data"])))
    assert heard.body.endswith(b"\n\n")
    return found


def is_whole(path: str, events: list[tuple[str, Any]]) -> bool:
    last = events[-1]
    return {
        "/v1/responses": last[0] == "response.completed",
        "/v1/messages": last[0] == "message_stop",
        "/completion": last[1].get("stop") is True,
    }[path]


def check_error(path: str, events: list[tuple[str, Any]]) -> None:
    """The last event is an error in the form of the API, and says nothing of where the server is."""
    name, data = events[-1]
    if path == "/v1/messages":
        assert name == data["type"] == "error"
        assert data["error"]["type"] == "api_error"
        message = data["error"]["message"]
    elif path == "/v1/responses":
        assert name == data["type"] == "error"
        assert data["sequence_number"] == len(events) - 1
        assert data["code"] == data["error"]["code"] == "server_error"
        message = data["message"]
    else:
        assert (name, data["error"]["type"]) == ("", "server_error")
        message = data["error"]["message"]
    assert message
    assert "127.0.0.1" not in message


@pytest.mark.parametrize("path", KINDS)
def test_a_stream_passes_as_it_is(engine: Engine, path: str) -> None:
    with serving(Upstreams([engine.url])) as gateway:
        assert is_whole(path, parsed(ask(gateway.url, path=path, body=KINDS[path])))


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize("cut", [{"after_events": 5}, {"after_bytes": 1500}])
def test_a_break_in_the_middle_is_told(engine: Engine, path: str, cut: dict[str, int]) -> None:
    with (
        ChaosProxy(engine.url, first(path, Reset(**cut)), everything=True) as proxy,
        serving(Upstreams([proxy.url])) as gateway,
    ):
        events = parsed(ask(gateway.url, path=path, body=KINDS[path]))
        assert len(events) > 1
        check_error(path, events)


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize("cut", [{}, {"after_events": 0}, {"after_bytes": 150}])
def test_before_the_first_event_another_server_is_asked(engine: Engine, path: str, cut: dict[str, int]) -> None:
    with (
        ChaosProxy(engine.url, first(path, Reset(**cut)), everything=True) as proxy,
        serving(StaticBackends((proxy.url, engine.url))) as gateway,
    ):
        for _ in range(3):
            assert is_whole(path, parsed(ask(gateway.url, path=path, body=KINDS[path])))
        assert any(exchange.fault is not None for exchange in proxy.log)


def test_a_connection_that_was_closed_while_idle_is_no_failure() -> None:
    """The server closes each after one answer, although it says that it keeps them: nothing of that is seen, also by
    the breaker."""
    body = b'{"tokens":[1]}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
    script = Script(head + body, repeat=True, requests=1)  # reads the next request, and closes instead of an answer
    with ServerDouble(script) as double, serving(StaticBackends((double.url,))) as gateway:
        for _ in range(6):
            heard = ask(gateway.url, path="/tokenize", body={"content": "a"})
            assert (heard.status, heard.body) == (200, body)
        assert len(double.requests) == 6 + 5  # each but the first was tried on the old connection
        (server,) = gateway.gateway.lanes.any().core.servers.all
        assert server.breaker._failures == 0


def test_infill_too() -> None:
    events = [b'data: {"content":"a","stop":false}\n\n', b'data: {"content":"b","stop":false}\n\n']
    broken = Script(chunked([*events, b'data: {"conte'], end=False), reset=False)
    with ServerDouble(broken) as double, serving(StaticBackends((double.url,))) as gateway:
        heard = ask(gateway.url, path="/infill", body={"input_prefix": "a", "input_suffix": "b", "stream": True})
        assert heard.body.startswith(b"".join(events))
        check_error("/infill", parsed(heard))


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/messages"])
def test_a_server_that_is_killed(path: str) -> None:
    # an answer that is still under way when its server is killed: neither API has a parameter for that
    options = EngineOptions(threads=1, extra_args=("--ignore-eos",))
    with running(options, instances=1) as watched, serving(watched.fleet) as gateway:
        request = {**KINDS[path], "max_tokens": 8000, "max_output_tokens": 8000}
        with dial(gateway.url) as connection:
            connection.sendall(request_bytes("POST", path, request, Connection="close"))
            begun = hear(connection, lambda raw: raw.count(b"\ndata:") > 5)
            watched.kill(0)
            rest = hear(connection)
        check_error(path, parsed(Heard(begun.raw + rest.raw, rest.ended)))


def test_a_stream_that_stalls_is_told_and_its_slot_is_free(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        ChaosProxy(engine.url, first("/v1/messages", Stall(after_events=4)), everything=True) as proxy,
        serving(Upstreams([proxy.url])) as gateway,
    ):
        wait_for(lambda: all(each.models for each in gateway.gateway.source.snapshot()))
        core = gateway.gateway.lanes.find(None).core
        monkeypatch.setattr(core, "timeouts", type(core.timeouts)(content_idle=0.3))
        events = parsed(ask(gateway.url, path="/v1/messages", body=MESSAGES))
        check_error("/v1/messages", events)
        assert "nothing came for 0.3 s" in events[-1][1]["error"]["message"]
        assert gateway.gateway.lanes.active == 0


def test_a_slow_reader_makes_its_server_wait_and_gets_everything(engine: Engine) -> None:
    """More than all buffers on the way hold, of which Linux gives a connection some 32 MB, to a client that does not
    read at first."""
    piece = b'data: {"content":"' + b"x" * 60_000 + b'","stop":false}\n\n'
    script = Script(chunked([piece] * 1500))
    with ServerDouble(script) as double, serving(StaticBackends((double.url,))) as gateway:
        with dial(gateway.url) as connection:
            connection.sendall(request_bytes("POST", "/completion", NATIVE, Connection="close"))
            hear(connection, lambda raw: len(raw) > 1000)
            # nothing tells of bytes that are not sent: were they taken, the server would be done long before this
            threading.Event().wait(0.5)
            assert double.connections == 1
            heard = hear(connection)
        assert heard.raw.count(b'"stop":false') >= 1499


def test_what_the_server_refuses_has_the_form_of_the_api(engine: Engine) -> None:
    with serving(Upstreams([engine.url])) as gateway:
        long = [{"role": "user", "content": "x " * 40_000}]
        for stream in (True, False):
            heard = ask(gateway.url, path="/v1/messages", body={"messages": long, "max_tokens": 5, "stream": stream})
            assert heard.status == 400
            assert heard.json["type"] == "error"
            assert heard.json["error"]["type"] == "exceed_context_size_error"
        heard = ask(gateway.url, path="/v1/responses", body={"input": "x " * 40_000})
        assert (heard.status, "type" in heard.json) == (400, False)


def test_what_the_gateway_refuses_has_the_form_of_the_api(engine: Engine) -> None:
    settings = GatewaySettings(api_keys="sk-user-0123456789", max_body=4096, queue_limit=0, strict_model=True)
    with serving(Upstreams([engine.url]), settings) as gateway:
        wait_for(lambda: all(each.models for each in gateway.gateway.source.snapshot()))
        key = {"X_Api_Key": "sk-user-0123456789"}
        large, strange = {"messages": [{"role": "user", "content": "x" * 5000}]}, {**MESSAGES, "model": "claude"}
        asked: list[tuple[int, str, Any, dict[str, str]]] = [
            (401, "authentication_error", MESSAGES, {}),
            (401, "authentication_error", MESSAGES, {"X_Api_Key": "sk-wrong-0123456789"}),
            (413, "request_too_large", large, key),
            (404, "not_found_error", strange, key),
            (400, "invalid_request_error", [1], key),
        ]
        for status, kind, body, headers in asked:
            for path in ("/v1/messages", "/v1/messages/count_tokens"):
                heard = ask(gateway.url, path=path, body=body, **headers)  # type: ignore[arg-type]  # all headers
                assert (heard.status, heard.json["type"], heard.json["error"]["type"]) == (status, "error", kind)
            heard = ask(gateway.url, path="/v1/responses", body=body, **headers)  # type: ignore[arg-type]  # all headers
            assert heard.status == status
            assert set(heard.json["error"]) == {"message", "type", "code"}
        lane = gateway.gateway.lanes.find("demo")
        router = lane.admission.scheduler.router
        free, router.free = router.free, 0
        heard = ask(gateway.url, path="/v1/messages", body={**MESSAGES, "model": "demo"}, **key)  # type: ignore[arg-type]  # headers
        router.free = free
        assert (heard.status, heard.json["error"]["type"]) == (429, "rate_limit_error")
        assert re.search(rb"retry-after: \d", heard.head)


def test_no_server_is_an_error_in_the_form_of_the_api() -> None:
    with ServerDouble() as double:
        url = double.url
    with serving(StaticBackends((url,))) as gateway:
        heard = ask(gateway.url, path="/v1/messages", body=MESSAGES)
        assert (heard.status, heard.json["type"], heard.json["error"]["type"]) == (502, "error", "api_error")
        assert "127.0.0.1" not in heard.json["error"]["message"]
