"""What happens to a fleet when its servers are killed, frozen, starved and broken: real processes, real faults."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from fleets import Watched, running
from llamastream import StreamingClient
from llamastream.backends import InstanceState
from llamastream.engine import EngineOptions
from llamastream.engine.demo import demo_model_path
from llamastream.events import InstanceChanged, InstanceWarning
from llamastream.fleet import Fleet
from llamastream.fleet import fleet as fleet_module
from ports import free_port
from tools.faults.large_model import write_large_model

QUESTION = [{"role": "user", "content": "Who are you?"}]
LONG = {"ignore_eos": True, "max_tokens": 8000}


def answers(watched: Watched, index: int) -> bool:
    """Whether an instance really generates."""
    with StreamingClient(watched.fleet.snapshot()[index].url, temperature=0) as client:
        return bool(client.chat(QUESTION).text)


def kill_when(watched: Watched, index: int, state: InstanceState, begin: Callable[[], object]) -> None:
    """Kill the instance's process as soon as it is in a state, from within the event: nothing can come in between."""
    killed = threading.Event()
    id_ = watched.fleet.snapshot()[index].id

    def kill() -> None:
        backend = next(each for each in watched.fleet.snapshot() if each.id == id_)
        if backend.state == state and backend.pid and not killed.is_set():
            killed.set()
            os.kill(backend.pid, signal.SIGKILL)

    leave = watched.fleet.subscribe(kill)
    begin()
    watched.wait_for(killed.is_set, f"a kill in {state}")
    leave()


def test_one_that_is_killed_while_ready_comes_back_and_the_other_serves_on() -> None:
    with running() as watched:
        first, second = watched.fleet.snapshot()
        os.kill(first.pid, signal.SIGKILL)
        watched.wait_state(0, "ready", generation=2)
        again = watched.fleet.snapshot()
        assert again[0].url == first.url
        assert again[0].pid != first.pid
        assert again[1] == second
        assert answers(watched, 0)
        report = watched.fleet.status()[0]
        assert (report.restarts, report.last_exit) == (1, -signal.SIGKILL)
        end = next(e for e in watched.events if isinstance(e, InstanceChanged) and e.after == "restarting")
        assert end.reason == "the process ended by itself (signal 9)"


def test_one_that_is_killed_while_it_loads_comes_back() -> None:
    with running() as watched:
        kill_when(watched, 0, "loading", lambda: watched.fleet.restart("demo-0"))
        watched.wait_state(0, "ready", generation=3)
        assert answers(watched, 0)


def test_one_that_is_killed_while_busy_or_draining_comes_back() -> None:
    options = EngineOptions(parallel=1)
    with running(options, instances=1) as watched:
        for state, begin in (("busy", None), ("draining", "restart")):
            generation = watched.fleet.snapshot()[0].generation
            with StreamingClient(watched.fleet.snapshot()[0].url, recovery="off", max_tokens=8000) as client:
                texts = iter(client.stream_chat(QUESTION, ignore_eos=True))
                next(texts)
                watched.wait_state(0, "busy")
                if begin is None:
                    os.kill(watched.fleet.snapshot()[0].pid, signal.SIGKILL)
                else:
                    kill_when(watched, 0, "draining", lambda: watched.fleet.restart("demo-0"))
                watched.wait_state(0, "ready", generation=generation + 1)
            assert answers(watched, 0), state


def test_one_that_is_killed_again_and_again_is_given_up_with_a_reason_and_comes_back_by_hand() -> None:
    with running(crash_limit=3) as watched:
        for generation in (1, 2, 3):
            watched.wait_state(0, "ready", generation)
            os.kill(watched.fleet.snapshot()[0].pid, signal.SIGKILL)
        watched.wait_state(0, "failed")
        assert watched.reason(0).startswith("it ended 3 times within")
        assert watched.fleet.snapshot()[1].state == "ready"
        assert watched.fleet.restart("demo-0").done.result(30)
        assert watched.fleet.snapshot()[0].state == "ready"


def test_a_frozen_one_is_seen_and_replaced() -> None:
    with running(wedge_after=1.0, canary_timeout=1.0) as watched:
        os.kill(watched.fleet.snapshot()[0].pid, signal.SIGSTOP)
        watched.wait_state(0, "ready", generation=2)
        assert watched.states("demo-0")[3:] == ["wedged", "restarting", "starting", "loading", "ready"]
        wedged = next(e for e in watched.events if isinstance(e, InstanceChanged) and e.after == "wedged")
        assert "did not generate a token" in wedged.reason
        assert answers(watched, 0)


def test_one_that_gets_on_again_at_once_is_kept_and_replaced_when_that_happens_again() -> None:
    with running(instances=1, wedge_after=1.0, canary_timeout=1.0) as watched:
        first = watched.fleet.snapshot()[0]

        def thaw() -> None:
            if watched.fleet.snapshot()[0].state == "wedged":
                os.kill(first.pid, signal.SIGCONT)

        watched.fleet.subscribe(thaw)
        with StreamingClient(first.url, temperature=0, recovery="off") as client:
            whole = client.chat(QUESTION).text
            texts = iter(client.stream_chat(QUESTION))
            begun = next(texts)
            os.kill(first.pid, signal.SIGSTOP)
            watched.wait_for(lambda: watched.states("demo-0")[-2:] == ["wedged", "ready"], "life")
            assert begun + "".join(texts) == whole
        assert watched.fleet.snapshot()[0].pid == first.pid
        assert any(isinstance(e, InstanceWarning) and e.topic == "wedge" for e in watched.events)
        os.kill(first.pid, signal.SIGSTOP)
        watched.wait_state(0, "ready", generation=2)
        assert watched.states("demo-0")[-7:-4] == ["wedged", "ready", "draining"]
        assert not psutil.pid_exists(first.pid)


@pytest.mark.alone
def test_a_long_prefill_is_no_wedge(tmp_path: Path) -> None:
    model = tmp_path / "large.gguf"
    write_large_model(model, width=512, layers=12)
    options = EngineOptions(model=str(model), parallel=2, ctx_size=8192, alias="large")
    with running(options, instances=1, wedge_after=0.5, canary_timeout=0.5) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url) as client:
            result = client.complete("word " * 2000, max_tokens=2)
        assert result.timings is not None
        # far longer than it takes to see a wedge with these settings
        assert result.timings.prompt_ms > 2_000
        assert "wedged" not in watched.states("large-0")
        assert watched.fleet.snapshot()[0].generation == 1


def test_a_port_that_was_taken_meanwhile_is_waited_for() -> None:
    port = free_port()
    with running(EngineOptions(port=port), instances=1, restart_delay=0.3, max_restart_delay=0.3) as watched:
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken = threading.Event()

            def take() -> None:
                if watched.fleet.snapshot()[0].state == "restarting" and not taken.is_set():
                    thief.bind(("127.0.0.1", port))
                    thief.listen()
                    taken.set()

            watched.fleet.subscribe(take)
            os.kill(watched.fleet.snapshot()[0].pid, signal.SIGKILL)
            watched.wait_for(lambda: "is taken" in watched.reason(0), "the reason")
            assert taken.is_set()
        watched.wait_state(0, "ready")
        assert watched.fleet.snapshot()[0].url.endswith(f":{port}")
        assert answers(watched, 0)


def test_a_model_that_was_replaced_by_garbage_stops_a_rolling_restart(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(demo_model_path().read_bytes())
    with running(EngineOptions(model=str(model)), instances=3, crash_limit=2, restart_delay=0.05) as watched:
        fresh = tmp_path / "new.gguf"
        fresh.write_bytes(b"garbage")
        fresh.rename(model)
        before = watched.fleet.snapshot()
        assert [order.done.result(30) for order in watched.fleet.restart_all()] == [False, False, False]
        watched.wait_state(0, "failed")
        watched.wait_for(
            lambda: any(isinstance(e, InstanceWarning) and e.topic == "rolling" for e in watched.events), "a warning"
        )
        assert watched.fleet.snapshot()[1:] == before[1:]
        assert answers(watched, 1)
        assert answers(watched, 2)
        assert "is no usable GGUF file" in watched.reason(0)


def test_memory_above_the_limit_is_followed_by_a_warning_and_a_restart() -> None:
    with running(instances=2) as watched:
        watched.wait_for(lambda: all(r.rss_bytes for r in watched.fleet.status()), "a first look")
        used = max(report.rss_bytes for report in watched.fleet.status())
    # it takes requests to go beyond what it has at the beginning
    with running(instances=2, memory_limit=str(used + (3 << 20)), drain_timeout=5.0) as watched:
        backends = watched.fleet.snapshot()
        with StreamingClient(backends[0].url) as client:
            while watched.fleet.snapshot()[0].generation == 1:
                client.complete("word " * 1500, max_tokens=4)
        watched.wait_state(0, "ready", generation=2)
        assert any(isinstance(e, InstanceWarning) and e.topic == "memory" for e in watched.events)
        drained = next(e for e in watched.events if isinstance(e, InstanceChanged) and e.after == "draining")
        assert "of memory" in drained.reason


def test_without_a_limit_of_ones_own_there_is_one_beyond_what_it_had_when_it_was_ready(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fleet_module, "allowances_of", lambda plans, _: {each.id: 3 << 20 for each in plans})
    with running(instances=1, drain_timeout=5.0) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url) as client:
            while watched.fleet.snapshot()[0].generation == 1:
                client.complete("word " * 1500, max_tokens=4)
        watched.wait_state(0, "ready", generation=2)
        assert any(isinstance(e, InstanceWarning) and e.topic == "memory" for e in watched.events)


def test_restarts_after_a_number_of_requests() -> None:
    with running(instances=1, restart_after_requests=5) as watched:
        with StreamingClient(watched.fleet.snapshot()[0].url) as client:
            for _ in range(5):
                client.chat(QUESTION, max_tokens=2)
        watched.wait_state(0, "ready", generation=2)
        drained = next(e for e in watched.events if isinstance(e, InstanceChanged) and e.after == "draining")
        assert drained.reason == "it has served 5 requests (restart_after_requests)"


def test_a_process_that_minds_no_sigterm_is_killed() -> None:
    with running(EngineOptions(stop_timeout=0.5), instances=1) as watched:
        backend = watched.fleet.snapshot()[0]
        # nothing that runs in it can make llama-server ignore the signal, but a stopped process does not take it
        os.kill(backend.pid, signal.SIGSTOP)
        watched.fleet.stop(drain=False)
        assert not psutil.pid_exists(backend.pid)
        assert watched.fleet.status()[0].last_exit == -signal.SIGKILL


@pytest.mark.parametrize("index", [0, 1])
def test_a_drained_instance_stays_out_even_if_it_crashes(index: int) -> None:
    with running() as watched:
        watched.fleet.drain(f"demo-{index}").done.result(10)
        os.kill(watched.fleet.snapshot()[index].pid, signal.SIGKILL)
        watched.wait_state(index, "draining", generation=2)
        watched.fleet.undrain(f"demo-{index}").done.result(10)
        assert watched.fleet.snapshot()[index].routable


def test_stopping_during_a_start_is_quick_and_leaves_nothing(tmp_path: Path) -> None:
    model = tmp_path / "large.gguf"
    write_large_model(model, width=1024, layers=24)
    with running(instances=1) as watched:
        watched.fleet.reload([*watched.fleet.pools, *Fleet({"large": EngineOptions(model=str(model))}).pools])
        watched.wait_for(lambda: len(watched.fleet.snapshot()) == 2 and watched.fleet.snapshot()[1].pid, "a process")
        pid = watched.fleet.snapshot()[1].pid
        watched.fleet.stop(drain=False)
        assert not psutil.pid_exists(pid)
        assert watched.fleet.status()[1].state == "stopped"
