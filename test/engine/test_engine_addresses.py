"""Ports and sockets, looked at before a server is started on them."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from llamastream.engine.addresses import check_port, prepare_socket
from llamastream.engine.facts import port_fact
from llamastream.errors import PortInUseError, SettingError


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield sock.getsockname()[1]


def test_a_taken_port_is_told_with_its_owner(taken: int) -> None:
    with pytest.raises(PortInUseError, match=f"port {taken} on 127.0.0.1 is taken") as caught:
        check_port("127.0.0.1", taken)
    assert f"pid {os.getpid()}" in str(caught.value) or os.uname().sysname == "Darwin"
    fact = port_fact("127.0.0.1", taken)
    assert not fact.free
    assert "taken" in fact.problem


def test_free_ports_and_foreign_addresses() -> None:
    check_port("127.0.0.1", 0)
    assert port_fact("localhost", 0).free
    with pytest.raises(PortInUseError, match="no address of this machine"):
        check_port("192.0.2.1", 0)
    with pytest.raises(PortInUseError, match="give an IP address"):
        check_port("no such host", 0)


def test_a_socket_directory_is_made_private(short_tmp: Path) -> None:
    path = short_tmp / "new" / "a.sock"
    assert prepare_socket(str(path)) is True
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert prepare_socket(str(path)) is False


def test_a_stale_socket_is_removed_and_a_live_one_is_not(short_tmp: Path) -> None:
    path = short_tmp / "a.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path))
        sock.listen()
        with pytest.raises(PortInUseError, match="already"):
            prepare_socket(str(path))
        assert path.exists()
    prepare_socket(str(path))
    assert not path.exists()


def test_a_file_in_the_way_is_left_alone(short_tmp: Path) -> None:
    path = short_tmp / "a.sock"
    path.write_text("precious")
    with pytest.raises(SettingError, match="no socket"):
        prepare_socket(str(path))
    assert path.read_text() == "precious"
