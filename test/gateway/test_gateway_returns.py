"""Requests whose server went away take their turn again: those that have not begun, and those in mid-stream."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
from wires import Heard, ask, dial, hear, request_bytes

from fleets import Watched, running
from gateways import Running, serving
from llamastream.backends import StaticBackends
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import UnavailableError
from llamastream.gateway import GatewaySettings, relay
from llamastream.policy.routing import Report
from llamastream.testing import ChaosProxy, Fault, Reset, Script, ServerDouble, chunked
from polling import wait_for
from ports import free_port

CHAT = "/v1/chat/completions"
STORY = [{"role": "user", "content": "Tell me a story."}]
SHORT: dict[str, Any] = {"messages": STORY, "max_tokens": 5, "temperature": 0}
LONG: dict[str, Any] = {"messages": STORY, "temperature": 0, "ignore_eos": True, "stream": True, "max_tokens": 1500}
ENDLESS = EngineOptions(threads=1, parallel=2)


@contextmanager
def fleet(instances: int, options: EngineOptions = ENDLESS, **changes: Any) -> Iterator[tuple[Watched, Running]]:
    with (
        running(options, instances=instances, wedge_after=30.0, **changes) as watched,
        serving(watched.fleet) as gateway,
    ):
        yield watched, gateway


def text_of(heard: Heard) -> str:
    return "".join(
        choice.get("delta", choice).get("content") or ""
        for event in heard.events
        if isinstance(event, dict)
        for choice in event["choices"]
    )


# -- before the first content -----------------------------------------------------------------------------------------


def test_the_only_server_of_a_model_is_waited_for_whatever_is_asked() -> None:
    """It is down for longer than quick retries take."""
    asked: list[tuple[str, dict[str, Any]]] = [
        (CHAT, {**SHORT, "stream": True}),
        (CHAT, SHORT),
        ("/completion", {"prompt": "Once", "n_predict": 5, "stream": True}),
        ("/v1/messages", SHORT),
        ("/v1/messages", {**SHORT, "stream": True}),
    ]
    with fleet(1, restart_delay=2.0) as (watched, gateway):
        assert ask(gateway.url, body=SHORT).status == 200
        watched.kill(0)
        with ThreadPoolExecutor(len(asked)) as pool:
            answers = list(pool.map(lambda each: ask(gateway.url, path=each[0], body=each[1]), asked))
        assert [answer.status for answer in answers] == [200] * len(asked)
        assert not [answer for answer in answers if b'"error"' in answer.body]
        assert gateway.gateway.lanes.active == gateway.gateway.lanes.waiting == 0


def test_nobody_tells_that_it_is_down_and_it_is_waited_for_all_the_same() -> None:
    """Its address is all that is known: it comes up after requests were refused there."""
    port = free_port()
    late: list[Engine] = []
    with serving(StaticBackends((f"http://127.0.0.1:{port}",))) as gateway, ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(ask, gateway.url, body={**SHORT, "stream": stream}) for stream in (True, False)]
        wait_for(lambda: gateway.gateway.lanes.waiting == 2)  # refused already
        late.append(launch(EngineOptions(threads=1, port=port)).start())
        try:
            assert [answer.result(60).status for answer in answers] == [200, 200]
        finally:
            late[0].stop(0)


def test_it_is_not_waited_for_without_end() -> None:
    with serving(StaticBackends((f"http://127.0.0.1:{free_port()}",)), GatewaySettings(queue_timeout=0.3)) as gateway:
        for stream in (True, False):
            answer = ask(gateway.url, body={**SHORT, "stream": stream})
            assert (answer.status, answer.json["error"]["type"]) == (503, "unavailable_error")
            assert "queue_timeout" in answer.json["error"]["message"]
        assert gateway.gateway.lanes.active == gateway.gateway.lanes.waiting == 0
        wait_for(lambda: len(gateway.served) == 2)
        assert [each.error for each in gateway.served] == [UnavailableError.__name__] * 2


def test_a_timer_that_is_early_is_no_time_for_a_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvloop's may be, by up to a millisecond: a comment then made a stream with an error in it of what is a 503."""
    wait = asyncio.wait

    async def early(*waited: Any, timeout: float | None = None, **more: Any) -> Any:
        return await wait(*waited, timeout=None if timeout is None else max(0.0, timeout - 0.001), **more)

    monkeypatch.setattr(asyncio, "wait", early)
    with serving(StaticBackends((f"http://127.0.0.1:{free_port()}",)), GatewaySettings(queue_timeout=0.1)) as gateway:
        assert ask(gateway.url, body={**SHORT, "stream": True}).status == 503


# -- in mid-stream ----------------------------------------------------------------------------------------------------


def test_a_broken_stream_takes_a_free_slot_and_no_other() -> None:
    """The slots of the server that is left are taken: it goes on from the other one, when that is there again."""
    with fleet(2) as (watched, gateway), ThreadPoolExecutor(2) as pool:
        whole = text_of(ask(gateway.url, body=LONG))
        (lane,) = gateway.gateway.lanes
        admission = lane.admission

        async def hold_one_server() -> str:
            leases = [await admission.enter() for _ in range(4)]
            for lease in leases:
                if lease.id == leases[0].id:
                    admission.leave(lease, Report(0.0))
            return leases[0].id

        gone = asyncio.run_coroutine_threadsafe(hold_one_server(), gateway.loop).result(10)
        begun = threading.Semaphore(0)

        def stream() -> Heard:
            with dial(gateway.url) as connection:
                connection.sendall(request_bytes("POST", CHAT, LONG, Connection="close"))
                first = hear(connection, lambda raw: raw.count(b"data: ") > 20)
                begun.release()
                rest = hear(connection)
            return Heard(first.raw + rest.raw, rest.ended)

        answers = [pool.submit(stream) for _ in range(2)]
        for _ in answers:
            begun.acquire()
        index = [backend.id for backend in watched.fleet.snapshot()].index(gone)
        watched.kill(index)
        heard = [answer.result(60) for answer in answers]
        assert [text_of(each) == whole for each in heard] == [True, True]
        assert [each.instance for each in gateway.served[1:]] == [gone, gone]
        assert [bool(each.recoveries) for each in gateway.served[1:]] == [True, True]
        assert admission.active == 2  # the two that hold the other server
        assert watched.fleet.snapshot()[index].generation == 2


@pytest.mark.parametrize("leave", [False, True])
def test_a_broken_stream_in_line_gets_comments_and_may_leave(leave: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "SIGN_OF_LIFE", 0.2)
    with fleet(1, restart_delay=2.0) as (watched, gateway), dial(gateway.url) as connection:
        connection.sendall(request_bytes("POST", CHAT, LONG, Connection="close"))
        begun = hear(connection, lambda raw: raw.count(b"data: ") > 20)
        watched.kill(0)
        waiting = hear(connection, lambda raw: raw.count(b": waiting\n\n") > 2)
        assert waiting.raw.count(b": waiting\n\n") > 2
        assert gateway.gateway.lanes.waiting == 1
        assert gateway.gateway.lanes.active == 0
        if leave:
            connection.close()
            wait_for(lambda: gateway.gateway.lanes.waiting == 0)
        else:
            rest = hear(connection)
            heard = Heard(begun.raw + waiting.raw + rest.raw, rest.ended)
            assert heard.events[-1] == "[DONE]"
            whole = ask(gateway.url, body=LONG)
            assert text_of(heard) == text_of(whole)
        wait_for(lambda: gateway.gateway.lanes.active == 0)
        watched.wait_all_ready()
        assert ask(gateway.url, body=SHORT).status == 200


def test_a_broken_stream_that_gets_no_slot_in_time_is_told() -> None:
    with (
        running(ENDLESS, instances=1, restart_delay=30.0) as watched,
        serving(watched.fleet, GatewaySettings(queue_timeout=0.5)) as gateway,
        dial(gateway.url) as connection,
    ):
        connection.sendall(request_bytes("POST", CHAT, LONG, Connection="close"))
        begun = hear(connection, lambda raw: raw.count(b"data: ") > 20)
        watched.kill(0)
        rest = hear(connection)
        last = Heard(begun.raw + rest.raw, rest.ended).events[-1]
        assert isinstance(last, dict)
        assert last["error"]["code"] == 503
        wait_for(lambda: len(gateway.served) == 1)
        assert (gateway.served[0].error, gateway.served[0].finish_reason) == ("UnavailableError", "error")
        assert gateway.gateway.lanes.active == gateway.gateway.lanes.waiting == 0


@pytest.mark.parametrize(
    ("path", "request_"),
    [
        (CHAT, {**LONG, "max_tokens": 600, "logprobs": True}),
        (CHAT, {**LONG, "max_tokens": 300, "n": 2, "stream_options": {"include_usage": True}}),
        ("/v1/completions", {"prompt": "Once", **LONG, "max_tokens": 600, "logprobs": 1}),
    ],
)
def test_what_was_asked_for_is_there_after_a_break(engine: Engine, path: str, request_: dict[str, Any]) -> None:
    cut = Reset(after_events=150)

    broken: list[int] = []

    def break_first(number: int, line: str) -> Fault | None:
        if not line.startswith(f"POST {path} ") or broken:
            return None
        broken.append(number)
        return cut

    whole = ask(engine.url, path=path, body=request_)
    with (
        ChaosProxy(engine.url, break_first, everything=True) as proxy,
        serving(StaticBackends((proxy.url,))) as gateway,
    ):
        heard = ask(gateway.url, path=path, body=request_)
        assert any(each.fault is not None for each in proxy.log)
    assert figures(heard) == figures(whole)


def figures(heard: Heard) -> tuple[int, list[Any], set[str]]:
    """How many log probabilities there are, how each choice ended, and the names in the timings."""
    assert heard.events[-1] == "[DONE]"
    events = [event for event in heard.events if isinstance(event, dict)]
    choices = [choice for event in events for choice in event["choices"]]
    probabilities = sum(len((choice.get("logprobs") or {}).get("content", ())) for choice in choices)
    ends = sorted((each["index"], each["finish_reason"]) for each in choices if each["finish_reason"])
    return probabilities, ends, {name for event in events for name in event.get("timings", {})}


# -- what ends a stream -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_object"}, "max_tokens": 2000},
        {"grammar": 'root ::= "Once upon a time there was"'},
    ],
)
def test_an_error_that_comes_again_ends_the_stream_at_once(engine: Engine, more: dict[str, Any]) -> None:
    """The engine gives up where a grammar is at its end and the answer may not be, on every server, each time."""
    request = {"messages": STORY, "stream": True, "temperature": 0, "ignore_eos": True, **more}
    direct = ask(engine.url, body=request).events[-1]
    assert isinstance(direct, dict)
    with (
        ChaosProxy(engine.url, everything=True) as one,
        ChaosProxy(engine.url, everything=True) as other,
        serving(StaticBackends((one.url, other.url))) as gateway,
    ):
        last = ask(gateway.url, body=request).events[-1]
        assert isinstance(last, dict)
        assert last["error"]["code"] == direct["error"]["code"] == 500
        assert "Unexpected empty grammar stack" in last["error"]["message"]
        asked = [each for proxy in (one, other) for each in proxy.log if each.request_line.startswith(f"POST {CHAT} ")]
        assert len(asked) == 2


def test_options_that_are_none_do_no_harm(engine: Engine) -> None:
    with (
        ChaosProxy(engine.url, lambda number, line: Reset(after_events=5) if number < 3 else None) as proxy,
        serving(StaticBackends((proxy.url,))) as gateway,
    ):
        events = ask(gateway.url, body={**LONG, "max_tokens": 50, "stream_options": [1]}).events
        assert any(each.fault is not None for each in proxy.log)
        assert events[-1] == "[DONE]"


@pytest.mark.parametrize("conversation", ["", "kept"])
@pytest.mark.parametrize("where", ["_broke", "_write"])
def test_a_failure_of_the_gateway_itself_is_told_in_the_stream(
    engine: Engine, where: str, conversation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it happens in a callback of the server's connection, whose errors nobody would meet otherwise."""
    genuine: Any = getattr(relay.Relay, where)

    def failing(self: relay.Relay, *given: Any) -> Any:
        if where == "_broke" or self._continuation is not None:
            raise ZeroDivisionError("ours")
        return genuine(self, *given)

    monkeypatch.setattr(relay.Relay, where, failing)
    with (
        ChaosProxy(engine.url, Reset(after_events=20)) as proxy,
        serving(StaticBackends((proxy.url,))) as gateway,
    ):
        heard = ask(gateway.url, body=LONG, X_Conversation_Id=conversation)
        assert len(heard.events) > 10
        last = heard.events[-1]
        assert last["error"]["code"] == 500
        assert "ours" not in last["error"]["message"]
        assert heard.framed.endswith(b"0\r\n\r\n")
        wait_for(lambda: gateway.gateway.lanes.active == 0)


def test_a_stream_that_lacks_only_the_mark_of_its_end_gets_it() -> None:
    delta = {"choices": [{"finish_reason": None, "index": 0, "delta": {"content": "a"}}], "id": "x"}
    last = {"choices": [{"finish_reason": "stop", "index": 0, "delta": {}}], "id": "x"}
    script = Script(chunked([f"data: {json.dumps(each)}\n\n".encode() for each in (delta, last)], end=False))
    with ServerDouble(script) as double, serving(StaticBackends((double.url,))) as gateway:
        heard = ask(gateway.url, body={"messages": STORY, "stream": True})
        assert heard.events == [delta, last, "[DONE]"]
