"""One stream from request to result, without I/O: the sync and the async stream are thin runners of this.

A runner connects, sends `request_bytes()`, and feeds what arrives; between reads it waits until `deadline` at most.
Every call takes the time of a monotonic clock. After `ended` nothing more happens; `error` says whether it ended well.
"""

from __future__ import annotations

from llamastream.client.meter import LatencyMeter
from llamastream.errors import ConnectionLostError, LlamaStreamError
from llamastream.policy.clocks import Clocks, Phase
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import Result, Stats, StreamEnd, StreamEvent, Timeouts


class StreamSession:
    """The state of one stream.

    Attributes:
        ended: the stream is over.
        error: why it failed, its `partial` filled in; None if it ended well or was cancelled.
        cancelled: the caller left.
    """

    def __init__(
        self, url: str, request: GenerationRequest, timeouts: Timeouts, max_event_bytes: int, now: float
    ) -> None:
        self.url = url + request.path
        self.ended = False
        self.cancelled = False
        self.error: LlamaStreamError | None = None
        self._exchange = GenerationExchange(self.url, expected_choices=request.choices, max_event_bytes=max_event_bytes)
        self._meter = LatencyMeter(now)
        self._clocks = Clocks(timeouts, now)
        self._now = now
        self._started = now
        self._content_chunks = 0

    @property
    def deadline(self) -> float:
        """Until when the runner may wait, by the same clock; `math.inf` for ever."""
        return self._clocks.deadline

    def connected(self, now: float) -> None:
        """The connection stands and the request is about to be sent."""
        self._now = now
        self._meter.connect_time = now - self._started
        self._clocks.enter(Phase.FIRST_BYTE, now)

    def feed(self, data: bytes, now: float) -> list[StreamEvent]:
        """Bytes arrived; returns what they mean, in order. The last event of a good stream is `StreamEnd`."""
        if self.ended:
            return []
        self._now = now
        exchange = self._exchange
        events = exchange.feed(data)
        chunks = exchange.assembler.content_chunks
        if chunks != self._content_chunks:
            self._meter.content(chunks - self._content_chunks, now)
            self._content_chunks = chunks
            self._clocks.content(now)
            if self._meter.header_at is None:
                self._meter.header_at = now
        elif exchange.accepted and self._meter.header_at is None:
            self._meter.header_at = now
            self._clocks.enter(Phase.PREFILL, now)
        elif events:
            self._clocks.progress(now)
        if exchange.done:
            self._finish(events)
        return events

    def feed_eof(self, now: float) -> list[StreamEvent]:
        """The server closed the connection."""
        events: list[StreamEvent] = []
        if not self.ended:
            self._now = now
            self._exchange.feed_eof()
            self._finish(events)
        return events

    def reader_waited(self, now: float) -> None:
        """The reader took its time and now wants more: that time is not counted as the server's."""
        self._clocks.restart(now)

    def timed_out(self, now: float) -> bool:
        """Check the clocks; True if one ran out, which ends the stream."""
        error = None if self.ended else self._clocks.expired(now, self.url)
        if error is not None:
            self.fail(error, now)
        return error is not None

    def fail(self, error: LlamaStreamError, now: float) -> None:
        """End the stream with an error."""
        if self.ended:
            return
        self._now = now
        self.ended = True
        self.error = error
        error.partial = self._exchange.assembler.result(self.stats(), "error")

    def cancel(self, now: float) -> None:
        """The caller leaves."""
        if not self.ended:
            self._now = now
            self.ended = True
            self.cancelled = True

    def _finish(self, events: list[StreamEvent]) -> None:
        if self._exchange.error is not None:
            self.fail(self._exchange.error, self._now)
            return
        self.ended = True
        assembler = self._exchange.assembler
        events.append(StreamEnd(assembler.finish_reason() or "stop", assembler.usage, self.stats()))

    def stats(self) -> Stats:
        """The figures as of the last thing that happened."""
        assembler = self._exchange.assembler
        return self._meter.stats(self._now, assembler.usage, assembler.timings, self._exchange.body_bytes)

    @property
    def finish_reason(self) -> str | None:
        """How the stream ended, or None while it runs."""
        if not self.ended:
            return None
        return "error" if self.error else "cancelled" if self.cancelled else self._exchange.assembler.finish_reason()

    def result(self) -> Result:
        """The answer so far; whole once the stream has ended well."""
        stand_in = "error" if self.error else "cancelled" if self.cancelled else None
        return self._exchange.assembler.result(self.stats(), stand_in)


def connection_lost(url: str, error: OSError) -> ConnectionLostError:
    """The error for a read or a write that failed."""
    return ConnectionLostError(f"{url}: the connection broke: {describe_os_error(error)}")


def describe_os_error(error: OSError) -> str:
    """An operating system's error in words, without Python's number brackets."""
    return error.strerror or str(error) or type(error).__name__
