"""Other options for a fleet that runs."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest

from fleets import Watched, quick, running
from llamastream import StreamingClient
from llamastream.engine import EngineOptions
from llamastream.errors import EngineMemoryError
from llamastream.events import InstanceWarning
from llamastream.fleet import Fleet, Pool
from ports import free_port, free_ports

STORY = [{"role": "user", "content": "Tell me a story."}]


def slots(watched: Watched) -> list[int]:
    return [backend.slots for backend in watched.fleet.snapshot()]


def test_the_number_of_instances_stays() -> None:
    with running(EngineOptions(parallel=2), instances=2) as watched:
        assert watched.fleet.reload(EngineOptions(parallel=2)) == []
        for order in watched.fleet.reload(EngineOptions(parallel=3)):
            assert order.done.result(30)
        assert slots(watched) == [3, 3]


def test_a_reload_that_is_taken_back_is_taken_back() -> None:
    with running(EngineOptions(parallel=2), instances=2, drain_timeout=1.0) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url) as client:
            texts = iter(client.stream_chat(STORY, ignore_eos=True, max_tokens=8000))
            next(texts)
            watched.fleet.reload(EngineOptions(parallel=3))
            watched.wait_state(0, "draining")
            watched.fleet.reload(EngineOptions(parallel=2))
        watched.wait_for(lambda: slots(watched) == [2, 2] and watched.fleet.snapshot()[0].generation >= 2, "two slots")
        watched.wait_for(lambda: all(backend.routable for backend in watched.fleet.snapshot()), "all ready")
        assert slots(watched) == [2, 2]


def test_one_that_is_no_longer_wanted_finishes_what_it_has_also_when_the_fleet_stops() -> None:
    pools = [Pool(name="a", options=EngineOptions()), Pool(name="b", options=EngineOptions())]
    with running(pools) as watched:
        with StreamingClient(watched.fleet.snapshot()[1].url, temperature=0, recovery="off") as client:
            whole = client.chat(STORY).text
            texts = iter(client.stream_chat(STORY))
            begun = next(texts)
            watched.fleet.reload(pools[:1])
            assert [report.id for report in watched.fleet.status()] == ["a-0", "b-0"]
            stopping = threading.Thread(target=watched.fleet.stop)
            stopping.start()
            assert begun + "".join(texts) == whole
            stopping.join(30)
        assert [report.state for report in watched.fleet.status()] == ["stopped"]


def test_a_directory_for_slots_of_the_users_own_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "slot-0.bin").write_bytes(b"mine")
    options = EngineOptions(slot_save_path=str(tmp_path))
    with running(options, instances=1, warm=True) as watched, StreamingClient(watched.fleet) as client:
        client.chat(STORY, max_tokens=4)
        assert watched.fleet.restart("demo-0").done.result(30)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("slot-0.bin", b"mine")]


def test_one_that_is_drained_while_it_starts_does_not_hold_up_the_start() -> None:
    fleet = Fleet(instances=2, settings=quick())
    drained = threading.Event()

    def drain() -> None:
        if fleet.snapshot() and not drained.is_set():
            drained.set()
            fleet.drain("demo-0")

    fleet.subscribe(drain)
    try:
        fleet.start()
        assert {backend.state for backend in fleet.snapshot()} <= {"draining", "ready"}
        assert drained.is_set()
    finally:
        fleet.stop(drain=False)


def test_one_that_freezes_while_it_drains_is_not_waited_for() -> None:
    changes = {"drain_timeout": 60.0, "wedge_after": 0.5, "canary_timeout": 0.5}
    with running(EngineOptions(parallel=1), instances=1, **changes) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url, recovery="off") as client:
            texts = iter(client.stream_chat(STORY, ignore_eos=True, max_tokens=8000))
            next(texts)
            began = time.monotonic()
            order = watched.fleet.restart("demo-0")
            watched.wait_state(0, "draining")
            pid = watched.fleet.snapshot()[0].pid
            os.kill(pid, signal.SIGSTOP)
            assert order.done.result(50)
        assert time.monotonic() - began < 40
        assert not psutil.pid_exists(pid)
        assert any(isinstance(event, InstanceWarning) and "hangs" in event.message for event in watched.events)


def test_several_who_want_the_same_restart_all_hear_that_it_is_done() -> None:
    with running(EngineOptions(parallel=1), instances=1, drain_timeout=5.0) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url, recovery="off") as client:
            texts = iter(client.stream_chat(STORY))
            next(texts)
            orders = [watched.fleet.restart("demo-0") for _ in range(3)]
            list(texts)
        assert [order.done.result(30) for order in orders] == [True, True, True]


def urls(watched: Watched) -> dict[str, str]:
    return {backend.id: backend.url.rpartition(":")[2] for backend in watched.fleet.snapshot()}


def pool(name: str, port: int, instances: int = 1) -> Pool:
    return Pool(name=name, options=EngineOptions(port=port, threads=1, parallel=1, cache_ram=0), instances=instances)


def all_ready(watched: Watched) -> None:
    watched.wait_for(lambda: all(backend.routable for backend in watched.fleet.snapshot()), "all ready")


def test_two_that_swap_their_ports_both_arrive() -> None:
    first, second = free_port(), free_port()
    with running([pool("a", first), pool("b", second)]) as watched:
        orders = watched.fleet.reload([pool("a", second), pool("b", first)])
        assert [order.done.result(60) for order in orders] == [True, True]
        all_ready(watched)
        assert urls(watched) == {"a-0": str(second), "b-0": str(first)}
        assert "failed" not in watched.states("a-0") + watched.states("b-0")
        assert [report.restarts for report in watched.fleet.status()] == [1, 1]


def test_three_that_move_in_a_ring_all_arrive() -> None:
    ports = [free_port() for _ in range(3)]
    with running([pool(name, port) for name, port in zip("abc", ports, strict=True)]) as watched:
        moved = [*ports[1:], ports[0]]
        orders = watched.fleet.reload([pool(name, port) for name, port in zip("abc", moved, strict=True)])
        assert [order.done.result(60) for order in orders] == [True, True, True]
        all_ready(watched)
        assert urls(watched) == {f"{name}-0": str(port) for name, port in zip("abc", moved, strict=True)}
        assert [report.restarts for report in watched.fleet.status()] == [1, 1, 1]


def test_one_more_of_the_first_model_moves_the_second_out_of_its_way() -> None:
    port = free_ports(4)
    with running([pool("a", port), pool("b", port, 2)]) as watched:
        orders = watched.fleet.reload([pool("a", port, 2), pool("b", port, 2)])
        assert [order.done.result(60) for order in orders] == [True, True]
        watched.wait_for(lambda: len(watched.fleet.snapshot()) == 4, "four")
        all_ready(watched)
        assert list(urls(watched).values()) == [str(port + number) for number in range(4)]
        assert sum(report.restarts for report in watched.fleet.status()) == 2, "no start was in vain"


def test_a_port_of_one_that_leaves_is_waited_for() -> None:
    port = free_port()
    with running([pool("a", port), pool("c", free_port())]) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url, temperature=0, recovery="off") as client:
            whole = client.chat(STORY).text
            texts = iter(client.stream_chat(STORY))
            begun = next(texts)
            watched.fleet.reload([pool("b", port), watched.fleet.pools[1]])
            assert begun + "".join(texts) == whole
        all_ready(watched)
        assert urls(watched)["b-0"] == str(port)
        assert watched.fleet.status()[0].restarts == 0, "no start was in vain"


def test_what_changes_is_checked_against_the_memory_there_is() -> None:
    with running(EngineOptions(parallel=1), instances=1) as watched:
        before = watched.fleet.status()
        with pytest.raises(EngineMemoryError, match="are available"):
            watched.fleet.reload(EngineOptions(parallel=1, cache_ram=1 << 30))
        assert watched.fleet.status()[0].pid == before[0].pid
        assert watched.fleet.reload(EngineOptions(parallel=1)) == []
