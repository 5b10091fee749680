"""Streams through the gateway: bytes as they are, breaks that nobody notices, slots that are freed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from wires import ask, dial, hear

from fleets import Watched, running
from gateways import TOOL, Running, serving
from llamastream import StreamingClient
from llamastream.engine import EngineOptions
from llamastream.errors import BadRequestError
from llamastream.gateway import GatewaySettings
from llamastream.types import Timeouts

STORY = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=16), instances=2, wedge_after=30.0) as watched:
        yield watched


@pytest.fixture
def gateway(fleet: Watched) -> Iterator[Running]:
    with serving(fleet.fleet) as there:
        yield there


def plain(url: str, **more: Any) -> StreamingClient:
    """A client that knows nothing of recovery, as any other."""
    return StreamingClient(url, recovery="off", temperature=0, **more)


def body_of(url: str, request: dict[str, Any], path: str = "/v1/chat/completions") -> list[dict[str, Any] | str]:
    """The events of a stream as data."""
    answer = ask(url, path=path, body=request)
    assert answer.status == 200
    return answer.events


def without_what_varies(events: list[Any]) -> list[Any]:
    """Events without ids, times and measurements, which differ from request to request."""
    for event in events:
        if isinstance(event, dict):
            for name in ("id", "created", "timings"):
                event.pop(name, None)
            event.get("usage", {}).pop("prompt_tokens_details", None)
            for choice in event["choices"]:
                for call in choice["delta"].get("tool_calls", ()):
                    call.pop("id", None)
    return events


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": STORY, "stream": True, "temperature": 0},
        {"messages": STORY, "stream": True, "temperature": 0, "stream_options": {"include_usage": True}},
        {"messages": STORY, "stream": True, "max_tokens": 5, "n": 2, "temperature": 0},
        {"messages": STORY, "stream": True, "temperature": 0, "tools": [TOOL], "tool_choice": "required"},
        {"messages": STORY, "stream": True, "temperature": 0, "max_tokens": 4, "logprobs": True},
        {"messages": STORY, "temperature": 0, "max_tokens": 5},
    ],
)
def test_an_answer_is_what_the_server_said(fleet: Watched, gateway: Running, request_: dict[str, Any]) -> None:
    direct = fleet.fleet.snapshot()[0].url
    if request_.get("stream"):
        through, straight = body_of(gateway.url, request_), body_of(direct, request_)
        assert without_what_varies(through) == without_what_varies(straight)
        assert through[-1] == "[DONE]"
    else:
        answers = [ask(url, body=request_).json for url in (gateway.url, direct)]
        assert answers[0]["choices"] == answers[1]["choices"]


@pytest.mark.parametrize("path", ["/v1/completions", "/completion"])
def test_text_completions_pass_too(fleet: Watched, gateway: Running, path: str) -> None:
    request = {"prompt": "Once", "stream": True, "temperature": 0, "n_predict": 8, "max_tokens": 8}
    direct = fleet.fleet.snapshot()[0].url
    for url in (direct, gateway.url):
        events = body_of(url, request, path)
        assert events, url
    assert "".join(map(_text, body_of(gateway.url, request, path))) == "".join(
        map(_text, body_of(direct, request, path))
    )


def _text(event: Any) -> str:
    if not isinstance(event, dict):
        return ""
    return event["content"] if "content" in event else "".join(choice["text"] for choice in event["choices"])


def storm(url: str, streams: int, fault: Any, whole: str) -> list[str | Exception]:
    """So many streams of plain clients, with a fault when some of them have begun; what differs from the whole."""
    begun = threading.Semaphore(0)

    def one() -> str | Exception:
        pieces: list[str] = []
        try:
            with plain(url) as client:
                for text in client.stream_chat(STORY):
                    if not pieces:
                        begun.release()
                    pieces.append(text)
        except Exception as error:  # noqa: BLE001 - whatever it is, the test shows it
            begun.release()
            return error
        return "".join(pieces)

    with ThreadPoolExecutor(streams) as pool:
        found = [pool.submit(one) for _ in range(streams)]
        for _ in range(streams // 4):
            begun.acquire()
        fault()
        return [each.result(60) for each in found if each.result(60) != whole]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_dies_or_freezes_is_not_noticed_by_a_plain_client(number: signal.Signals) -> None:
    changes = {"wedge_after": 0.5, "canary_timeout": 0.5}
    with running(EngineOptions(parallel=25), instances=2, **changes) as watched, serving(watched.fleet) as gateway:
        with plain(gateway.url) as client:
            whole = client.chat(STORY).text
        pid = watched.fleet.snapshot()[0].pid
        assert storm(gateway.url, 50, lambda: os.kill(pid, number), whole) == []
        assert watched.fleet.snapshot()[0].generation == 2 or watched.fleet.snapshot()[0].state != "ready"


def test_a_rolling_restart_is_not_noticed_either() -> None:
    with running(EngineOptions(parallel=25), drain_timeout=0.2) as watched, serving(watched.fleet) as gateway:
        with plain(gateway.url) as client:
            whole = client.chat(STORY).text

        def restart() -> None:
            assert all(order.done.result(60) for order in watched.fleet.restart_all())

        assert storm(gateway.url, 50, restart, whole) == []


@pytest.mark.alone  # the client has to keep up with the server
def test_the_rest_after_a_break_looks_like_the_same_stream(fleet: Watched, gateway: Running) -> None:
    request = {"messages": STORY, "stream": True, "temperature": 0, "stream_options": {"include_usage": True}}
    whole = body_of(gateway.url, request)
    for _ in range(3):
        chunks: list[Any] = []
        generations = [backend.generation for backend in fleet.fleet.snapshot()]
        with plain(gateway.url) as client:
            stream = client.stream_chat(STORY)
            for event in stream.events():
                chunks.append(event)
                if len(chunks) == 20:
                    fleet.kill(victim := gateway.busy())
            result = stream.result()
        usage = next(each["usage"] for each in whole if isinstance(each, dict) and each.get("usage"))
        assert result.usage is not None
        assert result.usage.completion_tokens == usage["completion_tokens"]
        assert result.usage.prompt_tokens == usage["prompt_tokens"]
        assert result.text == "".join(
            each["choices"][0]["delta"].get("content") or ""
            for each in whole
            if isinstance(each, dict) and each["choices"]
        )
        fleet.wait_state(victim, "ready", generations[victim] + 1)


def test_errors_of_the_server_are_passed_on(gateway: Running) -> None:
    with plain(gateway.url) as client, pytest.raises(BadRequestError):
        client.chat([{"role": "user", "content": "x " * 100_000}])
    for malformed in ({"messages": "text"}, {"messages": [1]}, {}):
        answer = ask(gateway.url, body={**malformed, "stream": True})
        assert answer.status >= 400, malformed
        assert answer.json["error"]["message"]
    with dial(gateway.url) as connection:
        connection.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 8\r\n\r\n{no json"
        )
        answer = hear(connection)
    assert (answer.status, answer.json["error"]["type"]) == (400, "invalid_request_error")


def test_a_client_that_leaves_frees_its_slot(fleet: Watched, gateway: Running) -> None:
    def busy() -> int:
        return sum(report.in_flight for report in fleet.fleet.status())

    with plain(gateway.url) as client:
        for _ in range(5):
            stream = client.stream_chat(STORY, ignore_eos=True, max_tokens=8000)
            texts = iter(stream)
            next(texts)
            fleet.wait_for(lambda: busy() == 1, "a slot at work")
            stream.close()
            fleet.wait_for(lambda: busy() == 0, "a free slot")
    fleet.wait_for(lambda: gateway.gateway.lanes.active == 0, "nothing admitted")


def test_no_more_at_work_than_there_are_slots_and_the_rest_in_line() -> None:
    with running(EngineOptions(parallel=1), instances=2) as watched, serving(watched.fleet) as gateway:
        with plain(gateway.url) as client:
            whole = client.chat(STORY).text
        highest = 0

        def look() -> None:
            nonlocal highest
            highest = max(highest, gateway.gateway.lanes.active)

        assert storm(gateway.url, 20, look, whole) == []
        assert highest <= 2
        assert gateway.gateway.lanes.waiting == gateway.gateway.lanes.active == 0


def test_a_full_line_refuses_with_a_time_to_come_back() -> None:
    settings = GatewaySettings(queue_limit=0)
    with (
        running(EngineOptions(parallel=1), instances=1) as watched,
        serving(watched.fleet, settings) as gateway,
        plain(gateway.url) as client,
    ):
        stream = client.stream_chat(STORY, ignore_eos=True, max_tokens=8000)
        texts = iter(stream)
        next(texts)
        answer = ask(gateway.url, body={"messages": STORY, "stream": True})
        assert answer.status == 429
        assert re.search(rb"retry-after: [1-9]", answer.head)
        assert answer.json["error"]["type"] == "rate_limit_error"
        stream.close()


def test_a_slow_reader_holds_up_nobody_and_gets_everything(fleet: Watched, gateway: Running) -> None:
    request = json.dumps({"messages": STORY, "stream": True, "temperature": 0, "ignore_eos": True, "max_tokens": 3000})
    host, port = gateway.url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(request)}\r\n\r\n{request}".encode()
        )
        slow.recv(1)
        with plain(gateway.url, timeouts=Timeouts.all(30)) as client:
            assert client.chat(STORY).text
        received = b""
        while b"[DONE]" not in received[-200:]:
            data = slow.recv(65536)
            assert data
            received += data
        assert received.count(b'"content":"') == 3000


def test_health_and_models(gateway: Running, fleet: Watched) -> None:
    with plain(gateway.url) as client:
        assert client.health().ok
    assert [model["id"] for model in ask(gateway.url, "GET", "/v1/models").json["data"]] == ["demo"]
    fleet.fleet.drain("demo-0").done.result(10)
    fleet.fleet.drain("demo-1").done.result(10)
    with plain(gateway.url) as client:
        assert client.health().status == "loading"


def test_what_does_not_exist_is_a_404(gateway: Running) -> None:
    assert ask(gateway.url, path="/v1/nothing", body={}).status == 404
