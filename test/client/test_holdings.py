"""What servers hold is dropped in the background: for real, once, and without anybody waiting for it."""

from __future__ import annotations

import gc
import json
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from drivers import Driver
from faults import each_driver
from llamastream.client import StreamingClient, holdings
from llamastream.client.holdings import Holdings, flush
from llamastream.client.ledger import state_directory
from llamastream.client.servers import Server
from llamastream.testing import ChaosProxy, Fault, NumberedServer, Refuse, Reset
from llamastream.types import RetryPolicy
from ports import free_port

MESSAGES = [{"role": "user", "content": "count"}]


@pytest.fixture(autouse=True)
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[holdings._Worker]:
    """A worker with a state directory of its own."""
    assert flush(10)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    made = holdings._Worker()
    monkeypatch.setattr(holdings, "_worker", made)
    yield made
    made.flush(10)
    made.ledger.close()


def dropped(server: NumberedServer) -> list[str]:
    return [request.query["conv_id"] for request in server.requests if request.method == "DELETE"]


def on_disk() -> list[str]:
    held: list[str] = []
    for path in state_directory().glob("*.jsonl"):
        for line in path.read_text().splitlines():
            entry = json.loads(line)
            if "url" in entry:
                held.append(entry["id"])
            else:
                held.remove(entry["id"])
    return held


def parts(client: StreamingClient) -> tuple[Holdings, Server]:
    held = client._core.state.holdings
    assert isinstance(held, Holdings)
    return held, client._core.servers.all[0]


@pytest.mark.parametrize("begun", [True, False])
def test_what_is_dropped_is_deleted_on_the_server_and_in_the_ledger(begun: bool) -> None:
    with NumberedServer() as server, StreamingClient(server.url) as client:
        held, where = parts(client)
        held.add(where, "some id/with=odd&characters")
        assert on_disk() == ["some id/with=odd&characters"]
        held.drop(where, "some id/with=odd&characters", begun=begun)
        assert flush(10)
        assert dropped(server) == ["some id/with=odd&characters"]
        assert on_disk() == []


@each_driver
def test_a_good_stream_leaves_nothing_on_the_server(driver: Driver) -> None:
    with NumberedServer(tokens=5) as server:
        driver.texts(server.url, MESSAGES, max_tokens=100)
        assert flush(10)
        ids = [request.headers.get("x-conversation-id") for request in server.requests if request.method == "POST"]
        assert dropped(server) == ids
        assert server._conversations == {}
        assert on_disk() == []


@each_driver
def test_a_stream_that_is_left_ends_its_generation(driver: Driver) -> None:
    with NumberedServer(tokens=500, gate=True) as server:
        server.release(3)

        def left() -> float:
            assert server.wait_for(lambda server: server.cancelled == 1)
            return 0.0

        # The demo of leaving sends no limit; one is needed for an id.
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("LLAMASTREAM_MAX_TOKENS", "500")
            assert driver.leave(server.url, MESSAGES, "break", 2, left) == ("cancelled", 0.0)
        assert flush(10)
        assert len(dropped(server)) == 1


@each_driver
def test_each_generation_of_a_stream_that_breaks_is_dropped_once(driver: Driver) -> None:
    faults: list[Fault | None] = [Reset(after_events=3), Refuse(), Reset(after_events=2)]
    with NumberedServer(tokens=8) as server, ChaosProxy(server.url, faults) as proxy:
        options = {"retry": RetryPolicy(base_delay=0.001)}
        driver.texts(proxy.url, MESSAGES, options, max_tokens=100)
        assert flush(10)
        assert len(dropped(server)) == len(set(dropped(server))) > 0
        assert server._conversations == {}
        assert on_disk() == []


def test_nobody_waits_for_a_silent_server(monkeypatch: pytest.MonkeyPatch, worker: holdings._Worker) -> None:
    monkeypatch.setattr(holdings, "DROP_TIMEOUT", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent, NumberedServer() as server:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with StreamingClient([url, server.url]) as client:
            held, bad = parts(client)
            good = client._core.servers.all[1]
            for number in range(50):
                held.add(bad, f"bad {number}")
                held.drop(bad, f"bad {number}", begun=True)
            held.add(good, "good")
            held.drop(good, "good", begun=True)
            assert dropped(server) == [], "dropping is left to another thread"
            assert server.wait_for(lambda server: bool(dropped(server)), timeout=5)
            assert flush(10)
        silent.settimeout(0)
        silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()  # one drop was tried, the others were left
        assert len(on_disk()) == 50, "they are left for later"
        assert len(worker.ledger._held) == 50


def test_a_server_that_is_back_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "LEAVE_ALONE", 0.0)
    port = free_port()
    with StreamingClient(f"http://127.0.0.1:{port}") as client:
        held, where = parts(client)
        held.add(where, "a")
        held.drop(where, "a", begun=True)
        assert flush(10)
        assert on_disk() == ["a"]
        with NumberedServer(port=port) as server:
            held.add(where, "b")
            held.drop(where, "b", begun=True)
            assert flush(10)
            assert dropped(server) == ["b", "a"]
        assert on_disk() == []


def test_flush_says_whether_all_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flush(0.0), "nothing was to be done"
    monkeypatch.setattr(holdings, "DROP_TIMEOUT", 0.5)
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        StreamingClient(f"http://127.0.0.1:{silent.getsockname()[1]}") as client,
    ):
        held, where = parts(client)
        held.add(where, "a")
        held.drop(where, "a", begun=True)
        assert not flush(0.01)
        assert flush(10)


def test_a_client_that_nobody_keeps_is_freed_after_its_drops() -> None:
    with NumberedServer(tokens=500, gate=True) as server:
        server.release(2)
        client = StreamingClient(server.url)
        stream = client.stream_chat(MESSAGES, max_tokens=500)
        assert next(stream) == "0 "
        core = weakref.ref(client._core)
        del client, stream
        gc.collect()
        assert server.wait_for(lambda server: server.cancelled == 1)
        assert flush(10)
        gc.collect()
        assert len(dropped(server)) == 1
        assert core() is None


def test_a_drop_for_a_client_that_is_gone_is_left_to_the_next_process() -> None:
    client = StreamingClient("http://127.0.0.1:9")
    held, where = parts(client)
    held.add(where, "a")
    assert flush(10)
    del client
    gc.collect()
    held.drop(where, "a", begun=True)
    assert flush(10)
    assert on_disk() == ["a"]


def test_many_threads_need_one_worker(worker: holdings._Worker) -> None:
    started = threading.Barrier(16)
    with NumberedServer() as server, StreamingClient(server.url) as client:
        held, where = parts(client)

        def work(number: int) -> None:
            started.wait(10)
            for count in range(5):
                held.add(where, f"{number} {count}")
                held.drop(where, f"{number} {count}", begun=True)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        names = [thread.name for thread in threading.enumerate() if getattr(thread, "_target", None) == worker._run]
        assert len(names) == 1
        assert flush(20)
        assert sorted(dropped(server)) == sorted(f"{number} {count}" for number in range(16) for count in range(5))
        assert on_disk() == []


# -- after a crash ------------------------------------------------------------------------------------------------


CRASH = """
import os, signal, sys
from llamastream.client import StreamingClient
stream = StreamingClient(sys.argv[1]).stream_chat([{"role": "user", "content": "count"}], max_tokens=500)
next(stream)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_running_is_dropped_by_the_next() -> None:
    with NumberedServer(tokens=500, gate=True) as server:
        server.release(2)
        subprocess.run([sys.executable, "-c", CRASH, server.url], timeout=60, check=False)
        assert server.generating == 1
        with StreamingClient(server.url) as client:
            server.release()
            assert client.chat(MESSAGES, max_tokens=3).text == "0 1 2 "
            assert flush(10)
        assert len(dropped(server)) == 2
        assert server._conversations == {}
        assert on_disk() == []


EXIT = """
import sys
from llamastream.client import StreamingClient
StreamingClient(sys.argv[1]).chat([{"role": "user", "content": "count"}], max_tokens=5)
"""


def test_a_process_that_ends_in_order_has_dropped_everything() -> None:
    with NumberedServer(tokens=5) as server:
        subprocess.run([sys.executable, "-c", EXIT, server.url], timeout=60, check=True)
        assert len(dropped(server)) == 1
        assert not state_directory().parent.exists()


def test_a_silent_server_does_not_keep_a_process_from_ending() -> None:
    code = EXIT.replace(
        "StreamingClient(sys.argv[1]).chat", "c = StreamingClient(sys.argv[1]); h = c._core.state.holdings #"
    )
    code += "s = c._core.servers.all[0]\nh.add(s, 'a')\nh.drop(s, 'a', begun=True)\n"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        subprocess.run([sys.executable, "-c", code, url], timeout=30, check=True)
        assert on_disk() == ["a"]


# -- fork ---------------------------------------------------------------------------------------------------------


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from llamastream.client import StreamingClient
from llamastream.client.holdings import flush
client = StreamingClient(sys.argv[1])
stream = client.stream_chat([{"role": "user", "content": "count"}], max_tokens=20)
said = next(stream)
child = os.fork()
if child == 0:
    stream.close()
    del stream
    own = client.chat([{"role": "user", "content": "count"}], max_tokens=3).text
    os._exit(0 if own == "0 1 2 " and flush(10) else 1)
assert os.waitpid(child, 0)[1] == 0
print(said + "".join(stream))
"""


def test_a_forked_child_drops_its_own_and_leaves_the_parents_alone() -> None:
    with NumberedServer(tokens=20, delay=0.02) as server:
        done = subprocess.run(
            [sys.executable, "-c", FORK, server.url], capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout == "".join(f"{number} " for number in range(20)) + "\n"
        ids: list[Any] = [
            request.headers.get("x-conversation-id") for request in server.requests if request.method == "POST"
        ]
        assert dropped(server) == [ids[1], ids[0]], "the child's first, and once each"
        assert (server.generations, server.cancelled) == (2, 0)
