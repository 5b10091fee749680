"""One stream from request to result, without I/O: the sync and the async stream are thin runners of this.

A runner looks at three things, in this order. `ended`: stop, and raise `error` if there is one. `next_attempt_at`: wait
until then, call `begin`, connect, call `connected`, and send `request`. Otherwise: wait for bytes until `deadline` at
most and `feed` them. Every call takes the time of one monotonic clock, in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.client.meter import LatencyMeter
from llamastream.client.state import ClientState
from llamastream.errors import ConnectionLostError, LlamaStreamError, ModelLoadingError
from llamastream.events import AttemptStarted, FirstToken, RequestEnded, RequestStarted, RetryScheduled
from llamastream.policy.buffering import buffering_advice, looks_buffered
from llamastream.policy.clocks import Clocks, Phase
from llamastream.policy.retry import RetryState
from llamastream.policy.stall import made_progress
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.failures import streaming_unsupported
from llamastream.protocol.requests import GenerationRequest
from llamastream.types import (
    FailedAttempt,
    Fallback,
    PromptFacts,
    Result,
    Stats,
    StreamEnd,
    StreamEvent,
    StreamStart,
    Timeouts,
)

MAX_RECORDED = 64
"""Failed attempts that are kept in the figures; a model that loads for minutes must not make them grow."""


LONGEST_STEADY = 86400.0
"""Seconds: a content-idle clock that runs longer is watched by deadlines."""


class SessionOptions(Struct, frozen=True):
    """What a stream takes from its client and its call."""

    timeouts: Timeouts
    max_event_bytes: int
    fallback: Fallback


class StreamSession:
    """The state of one stream.

    Attributes:
        request: what the current (or next) attempt sends.
        ended: the stream is over.
        error: why it failed, its `partial` filled in; None if it ended well or was cancelled.
        cancelled: the caller left.
        next_attempt_at: when the next attempt may begin; None while one is under way.
    """

    def __init__(
        self,
        url: str,
        request: GenerationRequest,
        options: SessionOptions,
        state: ClientState,
        random: Callable[[], float],
        now: float,
    ) -> None:
        self.url = url + request.path
        self.request = request.without_stream() if options.fallback == "always" else request
        self.ended = False
        self.cancelled = False
        self.error: LlamaStreamError | None = None
        self.next_attempt_at: float | None = now
        self._options = options
        self._state = state
        self._random = random
        self._id = state.next_request_id()
        self._started = now
        self._now = now
        self._attempt_began = now
        self._reused_connection = False
        self._loading_since: float | None = None
        self._retries = 0
        self._attempts = 0
        self._failed: list[FailedAttempt] = []
        self._start_emitted = False
        self._last_was_content = False
        self._content_chunks = 0
        self._clocks = Clocks(options.timeouts, now)
        self._slots: list[dict[str, Any]] | None = None
        self._look_at = inf
        self._meter = LatencyMeter(now)
        self._exchange = self._new_exchange()
        state.notify(RequestStarted(self._id, self.url))

    def _new_exchange(self) -> GenerationExchange:
        return GenerationExchange(
            self.url,
            expected_choices=self.request.choices,
            max_event_bytes=self._options.max_event_bytes,
            accept_whole=self._options.fallback != "never",
        )

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

    # -- an attempt ---------------------------------------------------------------------------------------

    def begin(self, now: float, *, reused_connection: bool) -> None:
        """An attempt begins: the runner has a connection, or is about to make one."""
        if self._attempts:
            self._exchange = self._new_exchange()
        self._attempts += 1
        self._now = self._attempt_began = now
        self._reused_connection = reused_connection
        self.next_attempt_at = None
        self._look_at = inf
        self._clocks.enter(Phase.CONNECT, now)
        self._state.notify(AttemptStarted(self._id, self._attempts, reused_connection))

    def connected(self, now: float) -> None:
        """The connection stands and the request is about to be sent."""
        self._now = now
        self._meter.connect_time = None if self._reused_connection else now - self._attempt_began
        self._clocks.enter(Phase.FIRST_BYTE, now)

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
            self._meter.header_at = now
            self._clocks.enter(Phase.PREFILL, now)
            self._plan_look(now)
        elif events:
            self._clocks.progress(now)
        if events and type(events[0]) is StreamStart:
            self._see_start(events)
        if exchange.done:
            self._finish(events)
        return events

    def _content(self, chunks: int, now: float) -> None:
        if not self._content_chunks:
            if self._meter.header_at is None:
                self._meter.header_at = now
            self._state.notify(FirstToken(self._id, now - self._started))
        self._meter.content(chunks - self._content_chunks, now)
        self._content_chunks = chunks
        self._look_at = inf
        self._clocks.content(now)

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
            self._finish(events)
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
        """The attempt failed: another follows, or the stream ends with the error."""
        if self.ended:
            return
        self._now = now
        if self._fall_back(error) or self._retry(error, now):
            return
        self.ended = True
        self.next_attempt_at = None
        self.error = error
        error.partial = self._exchange.assembler.result(self.stats(), "error")
        self._state.notify(RequestEnded(self._id, "error", error.partial.stats, error))

    def _fall_back(self, error: LlamaStreamError) -> bool:
        """Where the server says that it cannot stream, ask for the whole answer at once."""
        if self._options.fallback != "auto" or not self.request.body.get("stream") or self._content_chunks:
            return False
        if not streaming_unsupported(error):
            return False
        self._record_failure(error, 0.0)
        self.request = self.request.without_stream()
        return True

    def _retry(self, error: LlamaStreamError, now: float) -> bool:
        state = RetryState(
            retries=self._retries,
            loading_since=self._loading_since,
            now=now,
            budget=0.0,  # the client's state fills it in
            reused_connection=self._reused_connection,
            answered=self._exchange.accepted,
            emitted=self._content_chunks > 0,
        )
        retry = self._state.decide_retry(error, state, self._random())
        if retry is None or now + retry.delay >= self._clocks.end:
            return False
        if isinstance(error, ModelLoadingError) and self._loading_since is None:
            self._loading_since = now
        self._retries += retry.counts
        if retry.cost or retry.delay:
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
            self.ended = True
            self.next_attempt_at = None
            self.cancelled = True
            self._state.notify(RequestEnded(self._id, "cancelled", self.stats()))

    def _finish(self, events: list[StreamEvent]) -> None:
        if self._exchange.error is not None:
            self.fail(self._exchange.error, self._now)
            return
        self.ended = True
        assembler = self._exchange.assembler
        stats = self.stats()
        reason = assembler.finish_reason() or "stop"
        events.append(StreamEnd(reason, assembler.usage, stats))
        self._give_hints(stats)
        self._state.notify(RequestEnded(self._id, reason, stats))

    def _give_hints(self, stats: Stats) -> None:
        prompt = None
        if stats.prompt_tokens is not None and self.request.system_prompt:
            prompt = PromptFacts(self.request.system_prompt, stats.prompt_tokens, stats.cached_tokens or 0)
        hint = self._state.succeeded(prompt)
        if hint is not None:
            self._state.hint(self._id, "prompt_cache", hint)
        if stats.buffered:
            self._state.hint(self._id, "buffering", f"{self.url}: {buffering_advice(self._exchange.headers)}")

    # -- what is known ------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """The figures as of the last thing that happened."""
        assembler = self._exchange.assembler
        stats = self._meter.stats(self._now, assembler.usage, assembler.timings, self._exchange.body_bytes)
        return msgspec.structs.replace(
            stats,
            failed_attempts=tuple(self._failed),
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
