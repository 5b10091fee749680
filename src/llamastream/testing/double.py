"""A scriptable llama-server double: real sockets, real bytes, and exactly the faults that a test asks for.

It exists for what a healthy llama-server cannot be made to show: answers cut at a given byte, stalls, wrong framing,
web pages, redirects. Anything else is better tested against a real server.

    with ServerDouble(Script(sse_answer(["Hel", "lo"]), cut_at=300)) as server:
        StreamingClient(server.url).chat([...])
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

import msgspec
from msgspec import Struct


class Script(Struct, frozen=True):
    """How one connection is answered.

    Attributes:
        response: the bytes to send, header and all.
        cut_at: send only so many bytes. reset: end with a TCP reset instead of an orderly close.
        piece: send so many bytes at a time (0: all at once).
        stall: after sending, say nothing and keep the connection open until the client leaves.
        read_request: wait for the whole request first; False answers (or stalls) at once.
        repeat: keep the connection and answer every request on it. requests: so many only, then close (0: all).
        hold: answer only when `ServerDouble.release` allows it.
    """

    response: bytes = b""
    cut_at: int | None = None
    reset: bool = False
    piece: int = 0
    stall: bool = False
    read_request: bool = True
    repeat: bool = False
    requests: int = 0
    hold: bool = False


class ServerDouble:
    """Answers each connection by the next script; the last one is repeated. Listens on a free port of 127.0.0.1.

    Attributes:
        url: its base URL. requests: the raw requests that came, in order.
        connections: how many connections are open now. most_connections: at most at the same time.
        accepted: how many there were in all.
    """

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None, port: int = 0, listen: bool = True) -> None:
        """`listen=False` begins to listen, on `port`, only when the double is entered."""
        self._scripts: Sequence[Script] = scripts or (Script(stall=True),)
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128) if listen else socket.socket()
        self._late_port = None if listen else port
        self._tls = tls
        self._count = 0
        self._lock = threading.Condition()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closing = False
        self.requests: list[bytes] = []
        self.most_connections = 0
        self._released = threading.Semaphore(0)
        actual = self._listener.getsockname()[1] if listen else port
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{actual}"

    @property
    def connections(self) -> int:
        with self._lock:
            return len(self._open)

    @property
    def accepted(self) -> int:
        with self._lock:
            return self._count

    def release(self, answers: int) -> None:
        """Let so many answers of scripts with `hold` go out."""
        self._released.release(answers)

    def wait_for(self, condition: Callable[[ServerDouble], bool], timeout: float = 10.0) -> bool:
        """Wait until `condition(self)` holds; it is looked at whenever a connection comes, asks or goes."""
        with self._lock:
            return self._lock.wait_for(lambda: condition(self), timeout)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closing:
                    connection.close()
                    return
                script = self._scripts[min(self._count, len(self._scripts) - 1)]
                self._count += 1
                self._open.add(connection)
                self.most_connections = max(self.most_connections, len(self._open))
                thread = threading.Thread(target=self._serve, args=(connection, script), daemon=True)
                self._threads.append(thread)
                thread.start()  # under the lock: close() may come in the next moment and joins what it finds
                self._lock.notify_all()

    def _serve(self, raw: socket.socket, script: Script) -> None:
        connection = raw
        try:
            with contextlib.suppress(OSError):
                if self._tls is not None:
                    connection = self._tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=True)
                self.answer(connection, script)
                if script.reset:
                    # SO_LINGER with zero seconds: close sends RST instead of FIN.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        finally:
            with self._lock:
                self._open.discard(raw)
                self._lock.notify_all()
            connection.close()
            raw.close()

    def take_request(self, connection: socket.socket) -> bytes:
        """Read one request and note it; b"" if the client left instead."""
        request = _read_request(connection)
        with self._lock:
            if request:
                self.requests.append(request)
            self._lock.notify_all()
        return request

    def answer(self, connection: socket.socket, script: Script) -> None:
        """Answer one connection; subclasses may do it in their own way."""
        served = 0
        while True:
            if script.read_request and not self.take_request(connection):
                return
            if script.requests and served >= script.requests:
                return
            if script.hold and not self._released.acquire(timeout=30):
                return
            self._send(connection, script)
            served += 1
            if not script.repeat:
                break
        if script.stall:
            while connection.recv(4096):
                pass

    def _send(self, connection: socket.socket, script: Script) -> None:
        data = script.response if script.cut_at is None else script.response[: script.cut_at]
        step = script.piece or max(1, len(data))
        for start in range(0, len(data), step):
            connection.sendall(data[start : start + step])

    def close(self) -> None:
        """Stop listening and break every connection off."""
        with self._lock:
            self._closing = True
            open_now = list(self._open)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in open_now:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)

    def __enter__(self) -> Self:
        if self._late_port is not None:
            self._listener.close()
            self._listener = socket.create_server(("127.0.0.1", self._late_port), backlog=128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        if not part:
            return data
        data += part
    head, _, _ = data.partition(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    while len(data) < len(head) + 4 + length:
        part = connection.recv(65536)
        if not part:
            return data
        data += part
    return data


# -- answers in llama-server's own form ---------------------------------------------------------------------


def sse_events(
    texts: Sequence[str], *, finish_reason: str | None = "stop", done: bool = True, usage: bool = True
) -> list[bytes]:
    """The `data:` events of a chat stream: role, one chunk for each text, finish reason, usage, `[DONE]`."""
    chunks: list[dict[str, object]] = [_chunk({"role": "assistant", "content": None})]
    chunks += [_chunk({"content": text}) for text in texts]
    if finish_reason is not None:
        chunks.append(_chunk({}, finish_reason))
    if usage:
        count = len(texts)
        tokens = {"prompt_tokens": 5, "completion_tokens": count, "total_tokens": 5 + count}
        chunks.append({**_chunk({}), "choices": [], "usage": tokens})
    events = [b"data: " + msgspec.json.encode(chunk) + b"\n\n" for chunk in chunks]
    return [*events, b"data: [DONE]\n\n"] if done else events


def _chunk(delta: dict[str, object], finish_reason: str | None = None) -> dict[str, object]:
    return {
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish_reason}],
        "created": 1,
        "id": "chatcmpl-double",
        "model": "double",
        "object": "chat.completion.chunk",
    }


def chunked(bodies: Sequence[bytes], *, end: bool = True) -> bytes:
    """An HTTP response with an event stream, each body a chunk of its own."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    framed = b"".join(f"{len(body):x}".encode() + b"\r\n" + body + b"\r\n" for body in bodies)
    return head + framed + (b"0\r\n\r\n" if end else b"")


def sse_answer(texts: Sequence[str], *, finish_reason: str | None = "stop", done: bool = True) -> bytes:
    """A whole, healthy streaming response."""
    return chunked(sse_events(texts, finish_reason=finish_reason, done=done))


def http_answer(status: str, body: bytes, content_type: str = "application/json", *extra: str) -> bytes:
    """A response with a length: `http_answer("503 Service Unavailable", b"...")`."""
    lines = [f"HTTP/1.1 {status}", f"Content-Type: {content_type}", f"Content-Length: {len(body)}", *extra]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body
