"""What a fault makes of a response: spans go in, pieces to send come out. No socket, no clock."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from enum import Enum
from typing import NamedTuple

from llamastream.testing.faults import (
    Duplicate,
    Fault,
    Garbage,
    Gzip,
    HalfClose,
    Reset,
    SlowHeaders,
    Stall,
    Trickle,
    TruncatedChunk,
    WrongChunkSize,
)
from llamastream.testing.framing import EventCutter, Span
from llamastream.testing.wire import LAST_CHUNK, chunk


class Piece(NamedTuple):
    """Bytes to send.

    Attributes:
        events: how many events of the server end with them. delay: send them one by one, so many seconds apart.
    """

    data: bytes
    events: int = 0
    delay: float | None = None


class Ending(Enum):
    """How a fault ends the response."""

    RESET = "reset"
    HALF_CLOSE = "half-close"
    STALL = "stall"
    CLOSE = "close"


class Untouched:
    """Passes everything on.

    Attributes:
        fired: whether the fault has happened.
    """

    fired = False

    def __init__(self) -> None:
        self._cutter = EventCutter()

    def edit(self, span: Span) -> Iterator[Piece | Ending]:
        """What to do for a span; nothing more is asked after an `Ending`."""
        yield from self._pieces(span)

    def _pieces(self, span: Span) -> Iterator[Piece]:
        if span.kind != "body":
            yield Piece(span.data)
            return
        for data, whole in self._cutter.cut(span.data):
            yield Piece(data, int(whole))


class Cut(Untouched):
    """Passes everything on up to a place, where the response ends."""

    def __init__(self, fault: Reset | HalfClose | Stall) -> None:
        super().__init__()
        endings = {Reset: Ending.RESET, HalfClose: Ending.HALF_CLOSE, Stall: Ending.STALL}
        self._ending = endings[type(fault)]
        self._events = fault.after_events
        self._bytes = (fault.after_bytes or 0) if fault.after_events is None else None

    def edit(self, span: Span) -> Iterator[Piece | Ending]:
        for piece in self._pieces(span):
            if self._bytes is not None and len(piece.data) >= self._bytes:
                events = piece.events if len(piece.data) == self._bytes else 0
                self.fired = True
                yield Piece(piece.data[: self._bytes], events)
            else:
                yield piece
                if self._bytes is not None:
                    self._bytes -= len(piece.data)
                else:
                    self._count(span, piece)
            if self.fired:
                yield self._ending
                return

    def _count(self, span: Span, piece: Piece) -> None:
        assert self._events is not None
        self._events -= piece.events
        in_answer = span.kind != "head" or not span.data.startswith(b"HTTP/1.1 1")
        self.fired = in_answer and self._events <= 0


class Slow(Untouched):
    """Passes everything on, the head or all of it byte by byte."""

    def __init__(self, fault: Trickle | SlowHeaders) -> None:
        super().__init__()
        self._delay = fault.delay
        self._all = isinstance(fault, Trickle)

    def edit(self, span: Span) -> Iterator[Piece | Ending]:
        for piece in self._pieces(span):
            if self._all or span.kind == "head":
                self.fired = True
                piece = piece._replace(delay=self._delay)  # the piece itself, only slower
            yield piece


class Reframed(Untouched):
    """Frames the body anew, a chunk for each event; subclasses do something to the chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._raw = False

    def edit(self, span: Span) -> Iterator[Piece | Ending]:
        if span.kind == "head":
            self._raw = span.last or span.data.startswith(b"HTTP/1.1 1")  # no body: nothing to frame
            yield Piece(span.data if self._raw else self.head(span.data))
            if not self._raw:
                yield from self.after_head()
            return
        for piece in self._pieces(span) if span.kind == "body" else ():
            steps = list(self.body(piece))
            yield from steps
            if isinstance(steps[-1], Ending):
                return
        if span.last:
            yield from self.end()

    def head(self, head: bytes) -> bytes:
        unwanted = (b"content-length:", b"transfer-encoding:")
        lines = [line for line in head[:-4].split(b"\r\n") if not line.lower().startswith(unwanted)]
        return b"\r\n".join([*lines, b"Transfer-Encoding: chunked", *self.more_headers()]) + b"\r\n\r\n"

    def more_headers(self) -> list[bytes]:
        return []

    def after_head(self) -> Iterator[Piece]:
        yield from ()

    def body(self, piece: Piece) -> Iterator[Piece | Ending]:
        yield piece._replace(data=chunk(piece.data))

    def end(self) -> Iterator[Piece]:
        yield Piece(LAST_CHUNK)


class Compressed(Reframed):
    """For `Gzip`."""

    def __init__(self) -> None:
        super().__init__()
        self._packer = zlib.compressobj(wbits=31)

    def more_headers(self) -> list[bytes]:
        self.fired = True
        return [b"Content-Encoding: gzip"]

    def body(self, piece: Piece) -> Iterator[Piece | Ending]:
        packed = self._packer.compress(piece.data) + self._packer.flush(zlib.Z_SYNC_FLUSH)
        yield piece._replace(data=chunk(packed))

    def end(self) -> Iterator[Piece]:
        yield Piece(chunk(self._packer.flush()) + LAST_CHUNK)


class Repeated(Reframed):
    """For `Duplicate`."""

    def __init__(self, fault: Duplicate) -> None:
        super().__init__()
        self._events = fault.event
        self._event = b""

    def body(self, piece: Piece) -> Iterator[Piece | Ending]:
        yield piece._replace(data=chunk(piece.data))
        self._event += piece.data
        self._events -= piece.events
        if piece.events and not self._events:
            self.fired = True
            yield Piece(chunk(self._event))
        if piece.events:
            self._event = b""


class Misframed(Reframed):
    """For `Garbage`, `TruncatedChunk` and `WrongChunkSize`."""

    def __init__(self, fault: Garbage | TruncatedChunk | WrongChunkSize) -> None:
        super().__init__()
        self._fault = fault
        self._events = fault.after_events

    def after_head(self) -> Iterator[Piece]:
        yield from self._garbage()

    def body(self, piece: Piece) -> Iterator[Piece | Ending]:
        if self._events > 0 or self.fired:
            self._events -= piece.events
            yield piece._replace(data=chunk(piece.data))
            yield from self._garbage()
            return
        self.fired = True
        whole = chunk(piece.data)
        size, _, rest = whole.partition(b"\r\n")
        if isinstance(self._fault, TruncatedChunk):
            yield Piece(size + b"\r\n" + piece.data[: len(piece.data) // 2])
            yield Ending.CLOSE
        elif isinstance(self._fault, WrongChunkSize):
            yield piece._replace(data=self._fault.size + b"\r\n" + rest)

    def _garbage(self) -> Iterator[Piece]:
        if isinstance(self._fault, Garbage) and self._events <= 0 and not self.fired:
            self.fired = True
            yield Piece(self._fault.data)


def editor_for(fault: Fault | None) -> Untouched:
    """What makes this fault of a response."""
    if isinstance(fault, Reset | HalfClose | Stall):
        return Cut(fault)
    if isinstance(fault, Trickle | SlowHeaders):
        return Slow(fault)
    if isinstance(fault, Garbage | TruncatedChunk | WrongChunkSize):
        return Misframed(fault)
    if isinstance(fault, Duplicate):
        return Repeated(fault)
    if isinstance(fault, Gzip):
        return Compressed()
    return Untouched()
