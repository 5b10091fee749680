"""Where a server is to listen: is the port free, is the socket path usable."""

from __future__ import annotations

import errno
import os
import socket
import stat
from pathlib import Path

import psutil

from llamastream.errors import PortInUseError, SettingError


def check_port(host: str, port: int) -> None:
    """Try to bind a port, as llama-server will.

    Raises:
        PortInUseError: taken (naming the process, where the system tells), not permitted, or no address of ours.
    """
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise PortInUseError(f"cannot listen on {host!r}: {error.strerror or error}; give an IP address") from None
    family, kind, protocol, _, address = infos[0]
    with socket.socket(family, kind, protocol) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(address)
        except OSError as error:
            raise PortInUseError(_bind_message(host, port, error)) from None


def _bind_message(host: str, port: int, error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        owner = port_owner(port)
        by = f" by {owner}" if owner else ""
        return f"port {port} on {host} is taken{by}: choose another (0: any free one), or stop it"
    if error.errno == errno.EACCES:
        return f"port {port} may not be bound by this user: choose one from 1024 up, or 0 for any free one"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{host} is no address of this machine: give one that is, such as 127.0.0.1, or 0.0.0.0 for all"
    return f"cannot listen on {host} port {port}: {error.strerror}"


def port_owner(port: int) -> str:
    """`name (pid N)` of the process that listens on a port, "" if the system does not say."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN and connection.laddr
            if listens and listens.port == port and connection.pid:
                return f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
    except (psutil.Error, OSError):
        pass  # macOS tells only root
    return ""


def prepare_socket(path: str) -> bool:
    """Make room for a Unix socket: a private directory, no stale socket; whether the directory was made for it.

    Raises:
        PortInUseError: a server answers on the socket already, or the directory cannot be written.
        SettingError: something that is no socket is in the way.
    """
    directory = Path(path).parent
    made = not directory.exists()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        if not os.access(directory, os.W_OK | os.X_OK):
            raise PortInUseError(f"cannot make the socket {path!r}: its directory is not writable") from None
        return made
    except OSError as error:
        raise PortInUseError(f"cannot make the socket {path!r}: {error.strerror}") from None
    if not stat.S_ISSOCK(mode):
        raise SettingError(f"socket is {path!r}, but that is a file and no socket: choose another path, or remove it")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            # left by a server that was killed: nobody listens
            Path(path).unlink(missing_ok=True)
            return made
        except OSError:
            pass  # a full backlog: somebody is there
    raise PortInUseError(f"a server listens on the socket {path!r} already: choose another path, or stop it")
