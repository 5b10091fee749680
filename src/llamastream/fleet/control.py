"""The control socket: takes requests from commands of the same user, and hands back what comes of them.

One thread accepts, and each connection has a thread of its own, with a bound on their number, on what is read, and on
the time that a peer may take: one that stalls or talks nonsense costs its own connection.
"""

from __future__ import annotations

import contextlib
import logging
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

from llamastream.errors import SettingError
from llamastream.fleet.messages import (
    BEAT_SECONDS,
    MAX_REQUEST,
    AskLogs,
    Beat,
    Refused,
    Reply,
    Request,
    decode_request,
    encode,
)
from llamastream.fleet.peers import may_control, peer_uid

MAX_CONNECTIONS = 32
MAX_FOLLOWERS = 24
"""Of these: so that however many follow the log, somebody can still look and stop."""
REQUEST_SECONDS = 5.0
"""From the connection to the whole request."""
SEND_SECONDS = 10.0
"""That a peer may let a line wait."""
ROOM_SECONDS = 1.0
"""For the thread of one that was hung up on, to leave."""
_PAUSE = 0.1

logger = logging.getLogger("llamastream.fleet")


class ControlServer:
    """Listens from `start` to `close`."""

    def __init__(self, path: Path, carry_out: Callable[[Request], Iterator[Reply | None]]) -> None:
        """Bind the socket, in a directory that nobody else can enter.

        Raises:
            SettingError: it cannot be made.
        """
        self._path = path
        self._carry_out = carry_out
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._following = threading.BoundedSemaphore(MAX_FOLLOWERS)
        self._connections: dict[socket.socket, threading.Thread] = {}
        self._silent: dict[socket.socket, None] = {}  # that have not asked for anything yet, the oldest first
        self._lock = threading.Lock()
        self._closing = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._wake, self._woken = socket.socketpair()
        try:
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(MAX_CONNECTIONS)
        except OSError as error:
            for end in (self._listener, self._wake, self._woken):
                end.close()
            raise SettingError(f"the control socket {str(path)!r} cannot be made: {error.strerror}") from None
        self._listener.setblocking(False)
        self._thread = threading.Thread(target=self._accept, name="llamastream-control", daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it still answers."""
        return self._thread.is_alive()

    def close(self, patience: float = 2.0) -> None:
        """Take nothing more; what is under way may end within `patience` seconds. Idempotent."""
        if self._closing:
            return
        self._closing = True
        self._wake.send(b"x")
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink()
        end = time.monotonic() + patience
        with self._lock:
            connections = dict(self._connections)
        for connection, thread in connections.items():
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for each in (self._listener, self._wake, self._woken):
            each.close()

    def _accept(self) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing:
                selector.select()
                if self._closing:
                    return
                try:
                    connection, _ = self._listener.accept()
                except BlockingIOError:
                    continue
                except OSError:  # out of descriptors, most likely: others will be closed again
                    time.sleep(_PAUSE)
                    continue
                self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        connection.settimeout(SEND_SECONDS)
        if not (self._free.acquire(blocking=False) or self._make_room()):
            with connection:
                connection.settimeout(_PAUSE)
                _say(connection, Refused(f"{MAX_CONNECTIONS} commands are connected already: end one of them"))
            return
        thread = threading.Thread(target=self._talk, args=(connection,), name="llamastream-control-peer", daemon=True)
        with self._lock:
            self._connections[connection] = thread
            self._silent[connection] = None
        try:
            thread.start()
        except RuntimeError:  # the system gives no more threads
            self._forget(connection)

    def _make_room(self) -> bool:
        """Hang up on the one that has been connected for longest without asking for anything; whether there is room."""
        with self._lock:
            oldest = next(iter(self._silent), None)
            if oldest is None:
                return False
            del self._silent[oldest]
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread wakes up, and leaves
        return self._free.acquire(timeout=ROOM_SECONDS)

    def _forget(self, connection: socket.socket) -> None:
        with self._lock:
            del self._connections[connection]
            self._silent.pop(connection, None)
        connection.close()
        self._free.release()

    def _talk(self, connection: socket.socket) -> None:
        try:
            if may_control(peer_uid(connection)):
                self._answer(connection)
        except OSError:
            pass  # it left, or did not take what it asked for
        except Exception:  # a mistake of ours must not take the supervisor with it
            logger.exception("a request over the control socket failed")
        finally:
            self._forget(connection)

    def _answer(self, connection: socket.socket) -> None:
        line = _read_line(connection, time.monotonic() + REQUEST_SECONDS)
        with self._lock:
            self._silent.pop(connection, None)
        if not line:
            return
        try:
            request = decode_request(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            _say(connection, Refused(f"this is no request: {error}"))
            return
        connection.settimeout(SEND_SECONDS)
        if not (isinstance(request, AskLogs) and request.follow):
            self._tell(connection, request)
        elif self._following.acquire(blocking=False):
            try:
                self._tell(connection, request)
            finally:
                self._following.release()
        else:
            _say(connection, Refused(f"{MAX_FOLLOWERS} commands follow the log already: end one of them"))

    def _tell(self, connection: socket.socket, request: Request) -> None:
        """Have it carried out, and say what comes of it until the end, or until the peer leaves."""
        said = time.monotonic()
        for reply in self._carry_out(request):
            now = time.monotonic()
            if reply is None:
                if _has_left(connection):
                    return
                if now - said < BEAT_SECONDS:
                    continue
                reply = Beat()
            _say(connection, reply)
            said = now


def _say(connection: socket.socket, reply: Reply) -> None:
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(encode(reply) + b"\n")


def _read_line(connection: socket.socket, deadline: float) -> bytes:
    """One line without its end; b"" if the peer has none to offer.

    Raises:
        TimeoutError: it is not whole in time.
    """
    line = bytearray()
    while b"\n" not in line:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)
        part = connection.recv(4096)
        if not part:
            return b""
        line += part
        if len(line) > MAX_REQUEST:
            _say(connection, Refused(f"a request may have {MAX_REQUEST} bytes at most"))
            return b""
    return bytes(line.partition(b"\n")[0])


def _has_left(connection: socket.socket) -> bool:
    """Whether the peer has closed its end: it has nothing more to say, and must not be waited for."""
    poll = select.poll()
    poll.register(connection, select.POLLIN)
    return bool(poll.poll(0)) and connection.recv(1, socket.MSG_PEEK) == b""
