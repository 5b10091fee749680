"""What is read of one stream, over however many connections: bytes to events, and what these mean for its clocks and
figures. What follows when a response ends, or fails, is for the session to say."""

from __future__ import annotations

from math import inf

from llamastream.client.record import StreamRecord
from llamastream.policy.clocks import Phase
from llamastream.policy.silence import Silence
from llamastream.policy.watch import Watch
from llamastream.protocol.exchange import GenerationExchange
from llamastream.types import StreamEvent, StreamStart, Timeouts

LONGEST_STEADY = 86400.0
"""Seconds: a content-idle clock that runs longer is watched by deadlines."""

REATTACH_HEADER = 5.0
"""Seconds until a server answers that is asked for the rest of a generation: there is no queue for it."""


class Reading:
    """Reads the responses of one stream, one after the other.

    Attributes:
        exchange: the response that is being read. watch: the clocks.
        content_chunks: how many chunks of content there were. last_was_content: whether the last read had some.
    """

    def __init__(
        self, record: StreamRecord, exchange: GenerationExchange, timeouts: Timeouts, now: float, *, reads_block: bool
    ) -> None:
        self.exchange = exchange
        self.watch = Watch(timeouts, now)
        self.content_chunks = 0
        self.last_was_content = False
        self._idle = timeouts.content_idle
        self._record = record
        self._meter = record.meter
        self._silence = Silence(reads_block=reads_block)
        self._pieces = 0
        self._reattached = False
        self._swallowed = 0
        self._start_emitted = False

    def begin(self, exchange: GenerationExchange, now: float, *, reattached: bool) -> None:
        """Another response is to be read; `reattached`: the rest of one of which there was a part."""
        self._record.earlier_bytes += self.exchange.body_bytes
        self.catch_up()
        self.exchange = exchange
        self._pieces = exchange.pieces
        self._reattached = reattached
        self._swallowed = 0 if exchange.resumed is None else exchange.resumed.swallowed
        self.watch.begin(now)

    def sent(self, now: float) -> None:
        """The request is about to be sent."""
        self._silence.begin(now)
        self.watch.enter(Phase.FIRST_BYTE, now, REATTACH_HEADER if self._reattached else inf)

    def reader_came(self, now: float) -> None:
        """The reader begins to read, perhaps long after the request was sent (`with`): that was no silence."""
        self._silence.reader_came(now)

    def awake(self, now: float) -> float:
        """The event loop runs. Returns when it should say so again: `math.inf` if that is of no use."""
        return self._silence.awake(now, waits_for_header=self.watch.phase is Phase.FIRST_BYTE)

    @property
    def steady_idle(self) -> float | None:
        """Seconds that the next wait may take, if the last read was content and no clock but that of idle content runs.

        None: wait until the deadline. After a ping, say, what is left of the clock is less than the whole.
        """
        taker = self.exchange.steady
        steady = taker is not None and taker.armed and self.last_was_content and self.watch.end == inf
        return self._idle if steady and self._idle is not None and self._idle < LONGEST_STEADY else None

    def catch_up(self) -> None:
        """Take note of what came the short way (`protocol.steady.SteadyText.take`)."""
        exchange = self.exchange
        exchange.count()
        if exchange.pieces != self._pieces:  # whoever had them counted
            self.content_chunks += exchange.pieces - self._pieces
            self._pieces = exchange.pieces
            self.watch.content_at = self._meter.last_content
            self._meter.fold_if_many()

    def feed(self, data: bytes, now: float) -> list[StreamEvent]:
        """Bytes arrived: what they mean, in order."""
        self.catch_up()
        exchange, watch = self.exchange, self.watch
        events = exchange.feed(data)
        self._look_for_content(now)
        if self.last_was_content:
            pass
        elif exchange.accepted and watch.phase is Phase.FIRST_BYTE:
            self._header(now)
        elif exchange.resumed is not None and exchange.resumed.swallowed != self._swallowed:
            self._swallowed = exchange.resumed.swallowed
            watch.content(now)
        elif events:
            watch.progress(now)
        if events and type(events[0]) is StreamStart:
            # A repetition starts its stream anew, but the caller hears of one start.
            if self._start_emitted:
                del events[0]
            self._start_emitted = True
        return events

    def feed_eof(self, now: float) -> list[StreamEvent]:
        """The server closed the connection: what that completes."""
        self.catch_up()
        events = self.exchange.feed_eof()
        self._look_for_content(now)
        return events

    def _header(self, now: float) -> None:
        if not self.content_chunks:
            self._meter.header_at = now
        if self._reattached:
            self.watch.content(now)  # its prefill is over
        else:
            self.watch.prefill(now)

    def _look_for_content(self, now: float) -> None:
        chunks = self.exchange.assembler.content_chunks
        self.last_was_content = chunks != self.content_chunks
        if not self.last_was_content:
            return
        if not self.content_chunks:
            if self.watch.phase is Phase.FIRST_BYTE:
                self._record.silence = self._silence.until(now)
            self._record.first_token(now)
        self._meter.content(chunks - self.content_chunks, now)
        self.content_chunks = chunks
        self.watch.arrived(now)
