"""What servers hold for a process, on disk: written, taken back, and found by whoever comes after a crash."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamastream.client.ledger import MAX_AGE, MAX_HELD, Ledger, orphans, state_directory

fcntl = pytest.importorskip("fcntl", reason="nothing is written on Windows")
URL, OTHER = "http://127.0.0.1:8080", "http://127.0.0.1:9090"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state"


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    made = Ledger()
    yield made
    made.close()


def files() -> list[Path]:
    return sorted(state_directory().glob("*.jsonl"))


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def dead(*entries: dict[str, str], name: str = "1-a.jsonl", end: str = "\n") -> Path:
    """The file of a process that is gone."""
    directory = state_directory()
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / name
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries) + end.strip("\n"))
    return path


# -- writing --------------------------------------------------------------------------------------------------


def test_nothing_is_written_before_there_is_something(ledger: Ledger, home: Path) -> None:
    assert not home.exists()
    ledger.remove("unknown")
    assert not home.exists()


def test_what_is_held_is_on_disk_at_once(ledger: Ledger) -> None:
    ledger.add(URL, "a")
    ledger.add(OTHER, "b")
    (path,) = files()
    assert lines(path) == [{"id": "a", "url": URL}, {"id": "b", "url": OTHER}]
    assert path.name.startswith(f"{os.getpid()}-")


def test_only_its_owner_may_read_it(ledger: Ledger) -> None:
    ledger.add(URL, "a")
    (path,) = files()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_what_is_not_held_any_more_is_noted(ledger: Ledger) -> None:
    ledger.add(URL, "a")
    ledger.add(URL, "b")
    ledger.remove("a")
    (path,) = files()
    assert lines(path)[-1] == {"id": "a"}
    ledger.remove("b")
    assert path.read_bytes() == b""
    ledger.add(URL, "c")
    assert lines(path) == [{"id": "c", "url": URL}]


def test_a_process_that_ends_in_order_leaves_nothing(home: Path) -> None:
    ledger = Ledger()
    ledger.add(URL, "a")
    ledger.remove("a")
    ledger.close()
    assert not (home / "llamastream").exists()
    ledger.close()


def test_a_process_that_could_not_have_all_dropped_leaves_the_rest() -> None:
    ledger = Ledger()
    ledger.add(URL, "a")
    ledger.add(URL, "b")
    ledger.remove("a")
    ledger.close()
    assert orphans({URL}) == [(URL, "b")]
    assert files() == []


def test_a_file_does_not_grow_for_ever(ledger: Ledger) -> None:
    ledger.add(URL, "long")
    for number in range(6000):
        ledger.add(URL, f"short{number}")
        ledger.remove(f"short{number}")
    (path,) = files()
    assert path.stat().st_size < 100_000
    ledger.remove("unknown")
    held = [line["id"] for line in lines(path) if "url" in line]
    dropped = [line["id"] for line in lines(path) if "url" not in line]
    assert set(held) - set(dropped) == {"long"}


def test_what_is_never_dropped_does_not_fill_the_memory(ledger: Ledger) -> None:
    for number in range(MAX_HELD + 500):
        ledger.add(URL, str(number))
    assert len(ledger._held) == MAX_HELD
    assert "0" not in ledger._held
    assert str(MAX_HELD + 499) in ledger._held


# -- a disk that does not want ----------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["/proc/llamastream-nowhere", "/dev/null"])
def test_where_nothing_can_be_written_nothing_is(where: str, monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", where)
    ledger.add(URL, "a")
    ledger.remove("a")
    assert ledger._file is None
    assert orphans({URL}) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_is_read_only(ledger: Ledger) -> None:
    state_directory().mkdir(parents=True)
    state_directory().chmod(0o500)
    ledger.add(URL, "a")
    ledger.remove("a")
    assert files() == []


def test_without_a_home(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setattr(Path, "home", nobody)
    ledger.add(URL, "a")
    ledger.remove("a")
    assert ledger._file is None
    assert orphans({URL}) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_full_disk(ledger: Ledger) -> None:
    ledger.add(URL, "a")
    (path,) = files()
    with Path("/dev/full").open("wb", buffering=0) as full:
        ledger._file, file = full, ledger._file
        ledger.add(URL, "b")
        ledger.remove("b")
        ledger._file = file
    assert lines(path) == [{"id": "a", "url": URL}]


# -- after a crash ----------------------------------------------------------------------------------------------


def test_what_a_dead_process_held_is_found_once() -> None:
    dead({"id": "a", "url": URL}, {"id": "b", "url": URL}, {"id": "a"})
    assert orphans({URL}) == [(URL, "b")]
    assert files() == []
    assert orphans({URL}) == []


def test_other_servers_are_left_for_whoever_comes_for_them() -> None:
    path = dead({"id": "a", "url": URL}, {"id": "b", "url": OTHER})
    assert orphans({URL}) == [(URL, "a")]
    assert lines(path) == [{"id": "b", "url": OTHER}]
    assert orphans({OTHER}) == [(OTHER, "b")]
    assert files() == []


def test_several_files() -> None:
    dead({"id": "a", "url": URL}, name="1-a.jsonl")
    dead({"id": "b", "url": URL}, name="2-b.jsonl")
    assert sorted(orphans({URL})) == [(URL, "a"), (URL, "b")]


@pytest.mark.parametrize("end", ['{"id":"b","u', '{"id":"b"', "\x00\x00\x00", "[1]", '{"id":7,"url":"x"}', "null"])
def test_a_line_that_was_cut_short_counts_for_nothing(end: str) -> None:
    dead({"id": "a", "url": URL}, end=end)
    assert orphans({URL}) == [(URL, "a")]


def test_bytes_that_are_no_text() -> None:
    path = dead()
    path.write_bytes(b'\xff\xfe{"id"\n{"id":"a","url":"%s"}\n' % URL.encode())
    assert orphans({URL}) == [(URL, "a")]


def test_brackets_in_brackets_count_for_nothing() -> None:
    path = dead({"id": "a", "url": URL})
    path.write_bytes(b"[" * 100_000 + b"\n" + b'{"id":' * 10_000 + b"\n" + path.read_bytes())
    assert orphans({URL}) == [(URL, "a")]


@pytest.mark.parametrize("kind", ["symbolic", "hard", "pipe", "directory"])
def test_what_is_no_file_of_ours_is_left_alone(kind: str, tmp_path: Path) -> None:
    elsewhere = dead({"id": "a", "url": URL}).rename(tmp_path / "elsewhere")
    before = elsewhere.read_bytes()
    path = state_directory() / "2-b.jsonl"
    if kind == "symbolic":
        path.symlink_to(elsewhere)
    elif kind == "hard":
        path.hardlink_to(elsewhere)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    assert orphans({URL}) == []
    assert elsewhere.read_bytes() == before
    assert os.path.lexists(path)


def test_a_relative_state_directory_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", "state")
    assert state_directory() == tmp_path / ".local/state/llamastream/held"


def test_an_old_file_is_thrown_away() -> None:
    path = dead({"id": "a", "url": URL})
    os.utime(path, (time.time() - MAX_AGE - 60,) * 2)
    assert orphans({URL}) == []
    assert files() == []


def test_what_this_process_holds_is_no_orphan(ledger: Ledger) -> None:
    ledger.add(URL, "a")
    before = files()[0].read_bytes()
    assert orphans({URL}) == []
    assert files()[0].read_bytes() == before


HOLDER = """
import sys
from llamastream.client.ledger import Ledger
ledger = Ledger()
ledger.add(sys.argv[1], "theirs")
print("held", flush=True)
sys.stdin.read()
ledger.close()
"""


def test_a_living_process_keeps_its_file_and_a_killed_one_does_not() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, URL], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        (path,) = files()
        before = (path.read_bytes(), path.stat().st_mtime_ns)
        assert orphans({URL}) == []
        assert (path.read_bytes(), path.stat().st_mtime_ns) == before
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert orphans({URL}) == [(URL, "theirs")]
        assert files() == []


def test_a_file_that_is_taken_for_a_dead_ones_before_it_is_locked(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = fcntl.flock
    taken: list[Path] = []

    def slow(file: Any, operation: int) -> None:
        if not taken:
            taken.append(files()[0])
            assert orphans({URL}) == []
        lock(file, operation)

    monkeypatch.setattr(fcntl, "flock", slow)
    ledger.add(URL, "a")
    (path,) = files()
    assert [path] != taken
    assert lines(path) == [{"id": "a", "url": URL}]


# -- fork ---------------------------------------------------------------------------------------------------------


FORK = """
import os, sys, warnings
warnings.simplefilter("ignore")
from llamastream.client.ledger import Ledger, orphans, state_directory
url = sys.argv[1]
ledger = Ledger()
ledger.add(url, "parents")
if sys.argv[2] == "locked":
    ledger._lock.acquire()
child = os.fork()
if child == 0:
    ledger.after_fork()
    assert len(list(state_directory().glob("*.jsonl"))) == 1
    ledger.add(url, "childs")
    assert len(list(state_directory().glob("*.jsonl"))) == 2
    assert orphans({url}) == []
    if sys.argv[2] == "crash":
        os._exit(0)
    ledger.remove("childs")
    ledger.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
left = [path.read_text() for path in state_directory().glob("*.jsonl")]
assert sum("parents" in text for text in left) == 1, left
print(orphans({url}))
"""


@pytest.mark.parametrize(
    ("how", "found"), [("in order", []), ("locked", []), ("crash", [(URL, "childs")])], ids=lambda value: str(value)
)
def test_a_forked_child_has_a_file_of_its_own(how: str, found: list[Any]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORK, URL, how], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr, done.stdout.strip()) == (0, "", str(found))
