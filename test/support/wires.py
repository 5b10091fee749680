"""A raw HTTP client for tests of the doubles: it shows every byte and how the connection ended."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit

CHAT = "/v1/chat/completions"
QUESTION = [{"role": "user", "content": "count"}]


class Heard(NamedTuple):
    """What a server said: all bytes, and how it ended ("closed", "reset" or "left" by this client)."""

    raw: bytes
    ended: str

    @property
    def head(self) -> bytes:
        return self.raw.partition(b"\r\n\r\n")[0]

    @property
    def status(self) -> int:
        return int(self.raw.split(b" ", 2)[1])

    @property
    def framed(self) -> bytes:
        """The body as it was on the wire."""
        return self.raw.partition(b"\r\n\r\n")[2]

    @property
    def body(self) -> bytes:
        """The body, de-chunked as far as its framing is sound."""
        if b"chunked" not in self.head.lower():
            return self.framed
        body, rest = b"", self.framed
        while (size := re.match(rb"([0-9a-f]+)\r\n", rest)) and int(size[1], 16):
            start, length = size.end(), int(size[1], 16)
            body += rest[start : start + length]
            rest = rest[start + length + 2 :]
        return body

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each whole event; "[DONE]" as it is. Comments are left out."""
        blocks = [block for block in self.body.split(b"\n\n")[:-1] if not block.startswith(b":")]
        data = [block.removeprefix(b"data: ") for block in blocks]
        return [text.decode() if text == b"[DONE]" else json.loads(text) for text in data]

    @property
    def choices(self) -> list[Any]:
        return [event["choices"][0] for event in self.events if event != "[DONE]" and event["choices"]]

    def joined(self, field: str = "content") -> str:
        return "".join(choice["delta"].get(field) or "" for choice in self.choices)

    @property
    def finish_reason(self) -> str | None:
        reasons = [choice["finish_reason"] for choice in self.choices if choice["finish_reason"]]
        return reasons[0] if reasons else None


def dial(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((parts.hostname or "", parts.port or 0), timeout=20)


def request_bytes(method: str, path: str, body: object = None, **headers: str) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: test", f"Content-Length: {len(content)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def hear(connection: socket.socket, enough: Callable[[bytes], bool] = lambda _: False) -> Heard:
    """Read until the connection ends, or there is enough."""
    raw = b""
    while not enough(raw):
        try:
            part = connection.recv(65536)
        except ConnectionError:
            return Heard(raw, "reset")
        if not part:
            return Heard(raw, "closed")
        raw += part
    return Heard(raw, "left")


def ask(
    url: str,
    method: str = "POST",
    path: str = CHAT,
    body: object = None,
    enough: Callable[[bytes], bool] = lambda _: False,
    **headers: str,
) -> Heard:
    """Ask on a connection of its own and hear the whole answer."""
    with dial(url) as connection:
        connection.sendall(request_bytes(method, path, body, **{"Connection": "close", **headers}))
        return hear(connection, enough)


def chat(url: str, messages: list[dict[str, Any]] = QUESTION, **fields: Any) -> Heard:
    """A streamed chat."""
    return ask(url, body={"messages": messages, "stream": True, **fields})


def numbers(start: int, stop: int) -> str:
    """The text of a NumberedServer from one token to another."""
    return "".join(f"{number} " for number in range(start, stop))
