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
from llamastream.client.meter import LatencyMeter
from llamastream.client.servers import Server
from llamastream.client.state import ClientState
from llamastream.errors import ConnectionLostError, LlamaStreamError, ModelLoadingError
from llamastream.events import (
    AttemptStarted,
    FirstToken,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
    StreamBroke,
)
from llamastream.policy.buffering import buffering_advice, looks_buffered
from llamastream.policy.clocks import Clocks, Phase
from llamastream.policy.recovery import RecoveryOptions, classify, delay
from llamastream.policy.retry import RetryState
from llamastream.policy.stall import made_progress
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.failures import streaming_unsupported
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import (
    FailedAttempt,
    Fallback,
    PromptFacts,
    Recovery,
    RecoveryMode,
    Result,
    Stats,
    StreamEnd,
    StreamEvent,
    StreamStart,
    Timeouts,
)

MAX_RECORDED = 64
"""Failed attempts, and recoveries, that are kept in the figures; what goes on for long must not make them grow."""

LONGEST_STEADY = 86400.0
"""Seconds: a content-idle clock that runs longer is watched by deadlines."""

REATTACH_HEADER = 5.0
"""Seconds until a server answers that is asked for the rest of a generation: there is no queue for it."""

LONGEST_RECOVERY_DELAY = 2.0
"""Seconds between two attempts to go on, at most."""


class SessionOptions(Struct, frozen=True):
    """What a stream takes from its client and its call."""

    timeouts: Timeouts
    max_event_bytes: int
    fallback: Fallback
    recovery: RecoveryMode = "full"


class StreamSession:
    """The state of one stream.

    Attributes:
        ended: the stream is over.
        error: why it failed, its `partial` filled in; None if it ended well or was cancelled.
        cancelled: the caller left.
        next_attempt_at: when the next attempt may begin; None while one is under way.
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
        self._random = random
        self._path = request.path
        retry = state.retry
        recovery = RecoveryOptions(
            options.recovery, retry.recovery_patience, retry.max_recoveries, options.fallback != "never"
        )
        self._planner = AttemptPlanner(
            request.without_stream() if options.fallback == "always" else request, recovery, state, random
        )
        self._id = state.next_request_id()
        self._started = now
        self._now = now
        self._attempt_began = now
        self._reused_connection = False
        self._loading_since: float | None = None
        self._retries = 0
        self._attempts = 0
        self._failed: list[FailedAttempt] = []
        self._recoveries: list[Recovery] = []
        self._start_emitted = False
        self._last_was_content = False
        self._content_chunks = 0
        self._swallowed = 0
        self._earlier_bytes = 0
        self._clocks = Clocks(options.timeouts, now)
        self._slots: list[dict[str, Any]] | None = None
        self._look_at = inf
        self._meter = LatencyMeter(now)
        self._events: list[StreamEvent] = []
        self._exchange = self._new_exchange(None)
        state.notify(RequestStarted(self._id, self.url))

    def _new_exchange(self, attempt: Attempt | None) -> GenerationExchange:
        planner = self._planner
        return GenerationExchange(
            self.url,
            expected_choices=planner.request.choices,
            max_event_bytes=self._options.max_event_bytes,
            accept_whole=self._options.fallback != "never",
            assembler=planner.journal.assembler,
            resumed=None if attempt is None else attempt.generation.resumed,
        )

    @property
    def server(self) -> Server:
        """The server of the attempt."""
        return self._planner.server

    @property
    def url(self) -> str:
        """The endpoint, for messages."""
        return self._planner.server.url + self._path

    @property
    def attempt(self) -> Attempt:
        """What is to be sent."""
        assert self._planner.attempt is not None
        return self._planner.attempt

    @property
    def deadline(self) -> float:
        """Until when the runner may wait, by the same clock; `math.inf` for ever."""
        return min(self._clocks.deadline, self._look_at) if self._look_at != inf else self._clocks.deadline

    @property
    def queue_deadline(self) -> float:
        """Until when the runner may wait for a free connection of the pool."""
        limit = self._options.timeouts.first_byte
        return min(self._clocks.end, inf if limit is None else self._now + limit)

    @property
    def exchange(self) -> GenerationExchange:
        """The response that is being read."""
        return self._exchange

    def take_events(self) -> list[StreamEvent]:
        """Events that did not come of bytes: the end of an answer of which only the end marks were missing."""
        events, self._events = self._events, []
        return events

    # -- an attempt ---------------------------------------------------------------------------------------

    @property
    def errand(self) -> Errand | None:
        """A question to a server which is to be asked before anything else."""
        return self._planner.errand if self.next_attempt_at is not None else None

    def prepare(self, now: float) -> None:
        """The next attempt is due: settle it. Afterwards there is an errand, or it may begin."""
        self._now = now
        self._planner.prepare(now, self._meter.decode_ms())
        self._look_whether_complete()

    def errand_done(self, answer: Any, now: float) -> None:
        """What the server answered; None: nothing useful."""
        self._now = now
        self._planner.errand_done(answer, now)
        self._look_whether_complete()

    def _look_whether_complete(self) -> None:
        complete = self._planner.complete
        if complete is not None and not self.ended:
            self._events += self._planner.journal.complete(*complete)
            self._end_well(self._events, "finish")

    def begin(self, now: float, *, reused_connection: bool) -> None:
        """An attempt begins: the runner has a connection, or is about to make one."""
        attempt = self._planner.begin()
        self._earlier_bytes += self._exchange.body_bytes
        self._exchange = self._new_exchange(attempt)
        self._swallowed = 0 if attempt.generation.resumed is None else attempt.generation.resumed.swallowed
        self._attempts += 1
        self._now = self._attempt_began = now
        self._reused_connection = reused_connection
        self.next_attempt_at = None
        self._look_at = inf
        self._clocks.enter(Phase.CONNECT, now)
        self._state.notify(AttemptStarted(self._id, self._attempts, reused_connection, self.server.url, attempt.kind))

    def connected(self, now: float) -> None:
        """The connection stands and the request is about to be sent."""
        self._now = now
        self._meter.connect_time = None if self._reused_connection else now - self._attempt_began
        self._clocks.enter(Phase.FIRST_BYTE, now, REATTACH_HEADER if self.attempt.kind == "reattach" else inf)

    @property
    def steady_idle(self) -> float | None:
        """Seconds that the next wait may take, if the last read was content and no clock but that of idle content runs.

        None: wait until `deadline`. After a ping, say, what is left of the clock is less than the whole.
        """
        steady = self._exchange.steady and self._last_was_content and self._clocks.end == inf
        idle = self._options.timeouts.content_idle
        return idle if steady and idle is not None and idle < LONGEST_STEADY else None

    def feed_text(self, data: bytes, now: float) -> str | None:
        """The short way: if these bytes are one more piece of text and nothing else, take them and return it.

        None: nothing was taken; give the same bytes to `feed`.
        """
        text = self._exchange.feed_text(data)
        if text is not None:
            self._now = now
            self._content_chunks += 1
            self._meter.one(now)
            self._clocks.content(now)
        return text

    def feed(self, data: bytes, now: float) -> list[StreamEvent]:
        """Bytes arrived; returns what they mean, in order. The last event of a good stream is `StreamEnd`."""
        if self.ended or self.next_attempt_at is not None:
            return []
        self._now = now
        exchange = self._exchange
        events = exchange.feed(data)
        chunks = exchange.assembler.content_chunks
        self._last_was_content = chunks != self._content_chunks
        if self._last_was_content:
            self._content(chunks, now)
        elif exchange.accepted and self._clocks.phase is Phase.FIRST_BYTE:
            self._header(now)
        elif exchange.resumed is not None and exchange.resumed.swallowed != self._swallowed:
            self._swallowed = exchange.resumed.swallowed
            self._clocks.content(now)
        elif events:
            self._clocks.progress(now)
        if events and type(events[0]) is StreamStart:
            self._see_start(events)
        if exchange.done:
            self._finish(events)
            events += self.take_events()
        return events

    def _header(self, now: float) -> None:
        if not self._content_chunks:
            self._meter.header_at = now
        if self.attempt.kind == "reattach":
            self._clocks.content(now)  # its prefill is over
        else:
            self._clocks.enter(Phase.PREFILL, now)
            self._plan_look(now)

    def _content(self, chunks: int, now: float) -> None:
        if not self._content_chunks:
            if self._meter.header_at is None:
                self._meter.header_at = now
            self._state.notify(FirstToken(self._id, now - self._started))
        self._meter.content(chunks - self._content_chunks, now)
        self._content_chunks = chunks
        self._look_at = inf
        self._clocks.content(now)
        if self._planner.broken is not None:
            self._mended(self.attempt.kind, now)

    def _see_start(self, events: list[StreamEvent]) -> None:
        """A repetition starts its stream anew, but the caller hears of one start."""
        if self._start_emitted:
            del events[0]
        self._start_emitted = True

    def feed_eof(self, now: float) -> list[StreamEvent]:
        """The server closed the connection."""
        events: list[StreamEvent] = []
        if not self.ended and self.next_attempt_at is None:
            self._now = now
            events = self._exchange.feed_eof()
            chunks = self._exchange.assembler.content_chunks
            if chunks != self._content_chunks:
                self._content(chunks, now)
            exchange = self._exchange
            if exchange.error is None and not (exchange.whole or exchange.terminated or self._planner.journal.counted):
                self.fail(ConnectionLostError(f"{self.url} broke off before the token counts"), now)
            else:
                self._finish(events)
            events += self.take_events()
        return events

    def _plan_look(self, now: float) -> None:
        """The first look at the slots comes when half of the prefill clock has run, the second at its end."""
        if self._clocks.deadline != inf:
            self._look_at = now + (self._clocks.deadline - now) / 2

    def wants_slots(self, now: float) -> bool:
        """Whether the runner should ask `/slots` now and tell the answer by `slots_seen`."""
        in_prefill = self._clocks.phase is Phase.PREFILL and self.next_attempt_at is None and not self.ended
        return in_prefill and now < self._clocks.end and (now >= self._look_at or now >= self._clocks.deadline)

    def slots_seen(self, slots: list[dict[str, Any]] | None, now: float) -> None:
        """What `/slots` answered (None: nothing useful). Progress starts the prefill clock anew."""
        self._look_at = inf
        if self._clocks.phase is not Phase.PREFILL or self.ended:
            return
        if now < self._clocks.deadline:
            self._slots = slots
        elif slots is not None and self._slots is not None and made_progress(self._slots, slots):
            self._slots = slots
            self._clocks.progress(now)
        else:
            self.timed_out(now)

    def reader_waited(self, now: float) -> None:
        """The reader took its time and now wants more: that time is not counted as the server's."""
        self._clocks.restart(now)

    # -- ends -------------------------------------------------------------------------------------------

    def timed_out(self, now: float) -> bool:
        """Check the clocks; True if one ran out."""
        error = None if self.ended else self._clocks.expired(now, self.url)
        if error is not None:
            self.fail(error, now)
        return error is not None

    def fail(self, error: LlamaStreamError, now: float) -> None:
        """The attempt failed: another follows, or the stream ends."""
        if self.ended:
            return
        self._now = now
        self._attempt_over()
        planner = self._planner
        planner.blame(error, now, stale=self._reused_connection and not self._exchange.accepted)
        if self._content_chunks:
            self._go_on(error)
        elif not (self._fall_back(error) or self._retry(error, now)):
            self._end_badly(error)

    def _attempt_over(self) -> None:
        """Note how far the generation was read."""
        self._planner.ended()
        generation = self._planner.generation
        if generation is not None and self.next_attempt_at is None:
            boundary = self._exchange.event_boundary
            if boundary is None:
                generation.lost = True
            elif self._exchange.accepted:
                generation.offset += boundary

    def _end_badly(self, error: LlamaStreamError) -> None:
        self.ended = True
        self.next_attempt_at = None
        self.error = error
        self._planner.abandon()
        error.partial = self._exchange.assembler.result(self.stats(), "error")
        self._state.notify(RequestEnded(self._id, "error", error.partial.stats, error))

    def _go_on(self, error: LlamaStreamError) -> None:
        """A break in mid-stream."""
        planner, now = self._planner, self._now
        first = planner.broken is None
        if planner.broken is not None and self._exchange.accepted:
            planner.broken.fruitless += 1
        reported = planner.learn(error)
        kind = planner.after_break(reported, now)
        broken = planner.broken
        assert broken is not None
        retry = self._state.retry
        failure = classify(error, elsewhere=planner.elsewhere(now))
        wait = delay(failure, broken.attempts, self._random(), base=retry.base_delay, longest=LONGEST_RECOVERY_DELAY)
        if kind == "finish":
            wait = 0.0
        if kind == "fail" or now + wait >= self._clocks.end:
            self._end_badly(reported)
            return
        broken.attempts += 1
        self.next_attempt_at = now + wait
        if first:
            self._state.notify(StreamBroke(self._id, error, kind, wait))
        else:
            self._record_failure(error, wait)

    def _mended(self, kind: str, now: float) -> None:
        broken = self._planner.mended()
        assert broken is not None
        error = broken.error
        assert isinstance(error, LlamaStreamError)
        repeated = kind == "replay" or (kind == "non_streaming" and self._planner.repeats)
        recovery = Recovery(
            kind=kind,
            error=type(error).__name__,
            message=error.message,
            text_at_break=broken.characters,
            gap=now - broken.at,
            verified=repeated or kind in ("reattach", "finish"),
            attempts=broken.attempts,
            server=self.server.url,
            from_server=broken.server.url,
        )
        if len(self._recoveries) < MAX_RECORDED:
            self._recoveries.append(recovery)
        self._state.recovered(self._id, recovery)

    def _fall_back(self, error: LlamaStreamError) -> bool:
        """Where the server says that it cannot stream, ask for the whole answer at once."""
        request = self._planner.request
        if self._options.fallback != "auto" or not request.body.get("stream"):
            return False
        if not streaming_unsupported(error):
            return False
        self._record_failure(error, 0.0)
        self._planner.request = request.without_stream()
        return True

    def _retry(self, error: LlamaStreamError, now: float) -> bool:
        state = RetryState(
            retries=self._retries,
            loading_since=self._loading_since,
            now=now,
            budget=0.0,  # the client's state fills it in
            reused_connection=self._reused_connection,
            answered=self._exchange.accepted,
            emitted=False,
            elsewhere=self._planner.elsewhere(now),
        )
        retry = self._state.decide_retry(error, state, self._random())
        if retry is None or now + retry.delay >= self._clocks.end:
            return False
        if isinstance(error, ModelLoadingError) and self._loading_since is None:
            self._loading_since = now
        self._retries += retry.counts
        if retry.counts or retry.delay:
            self._record_failure(error, retry.delay)
        else:
            self.next_attempt_at = now  # a stale connection: replaced without a word
        return True

    def _record_failure(self, error: LlamaStreamError, delay: float) -> None:
        self.next_attempt_at = self._now + delay
        if len(self._failed) < MAX_RECORDED:
            self._failed.append(FailedAttempt(type(error).__name__, error.message, error.status, delay))
        self._state.notify(RetryScheduled(self._id, self._attempts, error, delay))

    def cancel(self, now: float) -> None:
        """The caller leaves."""
        if not self.ended:
            self._now = now
            self._planner.ended()
            self._planner.abandon()
            self.ended = True
            self.next_attempt_at = None
            self.cancelled = True
            self._state.notify(RequestEnded(self._id, "cancelled", self.stats()))

    def _finish(self, events: list[StreamEvent]) -> None:
        if self._exchange.error is not None:
            self.fail(self._exchange.error, self._now)
            return
        self._planner.ended()
        self._end_well(events, self.attempt.kind)

    def _end_well(self, events: list[StreamEvent], kind: str) -> None:
        if self._planner.broken is not None:
            self._mended(kind, self._now)
        self.ended = True
        self.next_attempt_at = None
        self._state.servers.succeeded(self.server)
        self._planner.abandon()
        assembler = self._exchange.assembler
        stats = self.stats()
        reason = assembler.finish_reason() or "stop"
        events.append(StreamEnd(reason, assembler.usage, stats))
        self._give_hints(stats)
        self._state.notify(RequestEnded(self._id, reason, stats))

    def _give_hints(self, stats: Stats) -> None:
        prompt = None
        system_prompt = self._planner.request.system_prompt
        if stats.prompt_tokens is not None and system_prompt:
            prompt = PromptFacts(system_prompt, stats.prompt_tokens, stats.cached_tokens or 0)
        hint = self._state.succeeded(prompt)
        if hint is not None:
            self._state.hint(self._id, "prompt_cache", hint)
        if stats.buffered:
            self._state.hint(self._id, "buffering", f"{self.url}: {buffering_advice(self._exchange.headers)}")

    # -- what is known ------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The figures as of the last thing that happened."""
        assembler = self._exchange.assembler
        body_bytes = self._earlier_bytes + self._exchange.body_bytes
        stats = self._meter.stats(self._now, assembler.usage, assembler.timings, body_bytes)
        return msgspec.structs.replace(
            stats,
            failed_attempts=tuple(self._failed),
            recoveries=tuple(self._recoveries),
            streamed=not self._exchange.whole,
            buffered=not self._exchange.whole and looks_buffered(stats, assembler.timings),
        )

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
