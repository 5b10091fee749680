"""A scriptable llama-server double: real sockets, real bytes, and exactly the faults that a test asks for.

It exists for what a healthy llama-server cannot be made to show: answers cut at a given byte, stalls, wrong framing,
web pages, redirects. Anything else is better tested against a real server.

    with ServerDouble(Script(sse_answer(["Hel", "lo"]), cut_at=300)) as server:
        StreamingClient(server.url).chat([...])
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from llamastream.testing.listener import Listener
from llamastream.testing.wire import LAST_CHUNK, chunk, read_request, reset_on_close


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


class ServerDouble(Listener):
    """Answers each connection by the next script; the last one is repeated. Listens on a free port of 127.0.0.1.

    Attributes:
        url: its base URL. requests: the raw requests that came, in order.
        connections: how many connections are open now. accepted: how many there were in all.
        most_unanswered: how many requests waited for an answer at the same time, at most.
    """

    def __init__(self, *scripts: Script, tls: ssl.SSLContext | None = None, port: int = 0, listen: bool = True) -> None:
        """`listen=False` begins to listen, on `port`, only when the double is entered."""
        super().__init__(port=port, listen=listen)
        self._scripts: Sequence[Script] = scripts or (Script(stall=True),)
        self._tls = tls
        self._released = threading.Semaphore(0)
        self.requests: list[bytes] = []
        self._unanswered = 0
        self.most_unanswered = 0
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}"

    def release(self, answers: int) -> None:
        """Let so many answers of scripts with `hold` go out."""
        self._released.release(answers)

    def serve(self, connection: socket.socket, number: int) -> None:
        script = self._scripts[min(number, len(self._scripts) - 1)]
        if self._tls is None:
            self._answer_and_end(connection, script)
        else:
            with self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=True) as wrapped:
                self._answer_and_end(wrapped, script)

    def _answer_and_end(self, connection: socket.socket, script: Script) -> None:
        self.answer(connection, script)
        if script.reset:
            reset_on_close(connection)

    def take_request(self, connection: socket.socket) -> bytes:
        """Read one request and note it; b"" if the client left instead."""
        request = read_request(connection)
        with self.lock:
            if request:
                self.requests.append(request)
                self._unanswered += 1
                self.most_unanswered = max(self.most_unanswered, self._unanswered)
            self.lock.notify_all()
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
        with self.lock:
            self._unanswered -= 1  # before the client can know
        data = script.response if script.cut_at is None else script.response[: script.cut_at]
        step = script.piece or max(1, len(data))
        for start in range(0, len(data), step):
            connection.sendall(data[start : start + step])


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
    return head + b"".join(chunk(body) for body in bodies) + (LAST_CHUNK if end else b"")


def sse_answer(texts: Sequence[str], *, finish_reason: str | None = "stop", done: bool = True) -> bytes:
    """A whole, healthy streaming response."""
    return chunked(sse_events(texts, finish_reason=finish_reason, done=done))
