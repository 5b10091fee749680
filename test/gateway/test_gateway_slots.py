"""The gateway chooses the slots of servers that only it can reach: conversations stay in theirs, and nobody waits for
one that works while another is free."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from wires import CHAT, Heard, ask, dial, hear, request_bytes

from fleets import Watched, running
from gateways import Running, serving
from llamastream.backends import Backend
from llamastream.engine import EngineOptions
from llamastream.fleet import Pool
from llamastream.fleet.behind import SIMILARITY, behind
from llamastream.gateway import GatewaySettings
from llamastream.gateway.admission import Admission
from llamastream.gateway.seating import ours, placeable
from llamastream.policy.slots import Slots
from llamastream.protocol.requests import in_slot
from polling import wait_for

SYSTEM = "You know all about slots, tokens, caches, prompts, streams and servers. " * 20
"""Much longer than all that is said after it."""
BARE = EngineOptions(parallel=2, threads=1, cache_ram=0, slot_prompt_similarity=0.1)
"""Servers that lose what a slot loses, and choose as they do by themselves."""
STORY = {
    "messages": [{"role": "user", "content": "Tell me a story."}],
    "stream": True,
    "temperature": 0,
    "ignore_eos": True,
}


@contextmanager
def private(
    directory: Path, instances: int = 1, options: EngineOptions = BARE, **settings: Any
) -> Iterator[tuple[Watched, Running]]:
    """Servers on sockets, as behind a gateway, and one before them."""
    pools = behind([Pool(name="demo", options=options, instances=instances)], directory)
    with (
        running(list(pools), instances=instances, wedge_after=30.0) as watched,
        serving(watched.fleet, GatewaySettings(**settings)) as gateway,
    ):
        yield watched, gateway


def admission(gateway: Running) -> Admission:
    (lane,) = gateway.gateway.lanes
    return lane.admission


def seats(gateway: Running, number: int = 0) -> Slots | None:
    return admission(gateway).scheduler.router.instance(number).seats


def settled(gateway: Running) -> None:
    """Until it is known of each slot whether it is free."""
    wait_for(lambda: not admission(gateway).scheduler.router.unsure)


def turn(gateway: Running, talk: list[dict[str, Any]], question: str) -> tuple[int, int]:
    """One more question; tokens of the prompt, and of these in the cache."""
    talk.append({"role": "user", "content": question})
    answer = ask(gateway.url, body={"messages": talk, "stream": True, "temperature": 0, "max_tokens": 8})
    assert answer.finish_reason is not None, answer.raw
    talk.append({"role": "assistant", "content": answer.joined()})
    (timings,) = [event["timings"] for event in answer.events if event != "[DONE]" and "timings" in event]
    return timings["cache_n"] + timings["prompt_n"], timings["cache_n"]


@pytest.mark.parametrize("choice", ["auto", "off"])
def test_a_conversation_is_found_again_though_another_shares_its_system_prompt(tmp_path: Path, choice: str) -> None:
    with private(tmp_path, slot_choice=choice) as (_, gateway):
        one, other = ([{"role": "system", "content": SYSTEM}] for _ in range(2))
        first, _ = turn(gateway, one, "What is a slot? Say it in one sentence, please, and name its parts.")
        settled(gateway)
        turn(gateway, other, "Who are you?")
        again, cached = turn(gateway, one, "And a token?")
        assert again > first
        if choice == "auto":
            assert cached >= first - 1  # of the prompt before; the answer may be cut into other tokens
        else:
            assert cached < first - 1  # the server put the other conversation over it, with a slot free beside


@pytest.mark.parametrize("similarity", [None, 0.1])
def test_what_a_slot_loses_is_found_again_in_the_servers_cache(tmp_path: Path, similarity: float | None) -> None:
    """As `serve` starts them, and as llama-server does by itself: two conversations take the one slot in turn."""
    options = EngineOptions(parallel=1, threads=1, cache_ram=64, slot_prompt_similarity=similarity)
    with private(tmp_path, options=options) as (watched, gateway):
        assert watched.fleet.pools[0].options.slot_prompt_similarity == (similarity or SIMILARITY)
        talks = [[{"role": "system", "content": SYSTEM[:700]}] for _ in range(2)]
        question = "What is a slot? Say it in one sentence, please, and name its parts. " * 4
        before = [turn(gateway, talk, f"{number} {question}")[0] for number, talk in enumerate(talks)]
        for talk, tokens in zip(talks, before, strict=True):
            _, cached = turn(gateway, talk, "And a token?")
            assert (cached > 0.9 * tokens) is (similarity is None)


@pytest.mark.parametrize("slot", [0, 1])
def test_the_clients_own_slot_is_kept(tmp_path: Path, slot: int) -> None:
    with private(tmp_path) as (_, gateway):
        body = {"prompt": "Once", "n_predict": 2, "temperature": 0}
        for _ in range(3):
            assert ask(gateway.url, path="/completion", body={**body, "id_slot": slot}).json["id_slot"] == slot
        settled(gateway)
        chosen = ask(gateway.url, path="/completion", body=body).json["id_slot"]
        assert ask(gateway.url, path="/completion", body=body).json["id_slot"] == chosen


def begun(gateway: Running, connection: Any, tokens: int) -> Heard:
    connection.sendall(request_bytes("POST", CHAT, {**STORY, "max_tokens": tokens}, Connection="close"))
    return hear(connection, lambda raw: raw.count(b"data: ") > 20)


def at_work(watched: Watched, instance: str) -> list[int]:
    """The slots of an instance that work."""
    engine = watched.fleet.engine(instance)
    assert engine is not None
    return [each["id"] for each in json.loads(engine.address.get("/slots")[1]) if each["is_processing"]]


@pytest.mark.alone  # what two servers do at the same time is compared
def test_a_stream_that_goes_on_elsewhere_does_not_wait_for_the_slot_that_it_had(tmp_path: Path) -> None:
    options = replace(BARE, ctx_size=4096)
    with (
        private(tmp_path, instances=2, options=options, routing="round-robin") as (watched, gateway),
        dial(gateway.url) as mine,
        dial(gateway.url) as other,
    ):
        for _ in range(2):
            assert ask(gateway.url, body={**STORY, "max_tokens": 2}).status == 200
            settled(gateway)
        first = begun(gateway, mine, 1500)
        begun(gateway, other, 3900)
        ids = [each.id for each in watched.fleet.snapshot()]
        working = [at_work(watched, each) for each in ids]
        assert working[0] == working[1], "both have the same slot of their servers"
        assert len(working[0]) == 1
        watched.kill(next(n for n, each in enumerate(ids) if b"x-llamastream-instance: " + each.encode() in first.head))
        rest = hear(mine)
        answer = Heard(first.raw + rest.raw, rest.ended)
        assert answer.finish_reason == "length"
        wait_for(lambda: len(gateway.served) == 3)
        assert gateway.served[2].recoveries
        assert gateway.gateway.lanes.active == 1, "the other still runs, in the slot that would have been waited for"


def test_a_slot_whose_client_left_is_used_again_once_it_is_seen_idle(tmp_path: Path) -> None:
    with private(tmp_path) as (_, gateway):
        assert ask(gateway.url, body={**STORY, "max_tokens": 2}).status == 200
        settled(gateway)
        with dial(gateway.url) as connection:
            begun(gateway, connection, 2000)
        wait_for(lambda: gateway.gateway.lanes.active == 0)
        settled(gateway)
        both = seats(gateway)
        assert both is not None
        assert not both.unsure
        body = {"prompt": "Once", "n_predict": 2, "temperature": 0}
        assert ask(gateway.url, path="/completion", body=body).status == 200


def test_servers_that_others_can_reach_choose_themselves() -> None:
    with running(BARE, instances=1, wedge_after=30.0) as watched, serving(watched.fleet) as gateway:
        assert ask(gateway.url, body={**STORY, "max_tokens": 2}).status == 200
        assert seats(gateway) is None


# -- parts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body", "can"),
    [
        (CHAT, {"messages": [], "n": 1}, True),
        (CHAT, {"messages": []}, True),
        (CHAT, {"messages": [], "n": 2}, False),
        (CHAT, {"messages": [], "id_slot": 0}, False),
        (CHAT, {"messages": [], "id_slot": -1}, False),
        ("/completion", {"prompt": "a"}, True),
        ("/completion", {"prompt": [1, 2]}, True),
        ("/completion", {"prompt": ["a", "b"]}, False),
        ("/completion", {"prompt": [[1], [2]]}, False),
        ("/completion", {"prompt": "a", "n_cmpl": 2}, False),
        ("/v1/responses", {"input": "a"}, True),
        ("/v1/messages", {"messages": []}, False),
        ("/v1/embeddings", {"input": "a"}, False),
    ],
)
def test_which_requests_can_be_put_into_a_slot(path: str, body: dict[str, Any], can: bool) -> None:
    assert placeable(path, body) is can


@pytest.mark.parametrize(
    ("choice", "private", "tasks", "chosen"),
    [
        ("auto", True, ("generate",), True),
        ("auto", False, ("generate",), False),
        ("on", False, ("generate",), True),
        ("off", True, ("generate",), False),
        ("on", True, (), False),
        ("on", True, ("embed",), False),
    ],
)
def test_which_servers_slots_are_chosen(choice: Any, private: bool, tasks: Any, chosen: bool) -> None:
    assert ours(Backend(id="a", url="unix:///a.sock", private=private, tasks=tasks), choice) is chosen


def test_nothing_else_of_the_body_changes() -> None:
    assert in_slot(b'{"prompt": "a"}', 3) == b'{"id_slot":3,"prompt": "a"}'
    assert in_slot(b' \n{ "prompt": {"a": "{"}}', 0) == b' \n{"id_slot":0, "prompt": {"a": "{"}}'
