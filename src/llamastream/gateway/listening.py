"""Sockets that a gateway listens on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
from pathlib import Path

from llamastream.errors import PortInUseError

FILES_BESIDES = 256
"""File descriptors that are kept for everything that is no client's connection."""


def listening_socket(host: str, port: int, path: str | None, backlog: int) -> socket.socket:
    """A bound socket: at `path` if that is given, for this user alone, else on host and port.

    Raises:
        PortInUseError: it cannot be bound.
    """
    where = path if path is not None else f"{host or '*'}:{port}"
    try:
        return _unix_socket(path) if path is not None else _tcp_socket(host, port, backlog)
    except (OSError, OverflowError) as error:
        raise PortInUseError(
            f"the gateway cannot listen on {where}: {getattr(error, 'strerror', None) or error}"
        ) from None


def _tcp_socket(host: str, port: int, backlog: int) -> socket.socket:
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    listener = socket.socket(family, kind, protocol)
    try:
        if os.name == "posix":
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(backlog)
    except BaseException:
        listener.close()
        raise
    return listener


def _unix_socket(path: str) -> socket.socket:
    with contextlib.suppress(FileNotFoundError):
        if Path(path).is_socket() and not _answers(path):
            Path(path).unlink()  # what a killed gateway left
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(path)
        listener.listen(128)
    except BaseException:
        listener.close()
        raise
    finally:
        os.umask(before)
    return listener


def remove_socket(path: str | None) -> None:
    """Take away what `listening_socket` made at a path, if it did."""
    if path is not None:
        Path(path).unlink(missing_ok=True)


def _answers(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except OSError:
            return True
        return True


def url_of(listener: socket.socket, host: str, path: str | None, *, tls: bool) -> str:
    """The address of a listening socket."""
    if path is not None:
        return f"unix://{Path(path).absolute()}"
    address = listener.getsockname()
    name = f"[{host}]" if ":" in host else host or "127.0.0.1"
    return f"{'https' if tls else 'http'}://{name}:{address[1]}"


def room_for_connections(wanted: int) -> int:
    """So many connections of clients may be open at the same time: as many as are wanted, if the system lets us have
    the file descriptors. Each may need a second one, to a server."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 2 * wanted + FILES_BESIDES
    if soft != resource.RLIM_INFINITY and soft < needed:
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has a limit that it does not tell
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, raised), hard))
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    return max(16, min(wanted, (soft - FILES_BESIDES) // 2))
