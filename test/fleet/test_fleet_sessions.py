"""Generations that servers hold for clients which may come back: cancelled when nobody waits for them any longer."""

from __future__ import annotations

import http.client
import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
import pytest

from fleets import Watched, running
from llamastream import StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.engine.probe import find_binary
from llamastream.events import InstanceWarning
from llamastream.fleet import questions
from llamastream.fleet.sessions import cancel_all, is_our_question, parse_live
from polling import wait_for

Kind = Literal["embedded", "executable"]
ENDLESS = {"prompt": "a", "ignore_eos": True, "n_predict": 8000, "stream": True, "n_probs": 200}


def leave_behind(engine: Engine, *conversations: str) -> None:
    """Begin a generation for each id, and leave."""
    for each in conversations:
        host, _, port = engine.url.removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        headers = {"Content-Type": "application/json", "X-Conversation-Id": each}
        connection.request("POST", "/completion", msgspec.json.encode(ENDLESS), headers)
        assert connection.getresponse().read(10)
        connection.close()


@pytest.fixture(params=["embedded", "executable"])
def kind(request: pytest.FixtureRequest) -> Kind:
    name: Kind = request.param
    if name == "executable" and find_binary() is None:
        pytest.skip("no llama-server executable in LLAMA_SERVER_BIN or PATH")
    return name


def test_what_a_server_holds_can_be_found_and_cancelled_by_somebody_who_knows_no_id(kind: Kind) -> None:
    with launch(EngineOptions(kind=kind, threads=1, parallel=4)) as engine:
        leave_behind(engine, "one", "two/three", "four five")
        assert questions.load(engine) == 3
        assert cancel_all(engine, 10.0) == 3
        wait_for(lambda: questions.load(engine) == 0)
        assert cancel_all(engine, 10.0) == 0
        assert any(is_our_question(record) for record in engine.logs)


def test_more_than_one_line_of_the_log_can_name(kind: Kind) -> None:
    with launch(EngineOptions(kind=kind, threads=1, parallel=4)) as engine:
        names = [f"{number:04}-{'x' * 3000}" for number in range(4)]
        leave_behind(engine, *names)
        assert cancel_all(engine, 10.0) == 4
        wait_for(lambda: questions.load(engine) == 0)


def test_a_drain_that_is_over_cancels_them_and_the_process_ends_at_once(kind: Kind) -> None:
    options = EngineOptions(kind=kind, threads=1, parallel=2, stop_timeout=30.0)
    with running(options, instances=1, drain_timeout=0.5) as watched:
        engine = watched.fleet.engine("demo-0")
        assert engine is not None
        leave_behind(engine, "left-behind")
        began = time.monotonic()
        assert watched.fleet.restart("demo-0").done.result(60)
        assert time.monotonic() - began < 15, "the old process was waited for"
        told = next(event for event in watched.events if isinstance(event, InstanceWarning) and event.topic == "drain")
        assert told.message.endswith("1 of them were held under an id, and cancelled")
        assert not any("left-behind" in record.message for record in watched.fleet.logs("demo-0"))


def watched_engines(watched: Watched) -> Iterator[tuple[str, Engine]]:
    for backend in watched.fleet.snapshot():
        engine = watched.fleet.engine(backend.id)
        assert engine is not None
        yield backend.id, engine


def test_a_client_that_is_cut_by_the_end_of_a_drain_goes_on_elsewhere() -> None:
    question = [{"role": "user", "content": "Tell me a story."}]
    with (
        running(EngineOptions(parallel=1), instances=2, drain_timeout=0.05) as watched,
        StreamingClient(watched.fleet, temperature=0) as client,
    ):
        # so long that it cannot be over at the deadline
        long: dict[str, Any] = {"max_tokens": 1500, "ignore_eos": True}
        whole = client.chat(question, **long).text
        texts = iter(client.stream_chat(question, logprobs=True, top_logprobs=100, **long))
        begun = next(texts)
        serving = next(id_ for id_, engine in watched_engines(watched) if questions.load(engine))
        assert watched.fleet.restart(serving).done.result(60)
        assert any(isinstance(event, InstanceWarning) and "were cut" in event.message for event in watched.events)
        assert begun + "".join(texts) == whole


@pytest.mark.parametrize(
    ("message", "asked", "ids"),
    [
        ("stop on unknown stream session, conv_id=n matched nothing, 2 live: [a, b]", "n", ["a", "b"]),
        ("stop on unknown stream session, conv_id=n matched nothing, 0 live: []", "n", []),
        ("stop on unknown stream session, conv_id=n matched nothing, 3 live: [a, b, c…", "n", ["a", "b"]),
        ("all slots are idle", "", []),
    ],
)
def test_the_warning_that_names_them(message: str, asked: str, ids: list[str]) -> None:
    assert parse_live(message) == (asked, ids)
