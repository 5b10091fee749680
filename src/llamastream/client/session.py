"""One stream from request to result, without I/O: the sync and the async stream are thin runners of this.

A runner looks at three things, in this order. `ended`: stop, and raise `error` if there is one. `next_attempt_at`: wait
until then, call `prepare`; while there is an `errand`, ask the server and tell the answer by `errand_done`; then call
`begin`, connect, call `connected`, and send what `attempt` says. Otherwise: wait for bytes until `deadline` at most and
`feed` them. After each of these `take_events` may have some. Every call takes the time of one monotonic clock, in
seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.client.attempt import Attempt, Errand
from llamastream.client.attempts import AttemptPlanner
from llamastream.client.reading import Reading
from llamastream.client.record import StreamRecord
from llamastream.client.sequel import FailedAt, Sequel, Sequels
from llamastream.client.servers import Server
from llamastream.client.state import ClientState
from llamastream.client.whole import WholeOnly
from llamastream.errors import (
    ConnectionLostError,
    ConnectTimeoutError,
    LlamaStreamError,
    PoolTimeoutError,
    ServerError,
)
from llamastream.policy.recovery import RecoveryOptions
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import (
    Fallback,
    RecoveryMode,
    Result,
    Stats,
    StreamEnd,
    StreamEvent,
    Timeouts,
)

EARLY = 0.01
"""Seconds that a timer may be early, at most."""


class SessionOptions(Struct, frozen=True):
    """What a stream takes from its client and its call. `epoch`: the wall time at which its clock stood at 0.
    `whole_only`: what the client knows of servers that cannot stream.
    `reads_block`: bytes are read as they come; an event loop may be late, and then all of them come at once, so that
    a runner in one says by `awake` that it is not. `prefer`: the server for the first attempt."""

    timeouts: Timeouts
    max_event_bytes: int
    fallback: Fallback
    recovery: RecoveryMode = "full"
    epoch: float | None = None
    whole_only: WholeOnly | None = None
    reads_block: bool = True
    prefer: Server | None = None


class StreamSession:
    """The state of one stream.

    Attributes:
        ended: the stream is over.
        error: why it failed, its `partial` filled in; None if it ended well or was cancelled.
        cancelled: the caller left.
        next_attempt_at: when the next attempt may begin; None while one is under way. planner: plans the attempts.
    """

    def __init__(
        self,
        request: GenerationRequest,
        options: SessionOptions,
        state: ClientState,
        random: Callable[[], float],
        now: float,
    ) -> None:
        self.ended = False
        self.cancelled = False
        self.error: LlamaStreamError | None = None
        self.next_attempt_at: float | None = now
        self._options = options
        self._state = state
        self._path = request.path
        retry = state.retry
        recovery = RecoveryOptions(
            options.recovery, retry.recovery_patience, retry.max_recoveries, options.fallback != "never"
        )
        self.planner = AttemptPlanner(
            request.without_stream() if options.fallback == "always" else request,
            recovery,
            state,
            random,
            options.whole_only if options.fallback == "auto" else None,
            options.prefer,
        )
        self._now = now
        self._final: Stats | None = None
        self._attempt_began = now
        self._reused_connection = False
        self._sequels = Sequels(self.planner, state, options.fallback, random)
        self._events: list[StreamEvent] = []
        model = request.body.get("model")
        self._record = StreamRecord(state, self.url, model if isinstance(model, str) else "", now)
        self._meter = self._record.meter
        self._reading = Reading(
            self._record, self._new_exchange(None), options.timeouts, now, reads_block=options.reads_block
        )
        self._watch = self._reading.watch

    def _new_exchange(self, attempt: Attempt | None) -> GenerationExchange:
        planner = self.planner
        return GenerationExchange(
            self.url,
            expected_choices=planner.request.choices,
            max_event_bytes=self._options.max_event_bytes,
            accept_whole=self._options.fallback != "never",
            assembler=planner.journal.assembler,
            resumed=None if attempt is None else attempt.generation.resumed,
            offers_tools=planner.request.offers_tools,
            arrivals=self._meter.arrivals,
        )

    @property
    def exchange(self) -> GenerationExchange:
        """The response that is being read."""
        return self._reading.exchange

    @property
    def server(self) -> Server:
        """The server of the attempt."""
        return self.planner.server

    @property
    def url(self) -> str:
        """The endpoint, for messages."""
        return self.planner.server.url + self._path

    @property
    def attempt(self) -> Attempt:
        """What is to be sent."""
        assert self.planner.attempt is not None
        return self.planner.attempt

    @property
    def deadline(self) -> float:
        """Until when the runner may wait, by the same clock; `math.inf` for ever."""
        self._reading.catch_up()
        return self._watch.wait_until

    @property
    def has_content(self) -> bool:
        """Content has arrived: text, reasoning, or a piece of a tool call."""
        return self.exchange.assembler.content_chunks > 0

    @property
    def queue_deadline(self) -> float:
        """Until when the runner may wait for a free connection of the pool."""
        limit = self._options.timeouts.first_byte
        return min(self._watch.end, inf if limit is None else self._now + limit)

    def take_events(self) -> list[StreamEvent]:
        """Events that did not come of bytes: the end of an answer of which only the end marks were missing."""
        events, self._events = self._events, []
        return events

    # -- an attempt ---------------------------------------------------------------------------------------

    @property
    def errand(self) -> Errand | None:
        """A question to a server which is to be asked before anything else."""
        errand = self.planner.errand if self.next_attempt_at is not None else None
        if errand is not None and self._now + errand.timeout > self._watch.end:
            left = max(0.001, self._watch.end - self._now)
            return msgspec.structs.replace(errand, timeout=left)
        return errand

    def prepare(self, now: float) -> None:
        """The next attempt is due: settle it. Afterwards there is an errand, or it may begin."""
        self._now = now
        self.planner.prepare(now, self._meter.decode_ms())
        self._look_whether_complete()

    def errand_done(self, answer: Any, now: float) -> None:
        """What the server answered; None: nothing useful."""
        self._now = now
        self.planner.errand_done(answer, now)
        self._look_whether_complete()
        if now >= self._watch.end:
            self.timed_out(now)

    def _look_whether_complete(self) -> None:
        complete = self.planner.complete
        if complete is not None and not self.ended:
            self._events += self.planner.journal.complete(*complete)
            self._end_well(self._events, "finish")

    def begin(self, now: float, *, reused_connection: bool) -> None:
        """An attempt begins: the runner has a connection, or is about to make one."""
        attempt = self.planner.begin()
        self._reading.begin(self._new_exchange(attempt), now, reattached=attempt.kind == "reattach")
        self._now = self._attempt_began = now
        self._reused_connection = reused_connection
        self.next_attempt_at = None
        self._record.attempt(attempt, reused_connection=reused_connection)

    def connected(self, now: float) -> None:
        """The connection stands and the request is about to be sent."""
        self.planner.sent()
        self._now = now
        self._meter.connect_time = None if self._reused_connection else now - self._attempt_began
        self._reading.sent(now)

    @property
    def steady_idle(self) -> float | None:
        """See `Reading.steady_idle`."""
        return self._reading.steady_idle

    def feed(self, data: bytes, now: float) -> list[StreamEvent]:
        """Bytes arrived; returns what they mean, in order. The last event of a good stream is `StreamEnd`."""
        if self.ended or self.next_attempt_at is not None:
            return []
        self._now = now
        events = self._reading.feed(data, now)
        self._look_whether_mended()
        if self.exchange.done:
            self._finish(events)
            events += self.take_events()
        return events

    def feed_eof(self, now: float) -> list[StreamEvent]:
        """The server closed the connection."""
        if self.ended or self.next_attempt_at is not None:
            return []
        self._now = now
        events = self._reading.feed_eof(now)
        self._look_whether_mended()
        exchange = self.exchange
        if exchange.error is None and not (exchange.whole or exchange.terminated or self.planner.journal.counted):
            self.fail(ConnectionLostError(f"{self.url} broke off before the token counts"), now)
        else:
            self._finish(events)
        events += self.take_events()
        return events

    def _look_whether_mended(self) -> None:
        if self._reading.last_was_content and self.planner.broken is not None:
            self._mended(self.attempt.kind)

    def awake(self, now: float) -> float:
        """See `Reading.awake`."""
        return self._reading.awake(now)

    def wants_slots(self, now: float) -> bool:
        """Whether the runner should ask `/slots` now and tell the answer by `slots_seen`."""
        return self.next_attempt_at is None and not self.ended and self._watch.wants_slots(now)

    def slots_seen(self, slots: list[dict[str, Any]] | None, now: float) -> None:
        """What `/slots` answered (None: nothing useful). Progress starts the prefill clock anew."""
        if not self.ended and self.next_attempt_at is None and not self._watch.slots_seen(slots, now):
            self.timed_out(now)

    def reader_waited(self, now: float) -> None:
        """The reader took its time and now wants more: that time is not counted as the server's."""
        self._watch.restart(now)

    def reader_came(self, now: float) -> None:
        """See `Reading.reader_came`."""
        self._reading.reader_came(now)

    # -- ends -------------------------------------------------------------------------------------------

    def timed_out(self, now: float) -> bool:
        """Check the clocks; True if one ran out."""
        self._reading.catch_up()
        error = None if self.ended else self._watch.expired(now, self.url)
        if error is not None:
            self.fail(error, now)
        return error is not None

    def fail(self, error: LlamaStreamError, now: float) -> None:
        """The attempt failed: another follows, or the stream ends."""
        if self.ended:
            return
        self._reading.catch_up()
        if isinstance(error, ConnectTimeoutError | PoolTimeoutError) and now > self._watch.end - EARLY:
            error = self._watch.expired(max(now, self._watch.end), self.url) or error
        self._now = now
        epoch = self._options.epoch
        if isinstance(error, ServerError) and error.retry_after is None and error.retry_at is not None and epoch:
            error.retry_after = max(0.0, error.retry_at - (epoch + now))
        under_way = self.next_attempt_at is None
        answered = under_way and self.exchange.accepted
        if under_way:
            self._attempt_over()
            self.planner.blame(error, now, stale=self._reused_connection and not answered)
        emitted = self._reading.content_chunks > 0
        at = FailedAt(now, self._watch.end, self._meter.last_content, emitted, answered, self._reused_connection)
        sequel = self._sequels.after(error, at)
        if not isinstance(sequel, Sequel):
            self._end_badly(sequel)
            return
        self.next_attempt_at = now + sequel.delay
        if sequel.broke is not None:
            self._record.broke(error, sequel.broke, sequel.delay)
        elif not sequel.silent:
            self._record.retry(error, sequel.delay)

    def _attempt_over(self) -> None:
        """Note how far the generation was read."""
        self.planner.ended(answered=self.exchange.accepted)
        self.exchange.leave()  # what still arrives is not taken
        generation = self.planner.generation
        boundary = self.exchange.event_boundary
        if generation is None:
            return
        if boundary is None:
            generation.lost = True
        elif self.exchange.accepted:
            generation.offset += boundary

    def _end_badly(self, error: LlamaStreamError) -> None:
        self.ended = True
        self.next_attempt_at = None
        self.error = error
        self.planner.abandon()
        error.partial = self.exchange.assembler.result(self.stats(), "error")
        self._record.ended("error", error.partial.stats, error)

    def _mended(self, kind: str) -> None:
        broken = self.planner.mended()
        assert broken is not None
        verified = kind in ("reattach", "finish") or self.attempt.generation.compared
        self._record.mended(broken, kind, self.server.url, self._now, verified=verified)

    def cancel(self, now: float) -> None:
        """The caller leaves."""
        if not self.ended:
            self._reading.catch_up()
            self.exchange.leave()
            self._now = now
            self.planner.ended(answered=self.exchange.accepted)
            self.planner.abandon()
            self.ended = True
            self.next_attempt_at = None
            self.cancelled = True
            self._record.ended("cancelled", self.stats())

    def _finish(self, events: list[StreamEvent]) -> None:
        if self.exchange.error is not None:
            self.fail(self.exchange.error, self._now)
            return
        self.planner.ended(answered=self.exchange.accepted)
        self._end_well(events, self.attempt.kind)

    def _end_well(self, events: list[StreamEvent], kind: str) -> None:
        if self.planner.broken is not None:
            self._mended(kind)
        self.ended = True
        self.next_attempt_at = None
        self._state.servers.succeeded(self.server)
        self.planner.abandon()
        assembler = self.exchange.assembler
        stats = self.stats()
        reason = assembler.finish_reason() or "stop"
        events.append(StreamEnd(reason, assembler.usage, stats))
        self._record.hints(stats, self.planner.request, self.exchange)
        self._record.ended(reason, stats)

    # -- what is known ------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The figures as of the last thing that happened."""
        stats = self._final or self._record.stats(max(self._now, self._meter.last_content), self.exchange)
        self._final = stats if self.ended else None  # made once, however many ask at the end
        return stats

    def gaps(self) -> tuple[tuple[float, int], ...]:
        """All gaps between chunks of content (see `LatencyMeter.gaps`)."""
        return self._meter.gaps()

    @property
    def finish_reason(self) -> str | None:
        """How the stream ended, or None while it runs."""
        if not self.ended:
            return None
        return "error" if self.error else "cancelled" if self.cancelled else self.exchange.assembler.finish_reason()

    def result(self) -> Result:
        """The answer so far; whole once the stream has ended well."""
        stand_in = "error" if self.error else "cancelled" if self.cancelled else None
        return self.exchange.assembler.result(self.stats(), stand_in)
