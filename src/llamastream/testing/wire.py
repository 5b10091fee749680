"""What every double on a socket does: read a request, frame an answer, end a connection in a chosen way."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import sys
import time

from llamastream.testing.framing import MessageReader


def read_request(connection: socket.socket, rest: bytearray | None = None) -> bytes:
    """Read one request, head and body; less than that if the client leaves before its end.

    Args:
        rest: bytes that came with the request before; what comes behind this one is left in it.
    """
    reader = MessageReader(request=True)
    data = b""
    part = bytes(rest or b"")
    while True:
        data += b"".join(span.data for span in reader.feed(part))
        if reader.done:
            if rest is not None:
                rest[:] = reader.rest
            return data
        part = connection.recv(65536)
        if not part:
            return data + bytes(reader.rest)


def is_complete(request: bytes) -> bool:
    """Whether a request that was read is all there."""
    reader = MessageReader(request=True)
    reader.feed(request)
    return reader.done


def chunk(body: bytes) -> bytes:
    """One HTTP chunk."""
    return f"{len(body):x}".encode() + b"\r\n" + body + b"\r\n"


LAST_CHUNK = b"0\r\n\r\n"


def http_answer(status: str, body: bytes, content_type: str = "application/json", *extra: str) -> bytes:
    """A response with a length: `http_answer("503 Service Unavailable", b"...")`."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *extra]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def readable(*connections: socket.socket, timeout: float | None = None) -> list[socket.socket]:
    """Those which have something to read, or have ended; waits until there is one, or for `timeout` seconds."""
    with selectors.PollSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        ready = {key.fileobj for key, _ in selector.select(timeout)}
    return [connection for connection in connections if connection in ready]


def reset_on_close(connection: socket.socket) -> None:
    """Let `close` send RST instead of FIN: SO_LINGER with zero seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def wait_until_received(connection: socket.socket, timeout: float = 5.0) -> bool:
    """Wait until the peer's system has acknowledged all that was sent; False if that takes too long.

    A reset throws away what the sender still has to send. What the receiver's system has, Linux lets its program read
    before the reset is reported.
    """
    until = time.monotonic() + timeout
    with contextlib.suppress(OSError):
        while _unacknowledged(connection):
            if time.monotonic() > until:
                return False
            time.sleep(0.0005)  # a poll: the system has no event for this
    return True


def _unacknowledged(connection: socket.socket) -> int:
    """How many bytes were sent and not yet acknowledged; 0 where the system cannot tell."""
    if sys.platform == "linux":
        import fcntl
        import termios

        return int(struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    if sys.platform == "darwin":
        return connection.getsockopt(socket.SOL_SOCKET, 0x1024)  # SO_NWRITE
    return 0
