"""What systemd is told, read from a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamastream.fleet.systemd import Notifier
from serving import runtime_directory


class Listener:
    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(10)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def hear(self) -> dict[str, str]:
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    with runtime_directory() as directory:
        address = str(Path(directory) / "notify") if request.param == "path" else f"@{directory}"
        listener = Listener(address)
        yield listener
        listener.close()


def test_it_says_how_it_is(listener: Listener) -> None:
    environ = {"NOTIFY_SOCKET": listener.address, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}
    notifier = Notifier(environ)
    assert environ == {}
    assert notifier.watchdog == 1.5
    notifier.ready("2 of 2\ninstances ready")
    assert listener.hear() == {"READY": "1", "STATUS": "2 of 2 instances ready"}
    notifier.reloading()
    heard = listener.hear()
    assert heard["RELOADING"] == "1"
    assert heard["MONOTONIC_USEC"].isdecimal()
    notifier.alive()
    assert listener.hear() == {"WATCHDOG": "1"}
    notifier.extend(20)
    assert listener.hear() == {"EXTEND_TIMEOUT_USEC": "20000000"}
    notifier.stopping("bye")
    assert listener.hear() == {"STOPPING": "1", "STATUS": "bye"}
    notifier.close()
    notifier.status("nobody hears it")


@pytest.mark.parametrize(
    "environ",
    [{"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {}],
    ids=str,
)
def test_a_watchdog_of_somebody_else_is_none_of_ours(listener: Listener, environ: dict[str, str]) -> None:
    notifier = Notifier({**environ, "NOTIFY_SOCKET": listener.address})
    assert notifier.watchdog is None
    notifier.alive()
    notifier.status("the first that is heard")
    assert listener.hear() == {"STATUS": "the first that is heard"}
    notifier.close()


def test_without_systemd_nothing_is_said_and_nothing_fails() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    assert notifier.watchdog is None
    gone = Notifier({"NOTIFY_SOCKET": "/no/such/socket"})
    gone.ready("x")
    gone.close()
