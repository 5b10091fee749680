"""Parts of `serve` and `status` alone: lines that nobody reads, records for people, tables, signals."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import pytest
from rich.console import Console

from llamastream.cli import linewriter
from llamastream.cli.fleetstatus import duration, render, size
from llamastream.cli.linewriter import LineWriter
from llamastream.cli.servelog import ServeLog, human_line
from llamastream.cli.signals import Signals
from llamastream.fleet.messages import FleetStatus
from llamastream.fleet.records import Record
from llamastream.fleet.report import InstanceReport
from polling import wait_for


def counted(count: int) -> bytes:
    return b"%d dropped\n" % count


class Pipe:
    """A pipe whose reading end is ours."""

    def __init__(self) -> None:
        self.read, write = os.pipe()
        self.stream: TextIO = os.fdopen(write, "w")

    def close(self) -> None:
        os.close(self.read)
        # a writer that was blocked ends now; its descriptor must not become another test's before that
        for thread in threading.enumerate():
            if thread.name == "llamastream-output":
                thread.join(0.5)
        self.stream.close()


def test_lines_come_in_order_and_whole() -> None:
    pipe = Pipe()
    writer = LineWriter(pipe.stream, on_dropped=counted)
    for number in range(100):
        writer.put(b"%d\n" % number)
    writer.close()
    assert os.read(pipe.read, 65536).split() == [b"%d" % number for number in range(100)]
    writer.put(b"too late\n")
    pipe.close()


def test_what_nobody_reads_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linewriter, "MAX_LINES", 5)
    pipe = Pipe()
    writer = LineWriter(pipe.stream, on_dropped=counted)
    began = time.monotonic()
    for _ in range(200):
        writer.put(b"x" * 10_000 + b"\n")
    assert time.monotonic() - began < 5
    received = b""

    def last_came() -> bool:
        nonlocal received
        received += os.read(pipe.read, 65536)
        writer.put(b"last\n")
        return b"last\n" in received

    wait_for(last_came)
    (dropped,) = {int(line.split()[0]) for line in received.splitlines() if line.endswith(b" dropped")}
    assert received.count(b"x" * 10_000) + dropped >= 200
    writer.close()
    pipe.close()


def test_a_reader_that_leaves_is_noticed_once() -> None:
    pipe = Pipe()
    left = threading.Event()
    writer = LineWriter(pipe.stream, on_dropped=counted, on_broken=left.set)
    os.close(pipe.read)
    writer.put(b"x\n")
    assert left.wait(10)
    writer.put(b"y\n")
    writer.close()
    pipe.stream.close()


def test_the_end_waits_only_so_long_for_a_reader() -> None:
    pipe = Pipe()
    writer = LineWriter(pipe.stream, on_dropped=counted)
    writer.put(b"x" * (1 << 20))
    began = time.monotonic()
    writer.close(0.2)
    assert time.monotonic() - began < 5
    pipe.close()


def record(message: str, **fields: Any) -> Record:
    return Record(**{"time": 0.0, "level": "error", "event": "state", "message": message, **fields})


def test_a_secret_in_a_strangers_words_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = Pipe()
    monkeypatch.setattr(sys, "stderr", pipe.stream)
    log = ServeLog("json", events=False, verbose=False)
    log.hide(["sesame-12345"])
    log.take(record("the key is sesame-12345"))
    log.close()
    assert json.loads(os.read(pipe.read, 65536))["message"] == "the key is ***"
    pipe.close()


@pytest.mark.parametrize(
    ("events", "form"), [(False, "json"), (True, "off")], ids=["in a pipe", "with events on stdout"]
)
def test_the_form_of_the_log_follows_who_reads_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: bool, form: str
) -> None:
    with (tmp_path / "out").open("w") as file:
        monkeypatch.setattr(sys, "stderr", file)
        monkeypatch.setattr(sys, "stdout", file)
        log = ServeLog("auto", events=events, verbose=False)
        assert log.form == form
        assert ServeLog("human", events=events, verbose=False).form == "human"
        log.close()


def test_a_record_for_people_cannot_command_the_terminal() -> None:
    line = human_line(record("bad\x1b[2J\nnews", instance="a", level="warning"), "12:00:00")
    assert line.plain == "12:00:00 a warning: bad␛[2J news"


def report(name: str, **changes: Any) -> InstanceReport:
    values: dict[str, Any] = {
        "id": name, "model": "m", "url": "http://127.0.0.1:8080", "pid": 7, "state": "ready", "reason": "because",
        "since": 900.0, "slots": 4, "in_flight": 1, "requests": 2, "restarts": 3, "last_exit": None,
        "rss_bytes": 3 << 30, "memory_slope": None, "tokens_per_second": 1234.5, "kind": "executable", "build": "b",
        "start_seconds": 1.0,
    }  # fmt: skip
    return InstanceReport(**{**values, **changes})


def shown(width: int) -> str:
    reports = (report("a-0"), report("a-1", state="failed", reason="no\x1b memory", pid=0))
    status = FleetStatus(name="f", pid=1, version="0", started=400.0, phase="running", instances=reports)
    console = Console(file=StringIO(), width=width, highlight=False)
    with console.capture() as capture:
        console.print(render(status, 1000.0, width))
    return capture.get()


@pytest.mark.parametrize("width", [70, 90, 130, 200])
def test_the_table_fits_every_terminal_and_keeps_what_matters(width: int) -> None:
    text = shown(width)
    assert all(len(line) <= width for line in text.splitlines())
    assert "f running, pid 1, for 10 min: 1 of 2 ready, 2,469 tokens/s" in text
    assert text.count("http://127.0.0.1:8080") == 2
    assert "1,234" in text
    assert "no␛ memory" in text
    assert ("3.0 GiB" in text) == (width >= 90)


def test_times_and_sizes_for_people() -> None:
    assert [duration(seconds) for seconds in (-1, 59.9, 60, 3600, 5400, 90_000, 864_000)] == [
        "0 s", "59 s", "1 min", "1 h", "1 h 30 min", "1 d 1 h", "10 d",
    ]  # fmt: skip
    assert [size(count) for count in (0, 80 << 20, 1 << 30)] == ["", "80 MiB", "1.0 GiB"]


def test_signals_are_handed_on_and_handlers_come_back() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)]
    heard: list[int] = []
    with Signals(heard.append):
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
    assert heard == [signal.SIGTERM, signal.SIGINT]
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)] == before


def test_nohup_stays_in_force() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(lambda _: None):
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
