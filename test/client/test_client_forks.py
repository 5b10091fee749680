"""A client after a fork: the child hangs on no lock and takes nothing of the parent's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from faults import MESSAGES
from llamastream.client import StreamingClient, holdings
from llamastream.client.pool import Place
from llamastream.testing import Script, ServerDouble, http_answer, sse_answer

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork.*:DeprecationWarning"),
]

HEALTHY = http_answer("200 OK", b'{"status":"ok"}')
GIVE_UP = 20.0

LOCKS: dict[str, Callable[[StreamingClient], Any]] = {
    "pool": lambda client: client._pools[0]._lock,
    "state": lambda client: client._core.state._lock,
    "servers": lambda client: client._core.servers._lock,
    "holdings": lambda client: holdings._making,
}


def in_child(work: Callable[[], bool]) -> bool:
    """Whether `work` said yes in a forked child."""
    pid = os.fork()
    if pid == 0:
        threading.Timer(GIVE_UP, os._exit, (2,)).start()
        try:
            os._exit(0 if work() else 1)
        finally:
            os._exit(3)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("name", LOCKS)
def test_the_child_hangs_on_no_lock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdings, "_worker", None)
    double = ServerDouble(Script(sse_answer(["x"]), repeat=True))
    with double as server, StreamingClient([server.url, server.url], max_tokens=5) as client:
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with LOCKS[name](client):
                held.set()
                done.wait(GIVE_UP)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(GIVE_UP)
        try:
            assert in_child(lambda: client.chat(MESSAGES).text == "x")
        finally:
            done.set()
            thread.join()
        assert client.chat(MESSAGES).text == "x"


def test_the_parents_connections_stay_the_parents() -> None:
    with ServerDouble(Script(HEALTHY, repeat=True)) as server, StreamingClient(server.url) as client:
        assert client.check_server_health()
        assert in_child(client.check_server_health)
        assert client.check_server_health(), "the parent's connection still works"
        assert server.accepted == 2


def test_places_of_the_parents_are_none_in_the_child() -> None:
    """What the child does with its copy of a stream changes neither the parent's stream nor its own bound."""
    with ServerDouble(Script(sse_answer(["x"]), hold=True)) as server:
        client = StreamingClient(server.url, max_connections=1)
        stream = client.stream_chat(MESSAGES)
        stream.__enter__()

        def work() -> bool:
            pool = client._pools[0]
            place = Place()
            free = pool.acquire_now(place) is not None
            stream.close()
            full = pool.acquire_now(Place()) is None
            pool.release(place, None, None)
            return free and full and pool.acquire_now(Place()) is not None

        assert in_child(work)
        server.release(1)
        assert list(stream) == ["x"]
        client.close()


def test_a_stream_that_another_thread_cancels_can_be_left_in_the_child() -> None:
    with ServerDouble(Script(sse_answer(["x"]), hold=True)) as server, StreamingClient(server.url) as client:
        stream = client.stream_chat(MESSAGES)
        stream.__enter__()
        held, done = threading.Event(), threading.Event()

        def hold() -> None:
            with stream._runner._lock:
                held.set()
                done.wait(GIVE_UP)

        thread = threading.Thread(target=hold)
        thread.start()
        assert held.wait(GIVE_UP)

        def work() -> bool:
            stream.cancel()
            stream.close()
            return stream.finish_reason == "cancelled"

        try:
            assert in_child(work)
        finally:
            done.set()
            thread.join()
        server.release(1)
        assert list(stream) == ["x"]


def test_streams_of_the_parent_are_none_of_the_childs() -> None:
    with ServerDouble(Script(sse_answer(["x"]), hold=True)) as server, StreamingClient(server.url) as client:
        stream = client.stream_chat(MESSAGES)
        stream.__enter__()
        (there,) = client._core.servers.all
        assert there.in_flight == 1

        def work() -> bool:
            before = there.in_flight
            stream.close()
            return (before, there.in_flight) == (0, 0)

        assert in_child(work)
        assert there.in_flight == 1
        server.release(1)
        assert list(stream) == ["x"]
        assert there.in_flight == 0


def test_looking_up_a_name_imports_nothing() -> None:
    """In a child of a fork an import may wait for ever for a lock that a thread of the parent held."""
    code = "import sys, llamastream; llamastream.StreamingClient; print('encodings.idna' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"
