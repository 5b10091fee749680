"""Server-sent events, exactly as the WHATWG HTML standard parses them (section 9.2.6).

Works on bytes: line ends and field names are ASCII, so UTF-8 may be cut anywhere without being decoded first.
Limits come on top of the standard: an event that grows beyond `max_event_bytes` is an error, since a stranger's
endless line must not fill the memory.
"""

from __future__ import annotations

from typing import NamedTuple

from llamastream.errors import EventTooLargeError

DEFAULT_MAX_EVENT_BYTES = 8 * 1024 * 1024
_BOM = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One dispatched event.

    Attributes:
        data: the data lines joined by LF, as bytes (UTF-8, undecoded).
        event: the event type, "message" unless an `event:` field said otherwise.
        id: the last event id seen so far ("" if none).
    """

    data: bytes
    event: str = "message"
    id: str = ""


class SseDecoder:
    """Feed bytes, get events. Whatever is not finished by a blank line when the stream ends is dropped, as required.

    Attributes:
        last_event_id: kept from event to event.
        retry_ms: the last `retry:` value in milliseconds, or None.
        comments: how many comment lines came (llama-server's keep-alive pings are comments).
        error_lines: values of `error:` fields, which llama-server builds of old wrote instead of data (at most 8).
    """

    def __init__(self, max_event_bytes: int = DEFAULT_MAX_EVENT_BYTES) -> None:
        self.last_event_id = ""
        self.retry_ms: int | None = None
        self.comments = 0
        self.error_lines: list[bytes] = []
        self._max = max_event_bytes
        self._buffer = bytearray()
        self._scanned = 0  # how much of the buffer is known to hold no line end
        self._start = True  # a BOM may still come
        self._skip_lf = False  # the last line ended with CR: an LF that follows belongs to it
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._event = ""
        self._lines_bytes = 0  # of the lines since the last blank one, line ends included

    @property
    def pending_bytes(self) -> int:
        """Bytes held back because no blank line has come yet."""
        return len(self._buffer) + self._data_bytes

    @property
    def unfinished_bytes(self) -> int:
        """How many bytes came since the last blank line: the next event began so many bytes ago."""
        return len(self._buffer) + self._lines_bytes

    @property
    def between_events(self) -> bool:
        """Whether the next byte begins a new event, with nothing held back."""
        return not (self._buffer or self._data or self._event or self._skip_lf or self._start or self._lines_bytes)

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take bytes; returns the events that they complete, in order.

        Raises:
            EventTooLargeError: an event is larger than `max_event_bytes`.
        """
        # The shape that llama-server sends, events of one data line each, needs no line-by-line work. What is held back
        # goes in front, unless it is much, since then a long event in small pieces would be copied again and again.
        buffer = self._buffer
        if self._data or self._event or self._skip_lf or self._start or len(buffer) > len(data):
            return self._feed_lines(data)
        whole = bytes(buffer) + data if buffer else data
        end = whole.rfind(b"\n\n") + 2
        if end < 2 or not whole.startswith(b"data: ") or b"\r" in whole:
            return self._feed_lines(data)
        bodies = whole[6 : end - 2].split(b"\n\ndata: ")
        if whole.count(b"\n", 0, end) != 2 * len(bodies):
            return self._feed_lines(data)
        if len(whole) > self._max:
            for body in (*bodies, whole[end:]):
                if len(body) > self._max:
                    self._too_large(len(body))
        # The rest holds no blank line, hence no event: its lines may wait.
        self._buffer = bytearray(whole[end:])
        self._scanned = self._lines_bytes = 0
        last_id = self.last_event_id
        return [SseEvent(body, "message", last_id) for body in bodies]

    def _feed_lines(self, data: bytes) -> list[SseEvent]:
        buffer = self._buffer
        buffer += data
        if self._start:
            if len(buffer) < 3 and _BOM.startswith(buffer):
                return []
            if buffer.startswith(_BOM):
                del buffer[:3]
            self._start = False
        events: list[SseEvent] = []
        position = 0
        scanned = self._scanned
        if self._skip_lf and buffer:
            if buffer[0] == 0x0A:
                position = scanned = 1
                self._lines_bytes += self._lines_bytes > 0  # of the blank line's end, nothing would be missed
            self._skip_lf = False
        while True:
            start = max(position, scanned)
            lf = buffer.find(b"\n", start)
            cr = buffer.find(b"\r", start, lf if lf >= 0 else len(buffer))
            end = cr if cr >= 0 else lf
            if end < 0:
                break
            line = bytes(buffer[position:end])
            self._line(line, events)
            begin, position = position, end + 1
            if cr >= 0:
                if position == len(buffer):
                    self._skip_lf = True
                elif buffer[position] == 0x0A:
                    position += 1
            self._lines_bytes = self._lines_bytes + position - begin if line else 0
            scanned = position
        del buffer[:position]
        self._scanned = len(buffer)
        if len(buffer) + self._data_bytes > self._max:
            self._too_large(len(buffer) + self._data_bytes)
        return events

    def _line(self, line: bytes, events: list[SseEvent]) -> None:
        if not line:
            self._dispatch(events)
            return
        name, colon, value = line.partition(b":")
        if not name:
            self.comments += 1
            return
        if colon and value.startswith(b" "):
            value = value[1:]
        if name == b"data":
            self._data.append(value)
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._max:
                self._too_large(self._data_bytes)
        elif name == b"event":
            self._event = value.decode("utf-8", "replace")
        elif name == b"id":
            if b"\0" not in value:
                self.last_event_id = value.decode("utf-8", "replace")
        elif name == b"retry":
            if value.isdigit():
                self.retry_ms = int(value[:18])
        elif name == b"error" and len(self.error_lines) < 8:
            self.error_lines.append(value)

    def _dispatch(self, events: list[SseEvent]) -> None:
        # "If the data buffer is an empty string": no data line at all. An empty data line leaves one LF in it.
        if self._data:
            events.append(SseEvent(b"\n".join(self._data), self._event or "message", self.last_event_id))
            self._data.clear()
            self._data_bytes = 0
        self._event = ""

    def _too_large(self, size: int) -> None:
        raise EventTooLargeError(
            f"a server-sent event of at least {size} bytes exceeds the limit of {self._max} bytes "
            "(max_event_bytes); is this really a llama-server?"
        )
