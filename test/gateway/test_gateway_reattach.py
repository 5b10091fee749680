"""Clients that lost their connection to the gateway and come back: what they get, until when, and who may not."""

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
from urllib.parse import quote

import pytest
from wires import Heard, ask, dial, hear, numbers, request_bytes

from fleets import Watched, running
from gateways import Running, serving
from llamastream import StreamingClient
from llamastream.backends import StaticBackends
from llamastream.engine import EngineOptions
from llamastream.events import RequestServed
from llamastream.gateway import GatewaySettings
from llamastream.observe.metrics import Metrics
from llamastream.testing import ChaosProxy, HalfClose, NumberedServer, Reset, Stall
from llamastream.types import Timeouts
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
LONG = {"messages": STORY, "temperature": 0, "stream": True, "ignore_eos": True, "max_tokens": 3000}
ANNA, BERT = "sk-anna-0123456789", "sk-bert-0123456789"


@pytest.fixture(scope="module")
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=8), instances=1) as watched:
        yield watched


@pytest.fixture
def gateway(fleet: Watched) -> Iterator[Running]:
    with serving(fleet.fleet) as there:
        yield there


def begin(url: str, id_: str, body: dict[str, Any] = LONG, key: str = "") -> Heard:
    """Hear the beginning of an answer, and hang up."""
    with dial(url) as connection:
        head = {"X-Conversation-Id": id_, "Authorization": f"Bearer {key}"}
        connection.sendall(request_bytes("POST", "/v1/chat/completions", body, **head))
        return hear(connection, lambda raw: raw.count(b'"content":"') >= 3)


def come_back(url: str, id_: str, start: int = 0, key: str = "") -> Heard:
    return ask(url, "GET", f"/v1/stream?conv_id={quote(id_)}&from={start}", Authorization=f"Bearer {key}")


def drop(url: str, id_: str, key: str = "") -> int:
    return ask(url, "DELETE", f"/v1/stream?conv_id={quote(id_)}", Authorization=f"Bearer {key}").status


def look_up(url: str, *ids: str, key: str = "") -> Any:
    return ask(url, path="/v1/streams/lookup", body={"conversation_ids": ids}, Authorization=f"Bearer {key}").json


def content(body: bytes) -> str:
    events = [block.removeprefix(b"data: ") for block in body.split(b"\n\n") if block.startswith(b"data: {")]
    choices = [json.loads(event)["choices"] for event in events]
    return "".join(choice[0]["delta"].get("content") or "" for choice in choices if choice)


def test_the_rest_is_there_to_the_byte_wherever_it_is_taken_up(gateway: Running) -> None:
    whole_text = content(ask(gateway.url, body=LONG).body)
    first = begin(gateway.url, "a")
    got = first.body
    rest = come_back(gateway.url, "a", len(got))
    assert rest.status == 200
    assert content(got + rest.body) == whole_text
    assert (got + rest.body).endswith(b"data: [DONE]\n\n")
    again = come_back(gateway.url, "a")
    assert again.body == got + rest.body
    for cut in (1, 100, len(again.body) - 3):
        assert come_back(gateway.url, "a", cut).body == again.body[cut:]
    assert come_back(gateway.url, "a", len(again.body)).body == b""
    assert gateway.gateway.sharing.held.reattached == 6


def test_who_has_more_than_there_is_is_told(gateway: Running) -> None:
    total = len(ask(gateway.url, body={**LONG, "max_tokens": 5}, X_Conversation_Id="a").body)
    beyond = come_back(gateway.url, "a", total + 1)
    assert (beyond.status, f"there are {total} bytes" in beyond.json["error"]["message"]) == (416, True)
    assert ask(gateway.url, "HEAD", f"/v1/stream?conv_id=a&from={total + 1}").status == 416
    assert ask(gateway.url, "HEAD", f"/v1/stream?conv_id=a&from={total}").status == 200
    begin(gateway.url, "b", {**LONG, "max_tokens": 8000})
    assert come_back(gateway.url, "b", 99_999_999).status == 416  # while it runs
    assert gateway.gateway.sharing.held.reattached == 0


@pytest.mark.parametrize("fault", [Reset(after_events=7), HalfClose(after_events=7), Stall(after_events=7)])
def test_our_own_client_takes_its_stream_up_again(fault: Any) -> None:
    """Numbered tokens show what is lost or comes twice."""
    with (
        NumberedServer(tokens=60, delay=0.002) as server,
        serving(StaticBackends((server.url,))) as gateway,
        ChaosProxy(gateway.url, fault) as proxy,
        StreamingClient(proxy.url, timeouts=Timeouts(content_idle=1.0), recovery="reattach") as client,
    ):
        result = client.chat(STORY, max_tokens=100)
        assert result.text == numbers(0, 60)
        assert [each.kind for each in result.stats.recoveries] == ["reattach"]
        assert server.generations == 1
        wait_for(lambda: len(gateway.gateway.sharing.held) == 0)  # the client has it dropped afterwards


def test_our_own_client_on_the_real_server(gateway: Running) -> None:
    with StreamingClient(gateway.url, temperature=0, recovery="off") as client:
        whole = client.chat(STORY, max_tokens=1500, ignore_eos=True).text
    with (
        ChaosProxy(gateway.url, Reset(after_events=300), Reset(after_events=5)) as proxy,
        StreamingClient(proxy.url, temperature=0, recovery="reattach") as client,
    ):
        for _ in range(2):
            result = client.chat(STORY, max_tokens=1500, ignore_eos=True)
            assert result.text == whole
            assert [each.kind for each in result.stats.recoveries] == ["reattach"]
    assert gateway.gateway.lanes.admitted == 3


def test_a_server_that_goes_down_while_the_client_is_away_is_not_noticed() -> None:
    """The rest comes from another one, and the client returns to all numbers, each once."""
    body = {"messages": STORY, "stream": True, "max_tokens": 500}
    with (
        NumberedServer(tokens=200, gate=True) as one,
        NumberedServer(tokens=200) as other,
        serving(StaticBackends((one.url, other.url))) as gateway,
    ):
        one.release(10)
        first = begin(gateway.url, "a", body)
        one.close()
        rest = come_back(gateway.url, "a", len(first.body))
        assert content(first.body + rest.body) == numbers(0, 200)
        assert rest.body.endswith(b"data: [DONE]\n\n")
        assert (one.generations, other.generations) == (1, 1)


def test_a_server_that_is_killed_while_its_clients_are_away_is_not_noticed() -> None:
    body = {"messages": STORY, "stream": True, "temperature": 0}
    metrics = Metrics()
    with (
        running(EngineOptions(parallel=25), instances=2) as watched,
        serving(watched.fleet, metrics=metrics) as gateway,
        ThreadPoolExecutor(40) as pool,
    ):
        whole = content(ask(gateway.url, body=body).body)
        killed = threading.Event()

        def one(number: int) -> str:
            with dial(gateway.url) as connection:
                head = {"X-Conversation-Id": f"a{number}"}
                connection.sendall(request_bytes("POST", "/v1/chat/completions", body, **head))
                first = hear(connection, lambda raw: b'"content":"' in raw)
            if number == 10:
                os.kill(watched.fleet.snapshot()[0].pid, signal.SIGKILL)
                killed.set()
            assert killed.wait(30)
            return content(first.body + come_back(gateway.url, f"a{number}", len(first.body)).body)

        assert {*pool.map(one, range(40))} == {whole}
        mended = sum(count for _, count in metrics.series.counters("recoveries"))
        asked, _ = records(gateway, 41)
        assert sum(len(each.recoveries) for each in asked) == mended > 0


def test_what_is_no_stream_of_recovery_can_be_taken_up_too(gateway: Running) -> None:
    body = {"prompt": "Once", "temperature": 0, "stream": True, "n_predict": 500, "ignore_eos": True}
    first = ask(gateway.url, path="/completion", body=body, enough=lambda raw: b"content" in raw, X_Conversation_Id="c")
    rest = come_back(gateway.url, "c", len(first.body))
    assert b'"stop":true' in rest.body
    assert b"".join((first.body, rest.body)) == come_back(gateway.url, "c").body


def test_nobody_reads_drops_or_sees_what_belongs_to_another_key(fleet: Watched) -> None:
    settings = GatewaySettings(api_keys=f"{ANNA} {BERT}")
    with serving(fleet.fleet, settings) as gateway:
        first = begin(gateway.url, "same", key=ANNA)
        nothing = come_back(gateway.url, "never", key=BERT)
        hers = come_back(gateway.url, "same", key=BERT)
        assert (hers.status, hers.body) == (404, nothing.body)
        assert look_up(gateway.url, "same", key=BERT) == []
        assert drop(gateway.url, "same", key=BERT) == drop(gateway.url, "never", key=BERT) == 204
        assert come_back(gateway.url, "same").status == 401
        # an id of her own, which takes nothing away
        begin(gateway.url, "same", {**LONG, "max_tokens": 5}, key=BERT)
        rest = come_back(gateway.url, "same", len(first.body), key=ANNA)
        assert rest.body.endswith(b"data: [DONE]\n\n")
        assert [each["conversation_id"] for each in look_up(gateway.url, "same", "other", key=ANNA)] == ["same"]


def test_a_server_never_sees_the_ids_of_clients() -> None:
    with NumberedServer(tokens=20) as server, serving(StaticBackends((server.url,))) as gateway:
        for id_ in ("mine", "llamastream-" + "0" * 32):
            answer = ask(gateway.url, body={"messages": STORY, "stream": True, "max_tokens": 50}, X_Conversation_Id=id_)
            assert answer.joined() == numbers(0, 20)
        seen = [each.headers.get("x-conversation-id", "") for each in server.requests if each.path.endswith("ions")]
        assert len(set(seen)) == 2
        assert all(re.fullmatch("llamastream-[0-9a-f]{32}", each) and each[-32:] != "0" * 32 for each in seen)


def records(gateway: Running, count: int) -> tuple[list[RequestServed], list[RequestServed]]:
    """What became of requests for an answer, once there are so many records, and of clients that came back."""
    wait_for(lambda: sum(each.method == "POST" for each in gateway.served) >= count)
    asked = [each for each in gateway.served if each.method == "POST"]
    return asked, [each for each in gateway.served if each.method == "GET"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", LONG),
        ("/completion", {"prompt": "Once", "temperature": 0, "stream": True, "n_predict": 3000, "ignore_eos": True}),
    ],
)
def test_what_goes_on_without_its_client_is_on_record_when_it_ends(
    fleet: Watched, path: str, body: dict[str, Any]
) -> None:
    metrics = Metrics()
    with serving(fleet.fleet, metrics=metrics) as gateway:
        first = ask(
            gateway.url, path=path, body=body, enough=lambda raw: b'"content":"' in raw, X_Conversation_Id="counted"
        )
        wait_for(lambda: gateway.gateway.sharing.held.detached == 1)
        assert gateway.served == []
        rest = come_back(gateway.url, "counted", len(first.body))
        come_back(gateway.url, "counted")
        wait_for(lambda: len(gateway.served) == 3)
        (asked,), back = records(gateway, 1)
        assert (asked.route, asked.status, asked.finish_reason, asked.error) == (path, 200, "length", "")
        assert asked.completion_tokens == 3000
        assert asked.instance
        assert [(each.completion_tokens, each.finish_reason) for each in back] == [(None, ""), (None, "")]
        assert rest.body
        assert sum(count for _, count in metrics.series.counters("completion_tokens")) == 3000


def test_a_break_while_the_client_is_away_is_on_its_record() -> None:
    body = {"messages": STORY, "stream": True, "max_tokens": 500}
    with (
        NumberedServer(tokens=200, gate=True) as one,
        NumberedServer(tokens=200) as other,
        serving(StaticBackends((one.url, other.url))) as gateway,
    ):
        one.release(10)
        begin(gateway.url, "a", body)
        wait_for(lambda: gateway.gateway.sharing.held.detached == 1)
        one.close()
        (asked,), _ = records(gateway, 1)
        assert (asked.finish_reason, len(asked.recoveries)) == ("stop", 1)


def test_what_nobody_came_back_for_is_on_record_as_cancelled(fleet: Watched) -> None:
    with serving(fleet.fleet, GatewaySettings(detach_grace=0.2)) as gateway:
        begin(gateway.url, "a", {**LONG, "max_tokens": 8000})
        (asked,), _ = records(gateway, 1)
        assert (asked.status, asked.finish_reason, asked.error) == (200, "cancelled", "")
        assert asked.duration > 0.2


def test_the_stop_of_a_gateway_puts_on_record_what_nobody_reads(fleet: Watched) -> None:
    with serving(fleet.fleet) as gateway:
        begin(gateway.url, "a", {**LONG, "max_tokens": 8000})
        wait_for(lambda: gateway.gateway.sharing.held.detached == 1)
    assert [each.finish_reason for each in gateway.served] == ["cancelled"]


def test_lookup_says_how_far_it_is(gateway: Running) -> None:
    first = begin(gateway.url, "a::demo")
    (found,) = look_up(gateway.url, "a")
    assert found["conversation_id"] == "a::demo"
    assert (found["is_done"], found["completed_at"]) == (False, 0)
    assert found["total_bytes"] >= len(first.body)
    whole = come_back(gateway.url, "a::demo")
    (found,) = look_up(gateway.url, "a::demo")
    assert (found["is_done"], found["total_bytes"]) == (True, len(whole.body))
    assert found["completed_at"] >= found["started_at"] > 1_700_000_000
    assert look_up(gateway.url, "b", "") == []
    wrong = ask(gateway.url, path="/v1/streams/lookup", body={"conversation_ids": "a"})
    assert (wrong.status, "conversation_ids" in wrong.json["error"]["message"]) == (400, True)


def test_delete_ends_a_stream_for_those_who_read_it_and_frees_the_slot(gateway: Running, fleet: Watched) -> None:
    with dial(gateway.url) as connection:
        head = {"X-Conversation-Id": "a", "Connection": "close"}
        connection.sendall(request_bytes("POST", "/v1/chat/completions", {**LONG, "max_tokens": 8000}, **head))
        first = hear(connection, lambda raw: b'"content":"' in raw)
        assert drop(gateway.url, "a") == 204
        rest = hear(connection)
    assert rest.ended == "closed"
    assert rest.raw.endswith(b"0\r\n\r\n")
    assert b"[DONE]" not in first.raw + rest.raw
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    fleet.wait_for(lambda: fleet.fleet.status()[0].in_flight == 0, "a free slot")
    assert come_back(gateway.url, "a").status == 404
    assert gateway.gateway.sharing.held.used == 0


def test_nobody_comes_back_so_the_slot_is_freed(fleet: Watched) -> None:
    with serving(fleet.fleet, GatewaySettings(detach_grace=0.2)) as gateway:
        begin(gateway.url, "a", {**LONG, "max_tokens": 8000})
        assert gateway.gateway.lanes.active == 1
        wait_for(lambda: gateway.gateway.lanes.active == 0)
        fleet.wait_for(lambda: fleet.fleet.status()[0].in_flight == 0, "a free slot")
        assert come_back(gateway.url, "a").status == 404
        assert gateway.gateway.sharing.held.used == 0


def test_the_end_is_kept_for_a_while_and_no_longer(fleet: Watched) -> None:
    with serving(fleet.fleet, GatewaySettings(replay_ttl=0.3)) as gateway:
        answer = ask(gateway.url, body={**LONG, "max_tokens": 5}, X_Conversation_Id="a")
        assert come_back(gateway.url, "a").body == answer.body
        wait_for(lambda: len(gateway.gateway.sharing.held) == 0)
        assert come_back(gateway.url, "a").status == 404
        assert gateway.gateway.sharing.held.used == 0


def test_without_an_id_a_hang_up_still_ends_it_at_once(gateway: Running) -> None:
    ask(gateway.url, body={**LONG, "max_tokens": 8000}, enough=lambda raw: b'"content":"' in raw)
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    assert len(gateway.gateway.sharing.held) == 0


def test_the_same_id_again_ends_what_was_there(gateway: Running) -> None:
    begin(gateway.url, "a", {**LONG, "max_tokens": 8000})
    short = ask(gateway.url, body={**LONG, "max_tokens": 5}, X_Conversation_Id="a")
    assert come_back(gateway.url, "a").body == short.body
    wait_for(lambda: gateway.gateway.lanes.active == 0)


def test_of_a_long_stream_the_end_is_kept(fleet: Watched) -> None:
    with serving(fleet.fleet, GatewaySettings(replay_bytes=65536)) as gateway:
        first = begin(gateway.url, "a")
        wait_for(lambda: look_up(gateway.url, "a")[0]["is_done"])
        total = look_up(gateway.url, "a")[0]["total_bytes"]
        assert total > 200_000
        lost = come_back(gateway.url, "a", len(first.body))
        assert (lost.status, "is lost" in lost.json["error"]["message"]) == (400, True)
        rest = come_back(gateway.url, "a", total - 65536)
        assert rest.body.endswith(b"data: [DONE]\n\n")
        assert len(rest.body) == 65536
        assert gateway.gateway.sharing.held.used < 80_000


def test_all_streams_together_are_bounded(fleet: Watched) -> None:
    with serving(fleet.fleet, GatewaySettings(replay_memory=300_000)) as gateway:
        for number in range(12):
            ask(gateway.url, body={**LONG, "max_tokens": 400}, X_Conversation_Id=f"a{number}")
            assert gateway.gateway.sharing.held.used <= 300_000
        there = [each["conversation_id"] for each in look_up(gateway.url, *(f"a{n}" for n in range(12)))]
        assert 1 <= len(there) < 12
        assert there[-1] == "a11"  # the oldest went


def test_a_slow_reader_of_a_held_stream_gets_everything(fleet: Watched) -> None:
    """More than a socket's buffers hold, and more than is kept: who is there and slow makes the server wait."""
    with serving(fleet.fleet, GatewaySettings(replay_bytes=65536)) as gateway:
        body = {**LONG, "max_tokens": 3000, "logprobs": True, "top_logprobs": 20}
        host, port = gateway.url.removeprefix("http://").split(":")
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect((host, int(port)))
            head = {"X-Conversation-Id": "a", "Connection": "close"}
            connection.sendall(request_bytes("POST", "/v1/chat/completions", body, **head))
            first = hear(connection, lambda raw: len(raw) > 1000)
            wait_for(lambda: gateway.gateway.sharing.held.used > 1_000_000)
            rest = hear(connection)
        whole = Heard(first.raw + rest.raw, rest.ended)
        assert whole.events[-1] == "[DONE]"
        assert len(whole.choices) >= 3000


def test_errors_are_told_to_those_who_come_back(gateway: Running) -> None:
    body = {**LONG, "messages": [{"role": "user", "content": "x " * 100_000}]}
    answer = ask(gateway.url, body=body, X_Conversation_Id="a")
    assert answer.status == 400
    again = come_back(gateway.url, "a", 10)
    assert (again.status, again.body) == (400, answer.body)


@pytest.mark.parametrize(
    ("path", "status", "says"),
    [
        ("/v1/stream", 400, "conv_id"),
        ("/v1/stream?conv_id=", 400, "conv_id"),
        ("/v1/stream?conv_id=never", 404, "no such stream"),
        ("/v1/stream?conv_id=never&from=-1", 400, "from = '-1' is not allowed"),
        ("/v1/stream?conv_id=never&from=x", 400, "allowed: a number of bytes"),
    ],
)
def test_what_makes_no_sense_is_told(gateway: Running, path: str, status: int, says: str) -> None:
    answer = ask(gateway.url, "GET", path)
    assert (answer.status, says in answer.json["error"]["message"]) == (status, True)


def test_an_id_that_is_too_long_is_refused(gateway: Running) -> None:
    answer = ask(gateway.url, body=LONG, X_Conversation_Id="x" * 257)
    assert (answer.status, "256" in answer.json["error"]["message"]) == (400, True)


def raw_id(url: str, id_: bytes) -> Heard:
    with dial(url) as connection:
        request = request_bytes("POST", "/v1/chat/completions", {**LONG, "max_tokens": 5}, X_Conversation_Id="@")
        connection.sendall(request.replace(b": @\r\n", b": " + id_ + b"\r\n"))
        return hear(connection, lambda raw: raw.endswith((b"data: [DONE]\n\n\r\n0\r\n\r\n", b"}")))


def test_an_id_may_be_any_text_and_must_be_utf_8(gateway: Running) -> None:
    name = "a b/ü::日本"
    first = raw_id(gateway.url, name.encode())
    assert first.status == 200
    assert come_back(gateway.url, name).body == first.body
    assert [each["conversation_id"] for each in look_up(gateway.url, "a b/ü")] == [name]
    assert drop(gateway.url, name) == 204
    assert look_up(gateway.url, name) == []
    latin = raw_id(gateway.url, name[:5].encode("latin-1"))
    assert (latin.status, "not UTF-8" in latin.json["error"]["message"]) == (400, True)
    assert len(gateway.gateway.sharing.held) == 0


def test_two_may_read_at_the_same_time(gateway: Running) -> None:
    with dial(gateway.url) as one, dial(gateway.url) as other:
        head = {"X-Conversation-Id": "a", "Connection": "close"}
        one.sendall(request_bytes("POST", "/v1/chat/completions", LONG, **head))
        first = hear(one, lambda raw: b'"content":"' in raw)
        other.sendall(request_bytes("GET", "/v1/stream?conv_id=a", Connection="close"))
        second = hear(other)
        rest = hear(one)
    assert Heard(first.raw + rest.raw, rest.ended).body == second.body


def test_the_gateway_stops_with_streams_that_nobody_reads(fleet: Watched) -> None:
    with serving(fleet.fleet) as gateway:
        begin(gateway.url, "a", {**LONG, "max_tokens": 8000})
    fleet.wait_for(lambda: fleet.fleet.status()[0].in_flight == 0, "a free slot")
