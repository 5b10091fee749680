"""The short way of a token, as short as it can be made: one call from the bytes of a read to the piece of text in them.

A model that generates sends one event at a time, and by the time that the next is there, whatever else the machine does
has pushed this code and its data out of the caches. So what counts is not instructions but how many functions and
objects are touched: this is one object, whose figures are added to those of the others when somebody asks.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable

import msgspec

MOST = 4096
"""So many pieces are taken before one goes the long way, on which they are counted."""

LONGEST = 4096
"""Bytes of a read that may be taken: tokens are short, and the beginning is kept for each length that occurs."""

_EVENT_START = b"data: "
_FRAME_END = b"\n\n\r\n"


class SteadyText:
    """Takes reads that are one HTTP chunk with one event that is one more piece of text and nothing else.

    Attributes:
        armed: the next read may be such a one. Only the exchange says so; anybody who knows better may unset it.
        room: how many more may be taken before what was taken is counted.
    """

    __slots__ = ("_after", "_before", "_bytes", "_decode", "_end", "_heads", "_note", "_write", "armed", "room")

    def __init__(self, before: bytes, after: bytes, write: Callable[[str], object], arrivals: array[float]) -> None:
        """`before`, `after`: the JSON of a chunk around its text, without line ends (see `TextTemplate`); the quotes of
        the text belong to it. `write`: takes the text. `arrivals`: gets the time of each piece."""
        self.armed = False
        self.room = MOST
        self._bytes = 0
        self._before = _EVENT_START + before
        self._after = after + _FRAME_END
        self._end = 1 - len(self._after)
        self._heads: dict[int, bytes] = {}
        self._decode = msgspec.json.Decoder(str).decode
        self._write = write
        self._note = arrivals.append

    def take(self, data: bytes, now: float) -> str | None:
        """The text, if that is all there is in this read; None: nothing was taken, and it goes the long way."""
        room = self.room
        if not (self.armed and room):
            return None
        size = len(data)
        try:
            # The length of a read says what its first line must be: the size of the chunk.
            head = self._heads[size]
        except KeyError:
            head = self._head(size)
        if not (data.startswith(head) and data.endswith(self._after)):
            return None
        length = len(head)
        try:
            text = self._decode(data[length - 1 : self._end])
        except ValueError:  # not a JSON string, or not UTF-8
            return None
        if not text:
            return None
        self._write(text)
        self._note(now)
        self._bytes += size - length
        self.room = room - 1
        return text

    def take_several(self, data: bytes, now: float) -> int:
        """Bytes at the beginning of a read that were taken: whole chunks, each one more piece of text. For reads in
        which several have gathered, since this process or the network had other things to do."""
        taken = 0
        while True:
            line = data.find(b"\r\n", taken, taken + 10)
            if line < 0:
                return taken
            try:
                end = line + 4 + int(data[taken:line], 16)
            except ValueError:
                return taken
            if end > len(data) or self.take(data[taken:end], now) is None:
                return taken
            taken = end

    def _head(self, size: int) -> bytes:
        """How a read of so many bytes must begin."""
        for digits in range(1, 9):
            line = b"%x\r\n" % max(0, size - digits - 4)
            if len(line) == digits + 2:
                break
        else:
            return bytes(size + 1)  # no chunk is so long with its frame, and no read of that size begins with more
        head = line + self._before
        if size <= LONGEST:
            self._heads[size] = head
        return head

    @property
    def pieces(self) -> int:
        """How many were taken since they were last counted."""
        return MOST - self.room

    @property
    def body_bytes(self) -> int:
        """Bytes of the de-chunked body in the `pieces`."""
        return self._bytes + self.pieces * (len(self._before) - 2)

    def forget(self) -> None:
        """They were counted."""
        self.room = MOST
        self._bytes = 0
