"""The server that the benchmarks stream from: llama-server's chat chunks from prebuilt bytes, in a process of its own.

    python benchmarks/origin.py COUNTER_FILE      (prints the port, serves until its standard input ends)

The request's body steers it: `max_tokens` is the number of chunks, `model` the way they come. `burst` writes 64 KiB at
a time, as fast as they are taken. `paced-1000` writes one event at a time, 1000 a second at most, and holds each back
until the client's own code has had the one before (it says so in `COUNTER_FILE`, eight bytes that both map): so each
read of each client finds one event, however busy the machine is. `turns-1000-0` and `turns-1000-1` are two such streams
to one process that get their events in turn. Like llama-server, it puts each event into an HTTP
chunk of its own, announces keep-alive, and closes the connection after the stream.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import socket
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

PIECES = (
    "Once",
    " upon",
    " a",
    " time",
    ",",
    " a",
    " small",
    " naïve",
    " model",
    " told",
    " tales",
    ".",
    "\n\n",
    '"',
    "The",
    " end",
)
"""The answer's text, piece by piece, over and over."""

BLOCK_BYTES = 64 * 1024
GIVE_UP_AFTER = 30.0

_COMMON = (
    '"created":1790000000,"id":"chatcmpl-Zb1V2n7Qx4LrT9sWk3YpE8uHd6GmCa0J","model":"demo",'
    '"system_fingerprint":"b11549-0c1e570","object":"chat.completion.chunk"'
)
_HEADER = (
    b"HTTP/1.1 200 OK\r\nKeep-Alive: timeout=5, max=100\r\nContent-Type: text/event-stream\r\nServer: llama.cpp\r\n"
    b"Transfer-Encoding: chunked\r\nX-Accel-Buffering: no\r\nAccess-Control-Allow-Origin: \r\n\r\n"
)
_LAST = (
    '{"choices":[{"finish_reason":"stop","index":0,"delta":{}}],' + _COMMON + ","
    '"usage":{"completion_tokens":%d,"prompt_tokens":12,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":0}},'
    '"timings":{"cache_n":0,"prompt_n":12,"prompt_ms":8.5,"prompt_per_token_ms":0.7,"prompt_per_second":1411.7,'
    '"predicted_n":%d,"predicted_ms":900.0,"predicted_per_token_ms":0.9,"predicted_per_second":1111.1}}'
)


def _frame(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%s\r\n" % (len(event), event)


def _chunk(delta: str) -> bytes:
    return _frame('{"choices":[{"finish_reason":null,"index":0,"delta":' + delta + "}]," + _COMMON + "}")


_FIRST = _HEADER + _chunk('{"role":"assistant","content":null}')
_CHUNKS = tuple(_chunk(f'{{"content":{json.dumps(piece, ensure_ascii=False)}}}') for piece in PIECES)
_CYCLE = b"".join(_CHUNKS)
_BLOCK = _CYCLE * (BLOCK_BYTES // len(_CYCLE))
_BLOCK_CHUNKS = len(PIECES) * (BLOCK_BYTES // len(_CYCLE))


def _end(chunks: int) -> bytes:
    return _frame(_LAST % (chunks, chunks + 12, chunks)) + _frame("[DONE]") + b"0\r\n\r\n"


def expected_characters(chunks: int) -> int:
    """How many characters the text of so many chunks has."""
    cycles, rest = divmod(chunks, len(PIECES))
    return cycles * sum(map(len, PIECES)) + sum(map(len, PIECES[:rest]))


def expected_bytes(chunks: int) -> int:
    """How many bytes a whole response of so many chunks has, header and framing included."""
    cycles, rest = divmod(chunks, len(PIECES))
    return len(_FIRST) + cycles * len(_CYCLE) + sum(map(len, _CHUNKS[:rest])) + len(_end(chunks))


class Origin:
    """Listens on a free port of 127.0.0.1 and answers each connection in a thread."""

    def __init__(self, counter_file: Path) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        with counter_file.open("r+b") as file:
            self._counter = mmap.mmap(file.fileno(), 8)

    @property
    def port(self) -> int:
        """Where it listens."""
        port: int = self._listener.getsockname()[1]
        return port

    def serve(self) -> None:
        """Until the process ends."""
        while True:
            connection, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            request = _read_request(connection)
            if request is None:
                connection.sendall(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")
                return
            chunks: int = request["max_tokens"]
            mode, *how = request["model"].split("-")
            if mode == "paced":
                self._paced(connection, chunks, 1.0 / float(how[0]))
            elif mode == "turns":
                self._in_turns(connection, chunks, 1.0 / float(how[0]), int(how[1]))
            else:
                _burst(connection, chunks)

    def _paced(self, connection: socket.socket, chunks: int, period: float) -> None:
        connection.sendall(_FIRST)
        began = time.monotonic()
        for number in range(chunks):
            time.sleep(max(0.0, period - (time.monotonic() - began)))
            self._wait_until_taken(number)
            began = time.monotonic()
            connection.sendall(_CHUNKS[number % len(_CHUNKS)])
        self._wait_until_taken(chunks)
        connection.sendall(_end(chunks))

    def _in_turns(self, connection: socket.socket, chunks: int, period: float, place: int) -> None:
        """The stream at `place` 0 or 1 of two: what is counted are the events of both."""
        connection.sendall(_FIRST)
        for number in range(chunks):
            self._wait_until_taken(2 * number + place)
            time.sleep(period)
            connection.sendall(_CHUNKS[number % len(_CHUNKS)])
        self._wait_until_taken(2 * chunks)
        connection.sendall(_end(chunks))

    def _wait_until_taken(self, chunks: int) -> None:
        end = time.monotonic() + GIVE_UP_AFTER
        while struct.unpack_from("=Q", self._counter)[0] < chunks:
            if time.monotonic() > end:
                raise TimeoutError("the client does not count what it got")
            time.sleep(0.0002)


def _burst(connection: socket.socket, chunks: int) -> None:
    connection.sendall(_FIRST)
    blocks, rest = divmod(chunks, _BLOCK_CHUNKS)
    for _ in range(blocks):
        connection.sendall(_BLOCK)
    cycles, rest = divmod(rest, len(PIECES))
    connection.sendall(_CYCLE * cycles + b"".join(_CHUNKS[:rest]) + _end(chunks))


def _read_request(connection: socket.socket) -> dict[str, Any] | None:
    """The JSON of a request for a stream; None: it asks for something else (to drop a generation)."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            raise ConnectionError("no request")
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    if not head.startswith(b"POST "):
        return None
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")
    )
    while len(body) < length:
        body += connection.recv(65536)
    request: dict[str, Any] = json.loads(body)
    return request


def main() -> None:
    """Serve until the standard input ends."""
    origin = Origin(Path(sys.argv[1]))
    print(origin.port, flush=True)
    threading.Thread(target=origin.serve, daemon=True).start()
    sys.stdin.read()


if __name__ == "__main__":
    main()
