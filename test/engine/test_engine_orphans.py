"""Nothing outlives us: parents killed with SIGKILL, again and again, and guards too."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from llamastream.engine import EngineOptions, launch

PARENT = """
import os, sys, time
from llamastream.engine import EngineOptions, launch
print("begun", flush=True)
engine = launch(EngineOptions(kind=sys.argv[1], model=sys.argv[2])).start()
print(engine.pid, flush=True)
if "fork" in sys.argv:
    if os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(600)
time.sleep(600)
"""


def family(mark: str) -> list[psutil.Process]:
    """All processes that run with this TMPDIR: parent, guard and server."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TMPDIR") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            pass
    return found


def wait_alone(mark: str, patience: float = 10.0) -> list[psutil.Process]:
    """Wait until no process with the mark is left; those that are, when patience ends."""
    deadline = time.monotonic() + patience
    while (left := family(mark)) and time.monotonic() < deadline:
        psutil.wait_procs(left, timeout=0.1)
    return left


def parent(kind: str, model: str, mark: Path, *more: str) -> subprocess.Popen[str]:
    mark.mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", PARENT, kind, model, *more],
        env=os.environ | {"TMPDIR": str(mark)},
        stdout=subprocess.PIPE,
        text=True,
    )


# Ends itself at the nth thing that Python reports to audit hooks during a start (files, processes, imports, ...); with
# n = 0 it says how many there are. So the moments are the same on every machine, and between any two steps of ours.
ENDS_ITSELF = """
import os, signal, sys
from llamastream.engine import EngineOptions, launch
import llamastream.engine.startup
moment, seen = int(sys.argv[3]), 0
def count(*_):
    global seen
    seen += 1
    if seen == moment:
        os.kill(os.getpid(), signal.SIGTERM)
sys.addaudithook(count)
with launch(EngineOptions(kind=sys.argv[1], model=sys.argv[2])):
    print(seen, flush=True)
"""


def orphans_after_kill(kind: str, model: str, mark: Path, moment: float | None) -> tuple[int, int]:
    """Kill a parent when its server is ready, or `moment` seconds after its beginning: how many there were and are."""
    process = parent(kind, model, mark)
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "begun\n"
        if moment is None:
            assert int(process.stdout.readline()) > 0
        else:
            time.sleep(moment)  # the moment is what is varied here: during probe, spawn, load
        before = len(family(str(mark)))
        process.send_signal(signal.SIGKILL)
        process.wait()
    return before, len(wait_alone(str(mark)))


def test_no_orphan_after_sigkill_of_the_parent_20_times(kind: str, tiny_model: str, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: orphans_after_kill(kind, tiny_model, tmp_path / str(n), None), range(20)))
    assert results == [(3, 0)] * 20  # parent, guard and server were there; nothing is left
    assert [list((tmp_path / str(n)).iterdir()) for n in range(20)] == [[]] * 20  # nor any file


def test_no_orphan_whenever_the_parent_is_killed(kind: str, tiny_model: str, tmp_path: Path) -> None:
    rng = random.Random(7)
    moments = [rng.uniform(0, 0.4) for _ in range(8)]
    with ThreadPoolExecutor(4) as pool:
        left = list(
            pool.map(lambda n: orphans_after_kill(kind, tiny_model, tmp_path / str(n), moments[n])[1], range(8))
        )
    assert left == [0] * 8


def test_no_file_whenever_the_parent_is_ended(kind: str, tiny_model: str, tmp_path: Path) -> None:
    def start(moment: int) -> str:
        (mark := tmp_path / str(moment)).mkdir()
        command = [sys.executable, "-c", ENDS_ITSELF, kind, tiny_model, str(moment)]
        environ = os.environ | {"TMPDIR": str(mark)}
        return subprocess.run(command, env=environ, stdout=subprocess.PIPE, text=True, timeout=60, check=False).stdout

    count = int(start(0))
    moments = [max(1, count * step // 12) for step in range(1, 13)]
    for moment in moments:
        start(moment)
    assert [wait_alone(str(tmp_path / str(moment))) for moment in moments] == [[]] * len(moments)
    assert [list((tmp_path / str(moment)).iterdir()) for moment in moments] == [[]] * len(moments)


def test_no_orphan_when_a_forked_child_holds_the_pipe(kind: str, tiny_model: str, tmp_path: Path) -> None:
    process = parent(kind, tiny_model, tmp_path / "t", "fork")
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline() == "begun\n"
        server, forked = (psutil.Process(int(process.stdout.readline())) for _ in range(2))
    process.kill()
    process.wait()
    try:
        _, alive = psutil.wait_procs([server], timeout=10)
        assert alive == []
    finally:
        forked.kill()
    assert wait_alone(str(tmp_path / "t")) == []


def test_the_server_dies_with_its_guard(
    kind: str, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with launch(EngineOptions(kind=kind, model=tiny_model)) as engine:  # type: ignore[arg-type]
        server = psutil.Process(engine.pid)
        guard = server.parent()
        assert guard is not None
        guard.kill()
        assert engine.wait(10.0) == -9
        assert not engine.alive
    psutil.wait_procs([server], timeout=5)
    assert not server.is_running()
    assert list(tmp_path.iterdir()) == []


def test_a_guard_that_is_asked_to_end_ends_the_server(kind: str, tiny_model: str) -> None:
    with launch(EngineOptions(kind=kind, model=tiny_model)) as engine:  # type: ignore[arg-type]
        guard = psutil.Process(engine.pid).parent()
        assert guard is not None
        guard.terminate()
        assert engine.wait(10.0) == -9
    assert not psutil.pid_exists(engine.pid)


@pytest.mark.parametrize("ending", ["sys.exit(0)", "raise RuntimeError('x')", "os._exit(3)"])
def test_a_parent_that_ends_without_stopping(ending: str, tiny_model: str, tmp_path: Path) -> None:
    code = PARENT.replace("time.sleep(600)", ending)
    mark = tmp_path / "t"
    mark.mkdir()
    process = subprocess.run(
        [sys.executable, "-c", code, "embedded", tiny_model],
        env=os.environ | {"TMPDIR": str(mark)},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert process.stdout.startswith(b"begun\n")
    assert wait_alone(str(mark)) == []
