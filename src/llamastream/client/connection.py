"""A blocking connection: TCP, TLS or a Unix socket, with deadlines, and a way to break it off from another thread."""

from __future__ import annotations

import contextlib
import encodings.idna  # noqa: F401  # else the first look-up of a name does, which may hang in the child of a fork
import os
import socket
import ssl
import struct
from math import inf
from time import monotonic

from llamastream.address import Address
from llamastream.client.oserrors import describe_os_error
from llamastream.errors import ConnectError, ConnectTimeoutError
from llamastream.protocol.http1 import ResponseReader

RECEIVE_BYTES = 64 * 1024
LONGEST_WAIT = 30 * 86400.0
"""Seconds of one wait at most: what sockets and timers can take has bounds. Who waits longer waits again."""


class Connection:
    """One connection for one request. Deadlines are values of `time.monotonic()`; `math.inf` waits for ever.

    Only `abort` may be called from another thread.
    """

    def __init__(self, address: Address, tls: ssl.SSLContext | None) -> None:
        self._address = address
        self._tls = tls
        self._socket: socket.socket | None = None
        self._aborted = False
        self._process = os.getpid()
        self._broken = False
        self._armed = inf  # the timeout that the socket has now
        self._steady = 0.0  # the timeout of `receive_within`, where that was used last
        self._secure = tls is not None and address.scheme == "https"

    def connect(self, deadline: float) -> None:
        """Connect, TLS included.

        Raises:
            ConnectTimeoutError: not within the deadline.
            ConnectError: no such host, refused, unreachable, no such socket, or TLS failed.
        """
        started = monotonic()
        try:
            self._socket = self._open(deadline)
            if self._tls is not None and self._address.scheme == "https":
                self._arm(deadline)
                # server_hostname in brackets or with a zone would not match a certificate; urlsplit has removed both.
                wrapped = self._tls.wrap_socket(
                    self._socket, server_hostname=self._address.host, do_handshake_on_connect=False
                )
                self._socket = wrapped  # before the handshake, so that `abort` can end that
                if self._aborted:
                    raise ConnectionAbortedError
                wrapped.do_handshake()
        except TimeoutError:
            self.close()
            raise ConnectTimeoutError(
                f"{self._address.url}: no connection within {monotonic() - started:.1f} s (Timeouts.connect)"
            ) from None
        except OSError as error:
            self.close()
            raise connect_error(self._address, error) from error

    def _open(self, deadline: float) -> socket.socket:
        address = self._address
        if address.socket is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            candidates: list[tuple[socket.socket, object]] = [(sock, address.socket)]
        else:
            found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
            candidates = [(socket.socket(family, kind, proto), where) for family, kind, proto, _, where in found]
        failure: OSError = OSError("no address found")
        connected: socket.socket | None = None
        for sock, where in candidates:
            if connected is not None:
                sock.close()
                continue
            self._socket = sock
            try:
                if self._aborted:
                    raise ConnectionAbortedError
                self._arm(deadline)
                sock.connect(where)  # type: ignore[arg-type]  # getaddrinfo's own address tuples, or a path
                if address.socket is None:
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connected = sock
            except OSError as error:
                failure = error
                sock.close()
        if connected is None:
            raise failure
        return connected

    def send(self, data: bytes, deadline: float) -> None:
        """Send all of `data`.

        Raises:
            OSError: the connection broke; TimeoutError: not within the deadline.
        """
        assert self._socket is not None
        self._arm(deadline)
        self._socket.sendall(data)

    def receive(self, deadline: float) -> bytes:
        """Some bytes, or b"" at the end of the connection.

        Raises:
            OSError: the connection broke; TimeoutError: nothing came within the deadline.
        """
        assert self._socket is not None
        self._arm(deadline)
        try:
            return self._socket.recv(RECEIVE_BYTES)
        except ssl.SSLEOFError:
            # No close_notify: a cut. The framing of HTTP tells whether something is missing.
            return b""

    def receive_within(self, seconds: float) -> bytes:
        """As `receive`, for the same number of seconds each time: one system call instead of a poll and a read.

        Raises:
            OSError: the connection broke; TimeoutError: nothing came within the time.
        """
        sock = self._socket
        assert sock is not None
        if self._steady != seconds:
            # The kernel's own timeout on a blocking socket. TLS has no use for it: Python waits for records itself.
            sock.settimeout(seconds if self._secure else None)
            if not self._secure:
                # At least a microsecond, since the kernel takes zero for no limit.
                whole, rest = divmod(max(1, int(seconds * 1e6)), 1_000_000)
                timeval = struct.pack("ll", whole, rest)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
            self._steady = seconds
        try:
            return sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            raise TimeoutError from None
        except ssl.SSLEOFError:
            return b""

    def _arm(self, deadline: float) -> None:
        """Set the socket's timeout, a system call, only if it would be off by more than a hundredth."""
        assert self._socket is not None
        if self._steady:
            self._steady = 0.0
            self._armed = -1.0
        if deadline == inf:
            if self._armed != inf:
                self._socket.settimeout(None)
                self._armed = inf
            return
        left = min(deadline - monotonic(), LONGEST_WAIT)
        if left <= 0:
            raise TimeoutError
        if not left <= self._armed <= left * 1.01:
            self._socket.settimeout(left)
            self._armed = left

    @property
    def usable(self) -> bool:
        """Whether it is connected and nothing has gone wrong with it."""
        return self._socket is not None and not self._aborted and not self._broken

    def still_usable(self, reader: ResponseReader) -> bool:
        """Whether an idle connection lives: the response that came over it is complete, and nothing has come since.

        Reads, without waiting, what may be left of that response (its last chunk often comes after `[DONE]`).
        """
        if not self.usable:
            return False
        assert self._socket is not None
        try:
            self._socket.settimeout(0)
            self._armed = 0.0
            self._steady = 0.0
            while data := self._socket.recv(RECEIVE_BYTES):
                reader.feed(data)
                if reader.trailing or reader.failure is not None:
                    return False
        except (BlockingIOError, ssl.SSLWantReadError):
            return reader.complete
        except OSError:
            return False
        return False

    def abort(self) -> None:
        """Break the connection off from any thread: a read that waits returns at once."""
        self._aborted = True
        sock = self._socket
        if sock is not None and self._process == os.getpid():  # a forked child's copy is the parent's connection too
            # Not close(): the descriptor could be given to somebody else while the reader still waits on it. And not
            # SSLSocket.shutdown(), which takes the TLS state away from the reader.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        self._broken = True
        if self._socket is not None:
            self._socket.close()


def connect_error(address: Address, error: OSError) -> ConnectError:
    """What went wrong on the way to a server, and what to do about it."""
    url = address.url
    if isinstance(error, ssl.SSLCertVerificationError):
        return ConnectError(
            f"{url}: the server's certificate is not trusted ({error.verify_message}); "
            "give its authority as ca_file, and use the name that the certificate was made for"
        )
    if isinstance(error, ssl.SSLError):
        return ConnectError(f"{url}: TLS failed ({error.reason or error}); does the server speak https?")
    if isinstance(error, socket.gaierror):
        return ConnectError(f"{url}: the host name {address.host!r} is not known ({describe_os_error(error)})")
    hint = "is the server running?"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        hint = "nothing listens there; start a server with `llamastream serve`, or check the address"
    return ConnectError(f"{url}: no connection: {describe_os_error(error)}; {hint}")
