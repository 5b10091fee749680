"""The loop of `serve` alone: what systemd's watchdog is told, and what becomes of faults."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamastream.cli.servelog import ServeLog
from llamastream.cli.serveplan import Given, plan_servers
from llamastream.cli.service import Service
from llamastream.fleet import Fleet
from llamastream.fleet.control import ControlServer
from llamastream.fleet.operations import carry_out
from llamastream.fleet.systemd import Notifier
from polling import wait_for
from serving import runtime_directory


class Bench:
    """A service that has not been started, a socket for its control, and what systemd hears."""

    def __init__(self, directory: Path, stderr: Any) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(str(directory / "notify"))
        self.listener.setblocking(False)
        notifier = Notifier({"NOTIFY_SOCKET": str(directory / "notify"), "WATCHDOG_USEC": "1000000"})
        self.log = ServeLog("json", events=False, verbose=False)
        self.service = Service(
            lambda: plan_servers(Given({"port": 0}, {}, {"enabled": False}), environ={}), self.log, notifier
        )
        self.control = ControlServer(directory / "control.sock", lambda request: carry_out(request, self.service))
        self.control.start()
        self.stderr = stderr

    def signs_of_life(self) -> int:
        """How many came of one tick."""
        self.service._tick(self.control)
        count = 0
        while True:
            try:
                count += self.listener.recv(4096) == b"WATCHDOG=1"
            except BlockingIOError:
                return count


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    with runtime_directory() as directory, (directory / "stderr").open("w+") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
        bench = Bench(directory, stderr)
        try:
            yield bench
        finally:
            bench.control.close()
            bench.listener.close()
            bench.service._notifier.close()
            bench.service.close()
            bench.log.close()


def test_the_watchdog_is_fed_while_all_threads_live(bench: Bench) -> None:
    assert bench.signs_of_life() == 1


def test_a_control_socket_that_died_leaves_the_watchdog_hungry(bench: Bench) -> None:
    bench.control.close()
    assert bench.signs_of_life() == 0


def test_an_instance_whose_thread_died_leaves_the_watchdog_hungry(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Fleet, "supervised", False)
    assert bench.signs_of_life() == 0


def test_many_events_do_not_starve_the_watchdog(bench: Bench) -> None:
    stop = threading.Event()

    def chatter() -> None:
        while not stop.is_set():
            bench.service._inbox.put(("changed", None))

    thread = threading.Thread(target=chatter)
    thread.start()
    heard = 0
    try:

        def fed_twice() -> bool:
            nonlocal heard
            bench.service._next(bench.control)
            with contextlib.suppress(BlockingIOError):
                heard += bench.listener.recv(4096) == b"WATCHDOG=1"
            return heard >= 2

        wait_for(fed_twice)
    finally:
        stop.set()
        thread.join()


def test_a_fault_in_a_thread_is_a_record_with_its_traceback(bench: Bench) -> None:
    def fail() -> None:
        raise RuntimeError("oh")

    try:
        fail()
    except RuntimeError as error:
        bench.service._fault(threading.ExceptHookArgs((RuntimeError, error, error.__traceback__, None)))
    bench.log.close()
    bench.stderr.flush()
    line = json.loads(os.pread(bench.stderr.fileno(), 65536, 0))
    assert (line["event"], line["level"]) == ("fault", "error")
    assert "in fail" in line["traceback"]


def test_a_reload_before_the_start_is_refused_and_told(bench: Bench) -> None:
    bench.service._reload_quietly()
    last, _ = bench.service.feed.follow(lambda record: record.event == "reload_failed", 1)
    assert last[0].message == "the fleet is starting: a reload has to wait until it runs"
