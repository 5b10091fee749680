"""HTTP/1.1 messages and SSE events cut into their parts, without changing a byte of them.

The client has an HTTP parser and an SSE parser of its own; the fault kit does not share them, so that a mistake in one
is not repeated, and thereby hidden, by the other.
"""

from __future__ import annotations

from typing import Literal, NamedTuple


class Span(NamedTuple):
    """A piece of an HTTP message, as it was on the wire.

    Attributes:
        kind: "head" (all of it at once), "body" (what the message carries), or "framing" (chunk sizes and the like).
        data: the bytes. last: the message ends with them.
    """

    kind: Literal["head", "framing", "body"]
    data: bytes
    last: bool = False


class MessageReader:
    """Cuts one HTTP/1.1 message into spans. What cannot be understood becomes body until the connection ends.

    Attributes:
        head: the head, once it is complete. done: the message is complete.
        rest: bytes behind the message, when it is done; before that, bytes which are not yet part of a span.
        until_close: only the end of the connection ends the message.
    """

    def __init__(self, *, request: bool = False, bodyless: bool = False) -> None:
        """`bodyless`: the answer to a HEAD, which announces a body that does not come."""
        self._request = request
        self._bodyless = bodyless
        self._state = "head"
        self._left = 0
        self.head = b""
        self.rest = bytearray()

    @property
    def done(self) -> bool:
        return self._state == "done"

    @property
    def until_close(self) -> bool:
        return self._state == "until close"

    def feed(self, data: bytes) -> list[Span]:
        self.rest += data
        spans = []
        while self.rest and not self.done and (span := self._next()) is not None:
            spans.append(span)
        return spans

    def _next(self) -> Span | None:
        if self._state == "until close":
            return Span("body", self._take(len(self.rest)))
        if self._state in ("length", "chunk"):
            return self._counted()
        mark = b"\r\n\r\n" if self._state == "head" else b"\r\n"
        end = self.rest.find(mark)
        if end < 0:
            return None
        line = self._take(end + len(mark))
        if self._state == "head":
            self._begin(line)
            return Span("head", line, self.done)
        self._framing(line)
        return Span("framing", line, self.done)

    def _take(self, count: int) -> bytes:
        taken = bytes(self.rest[:count])
        del self.rest[:count]
        return taken

    def _counted(self) -> Span:
        data = self._take(min(self._left, len(self.rest)))
        self._left -= len(data)
        if not self._left:
            self._state = "done" if self._state == "length" else "chunk end"
        return Span("body", data, self.done)

    def _begin(self, head: bytes) -> None:
        self.head = head
        fields = header_fields(head)
        status = head.split(b" ", 2)[1:2]
        if not self._request and status and status[0].startswith(b"1") and status != [b"101"]:
            return  # an interim answer; the real head is yet to come
        if self._bodyless or (not self._request and status and status[0] in (b"204", b"304")):
            self._state = "done"
        elif "chunked" in fields.get("transfer-encoding", "").lower():
            self._state = "size"
        elif fields.get("content-length", "0" if self._request else "").isdecimal():
            self._left = int(fields.get("content-length", "0"))
            self._state = "length" if self._left else "done"
        else:
            self._state = "until close"

    def _framing(self, line: bytes) -> None:
        if self._state == "chunk end":
            self._state = "size" if line == b"\r\n" else "until close"
        elif self._state == "trailer":
            self._state = "done" if line == b"\r\n" else "trailer"
        else:
            try:
                self._left = int(line.partition(b";")[0], 16)
            except ValueError:
                self._state = "until close"
            else:
                self._state = "chunk" if self._left else "trailer"


def header_fields(head: bytes) -> dict[str, str]:
    """The header fields of a head, their names in lower case."""
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, colon, value = line.decode("latin-1").partition(":")
        if colon:
            fields[name.strip().lower()] = value.strip()
    return fields


class EventCutter:
    """Cuts an event stream behind each event's blank line.

    Only blocks with a `data` line count: a comment such as llama-server's ping `:` is no event, and would make the
    count a matter of time.
    """

    def __init__(self) -> None:
        self._line = b""  # the beginning of a line whose end has not come
        self._has_data = False

    def cut(self, body: bytes) -> list[tuple[bytes, bool]]:
        """The pieces of `body`, and of each whether an event ends with it."""
        pieces = []
        piece = b""
        for line in _lines(body):
            piece += line
            self._line += line
            if not line.endswith(b"\n"):
                continue
            whole, self._line = self._line.rstrip(b"\r\n"), b""
            if whole:
                self._has_data |= whole == b"data" or whole.startswith(b"data:")
            elif self._has_data:
                self._has_data = False
                pieces.append((piece, True))
                piece = b""
        return [*pieces, (piece, False)] if piece else pieces


def _lines(body: bytes) -> list[bytes]:
    *lines, last = body.split(b"\n")
    return [line + b"\n" for line in lines] + ([last] if last else [])
