"""The control socket: real sockets, and peers that stall, leave, or talk nonsense."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llamastream.errors import SettingError
from llamastream.fleet import control, control_client, peers, rendezvous
from llamastream.fleet.control import ControlServer
from llamastream.fleet.control_client import ControlClient, ControlError, find
from llamastream.fleet.messages import (
    MAX_REQUEST,
    AskLogs,
    AskStatus,
    Done,
    FleetStatus,
    Refused,
    Reply,
    Request,
    Said,
)
from llamastream.fleet.records import Record
from polling import wait_for
from serving import runtime_directory

STATUS = FleetStatus(name="f", pid=1, version="0", started=0.0, phase="running", instances=())


class Answers:
    """What the socket is asked, and answers that a test determines."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.left = threading.Event()
        self.hang = threading.Event()

    def carry_out(self, request: Request) -> Iterator[Reply | None]:
        self.asked.append(request)
        while self.hang.is_set():
            yield None
            threading.Event().wait(0.01)  # as the real one waits for the next record
        if isinstance(request, AskStatus):
            yield STATUS
            yield Done()
        elif isinstance(request, AskLogs) and request.follow:
            try:
                yield Said(Record(time=0.0, level="info", event="state", message="first"))
                while True:
                    threading.Event().wait(0.01)  # as the real one waits for the next record
                    yield None
            finally:
                self.left.set()
        else:
            yield Refused("no")


class Place:
    """A control socket that listens, and a client for it."""

    def __init__(self, path: Path) -> None:
        self.answers = Answers()
        self.path = path
        self.server = ControlServer(path, self.answers.carry_out)
        self.server.start()
        self.client = ControlClient("f", path)

    def dial(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(20)
        connection.connect(str(self.path))
        return connection

    def raw(self, request: bytes) -> list[Any]:
        """Send bytes, and read all that comes until the end."""
        with self.dial() as connection:
            with contextlib.suppress(BrokenPipeError):
                connection.sendall(request)
            data = b""
            with contextlib.suppress(ConnectionResetError):
                while part := connection.recv(65536):
                    data += part
        return [json.loads(line) for line in data.splitlines()]


@pytest.fixture
def place() -> Iterator[Place]:
    with runtime_directory() as directory:
        place = Place(directory / "control.sock")
        try:
            yield place
        finally:
            place.server.close()
            assert not place.path.exists()


def test_a_request_is_one_line_and_the_last_line_of_the_answer_says_ok(place: Place) -> None:
    assert [reply["kind"] for reply in place.raw(b'{"do":"status"}\n')] == ["status", "ok"]
    assert place.client.status() == STATUS


def test_only_its_user_can_enter(place: Place) -> None:
    assert stat.S_IMODE(place.path.stat().st_mode) == 0o600


def test_another_user_at_the_other_end_gets_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "peer_uid", lambda _: 4242)
    assert place.raw(b'{"do":"status"}\n') == []
    assert place.answers.asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_another_user_is_turned_away_even_where_the_files_let_him_in(place: Place) -> None:
    place.path.parent.chmod(0o755)
    place.path.chmod(0o666)
    program = (
        "import os, socket, sys\n"
        "os.setuid(65534)\n"
        "connection = socket.socket(socket.AF_UNIX)\n"
        "connection.connect(sys.argv[1])\n"
        'connection.sendall(b\'{"do":"stop"}\\n\')\n'
        "print(connection.recv(100))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(place.path)], capture_output=True, text=True, timeout=30)
    assert done.stdout == "b''\n" or "Error" in done.stderr  # closed, or reset, or broken
    assert place.answers.asked == []


def test_the_user_at_the_other_end_is_known() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert peers.peer_uid(left) == os.geteuid()
    assert peers.may_control(os.geteuid())
    assert peers.may_control(0)
    assert not peers.may_control(None)


@pytest.mark.parametrize(
    "garbage",
    [b"hello\n", b"{}\n", b'{"do":"fly"}\n', b'{"do":"restart","ids":5}\n', b"\xff\xfe\n", b"[1]\n", b"\n"],
    ids=repr,
)
def test_nonsense_is_refused_and_disturbs_nothing(place: Place, garbage: bytes) -> None:
    replies = place.raw(garbage)
    assert [reply["kind"] for reply in replies] in (["error"], [])
    assert place.answers.asked == []
    assert place.client.status() == STATUS


def test_a_request_without_end_is_refused(place: Place) -> None:
    replies = place.raw(b"x" * (MAX_REQUEST + 5000))
    assert [reply["kind"] for reply in replies] in (["error"], [])  # the rest of ours may reset the connection
    assert place.client.status() == STATUS


def test_who_says_nothing_is_dropped_and_others_are_served_meanwhile(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 0.3)
    with place.dial() as silent, place.dial() as slow:
        slow.send(b'{"do":')
        assert place.client.status() == STATUS
        assert silent.recv(1) == b""
        assert slow.recv(1) == b""


def test_only_so_many_may_be_connected(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.server, "_free", threading.BoundedSemaphore(2))
    with place.dial() as one, place.dial() as other:
        for connection in (one, other):
            connection.sendall(b'{"do":"logs","follow":true}\n')
            assert connection.recv(1)
        with pytest.raises(ControlError, match="commands are connected already"):
            place.client.status()
    wait_for(lambda: not place.server._connections)
    assert place.client.status() == STATUS
    wait_for(lambda: not place.server._connections)  # each gives back what it took, before the patch is undone


def test_who_says_nothing_makes_room_for_who_does(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.server, "_free", threading.BoundedSemaphore(2))
    with place.dial() as oldest, place.dial() as other:
        wait_for(lambda: len(place.server._connections) == 2)
        assert place.client.status() == STATUS
        assert oldest.recv(1) == b"", "the oldest was hung up on"
        other.sendall(b'{"do":"status"}\n')
        assert other.recv(1)
    wait_for(lambda: not place.server._connections)  # each gives back what it took, before the patch is undone


def test_the_status_of_a_fleet_that_hangs_is_not_waited_for_for_long(place: Place) -> None:
    place.answers.hang.set()
    with pytest.raises(ControlError, match="said nothing for 0.2 s: its supervisor hangs, or is stopped"):
        place.client.status(timeout=0.2)
    place.answers.hang.clear()


def test_followers_of_the_log_leave_room_for_others(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place.server, "_following", threading.BoundedSemaphore(1))
    following = place.client.ask(AskLogs(follow=True))
    assert isinstance(next(following), Said)
    with pytest.raises(ControlError, match="follow the log already"):
        list(place.client.ask(AskLogs(follow=True)))
    assert place.client.status() == STATUS
    following.close()  # type: ignore[attr-defined]  # a generator
    wait_for(lambda: not place.server._connections)
    again = place.client.ask(AskLogs(follow=True))
    assert isinstance(next(again), Said)
    again.close()  # type: ignore[attr-defined]  # the same
    wait_for(lambda: not place.server._connections)  # each gives back what it took, before the patch is undone


def test_who_leaves_ends_what_is_told_to_him(place: Place) -> None:
    replies = place.client.ask(AskLogs(follow=True))
    assert isinstance(next(replies), Said)
    replies.close()  # type: ignore[attr-defined]  # a generator
    assert place.answers.left.wait(10)


def test_a_fleet_without_news_says_that_it_lives(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "BEAT_SECONDS", 0.05)
    with place.dial() as connection, connection.makefile("rb") as lines:
        connection.sendall(b'{"do":"logs","follow":true}\n')
        kinds = [json.loads(lines.readline())["kind"] for _ in range(3)]
    assert kinds == ["record", "beat", "beat"]


def test_a_fleet_that_hangs_is_not_waited_for_for_ever(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "SILENCE_SECONDS", 0.2)
    with pytest.raises(ControlError, match="said nothing for 0.2 s"):
        list(place.client.ask(AskLogs(follow=True)))


def test_the_end_of_the_fleet_ends_all_connections(place: Place) -> None:
    replies = place.client.ask(AskLogs(follow=True))
    next(replies)
    place.server.close(patience=0.1)
    with pytest.raises(ControlError, match=r"ended before it had answered|broke"):
        list(replies)
    with pytest.raises(ControlError, match="cannot be reached"):
        place.client.status()


# -- where it is ------------------------------------------------------------------------------------------------------


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with runtime_directory() as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory / "run"))
        monkeypatch.setenv("XDG_STATE_HOME", str(directory / "state"))
        (directory / "run").mkdir()
        yield directory


def test_the_place_is_private_and_goes_with_the_fleet(runtime: Path) -> None:
    with contextlib.closing(rendezvous.settle("a")) as place:
        assert place.path == runtime / "run/llamastream/a"
        assert stat.S_IMODE(place.path.stat().st_mode) == 0o700
        assert stat.S_IMODE(place.path.parent.stat().st_mode) == 0o700
    assert not place.path.exists()


def test_without_a_runtime_directory_it_is_in_that_for_state(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("", "relative/path", "/dev/null"):
        monkeypatch.setenv("XDG_RUNTIME_DIR", value)
        with contextlib.closing(rendezvous.settle("a")) as place:
            assert place.path == runtime / "state/llamastream/run/a"


def test_a_path_that_is_too_long_for_a_socket_leads_to_a_short_one(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = runtime / ("x" * 90)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setenv("XDG_STATE_HOME", str(long))
    with contextlib.closing(rendezvous.settle("test-of-length")) as place:
        assert place.path == Path(f"/tmp/llamastream-{os.geteuid()}/test-of-length")
        assert stat.S_IMODE(place.path.parent.stat().st_mode) == 0o700
        server = ControlServer(place.path / rendezvous.SOCKET, Answers().carry_out)
        server.start()
        assert find("test-of-length").status() == STATUS
        server.close()


def test_a_directory_that_others_may_write_to_is_not_used(runtime: Path) -> None:
    (runtime / "run/llamastream").mkdir()
    (runtime / "run/llamastream").chmod(0o777)
    with contextlib.closing(rendezvous.settle("a")) as place:
        assert place.path == runtime / "state/llamastream/run/a"


def test_a_symlink_in_place_of_the_directory_is_not_followed(runtime: Path) -> None:
    (runtime / "elsewhere").mkdir()
    (runtime / "run/llamastream").symlink_to(runtime / "elsewhere")
    with contextlib.closing(rendezvous.settle("a")) as place:
        assert place.path == runtime / "state/llamastream/run/a"


def test_a_name_is_given_once(runtime: Path) -> None:
    with (
        contextlib.closing(rendezvous.settle("a")),
        pytest.raises(SettingError, match="a fleet with the name 'a' runs already.*choose another --port"),
    ):
        rendezvous.settle("a")
    rendezvous.settle("a").close()


def test_what_a_killed_fleet_left_is_cleared_by_the_next(runtime: Path) -> None:
    stale = runtime / "run/llamastream/dead"
    stale.mkdir(parents=True)
    (stale / "lock").touch()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(stale / rendezvous.SOCKET))
    with pytest.raises(ControlError, match="no fleet runs"):
        find()
    with contextlib.closing(rendezvous.settle("a")):
        assert not stale.exists()


def test_the_only_fleet_needs_no_name_and_several_do(runtime: Path) -> None:
    with contextlib.ExitStack() as stack:
        for name in ("a", "b"):
            place = stack.enter_context(contextlib.closing(rendezvous.settle(name)))
            server = stack.enter_context(
                contextlib.closing(ControlServer(place.path / rendezvous.SOCKET, Answers().carry_out))
            )
            server.start()
            if name == "a":
                assert find().name == "a"
        with pytest.raises(ControlError, match="several fleets run: choose one with --name; there are: a, b"):
            find()
        assert find("b").name == "b"
        with pytest.raises(ControlError, match="no fleet with the name 'c' runs; there are: a, b"):
            find("c")
