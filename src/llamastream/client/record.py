"""What is kept of a stream for its figures, and told to those who listen."""

from __future__ import annotations

import msgspec

from llamastream.client.attempt import Attempt, Break
from llamastream.client.meter import LatencyMeter
from llamastream.client.state import ClientState
from llamastream.errors import LlamaStreamError
from llamastream.events import (
    AttemptStarted,
    FirstToken,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
    StreamBroke,
    StreamRecovered,
)
from llamastream.policy.buffering import buffering_advice, looks_buffered
from llamastream.protocol.exchange import GenerationExchange
from llamastream.protocol.requests import GenerationRequest
from llamastream.protocol.toolcalls import tool_advice
from llamastream.types import FailedAttempt, PromptFacts, Recovery, Stats

MAX_FAILED = 64
MAX_RECOVERIES = 1024
"""Failed attempts, and recoveries, that are kept in the figures; what goes on for long must not make them grow."""


class StreamRecord:
    """The record of one stream.

    Attributes:
        meter: when content came. attempts: how many there were. earlier_bytes: of the bodies of attempts that are over.
        silence: see `looks_buffered`.
    """

    def __init__(self, state: ClientState, url: str, model: str, now: float) -> None:
        self.meter = LatencyMeter(now)
        self.attempts = 0
        self.earlier_bytes = 0
        self.silence = 0.0
        self._state = state
        self._id = state.next_request_id()
        self._started = now
        self._failed: list[FailedAttempt] = []
        self._recoveries: list[Recovery] = []
        state.notify(RequestStarted(self._id, url, model))

    def attempt(self, attempt: Attempt, *, reused_connection: bool) -> None:
        """An attempt begins."""
        self.attempts += 1
        server = attempt.generation.server.url
        self._state.notify(AttemptStarted(self._id, self.attempts, reused_connection, server, attempt.kind))

    def first_token(self, now: float) -> None:
        if self.meter.header_at is None:
            self.meter.header_at = now
        self._state.notify(FirstToken(self._id, now - self._started))

    def retry(self, error: LlamaStreamError, delay: float) -> None:
        """The attempt failed, and another follows."""
        if len(self._failed) < MAX_FAILED:
            self._failed.append(FailedAttempt(type(error).__name__, error.message, error.status, delay))
        self._state.notify(RetryScheduled(self._id, self.attempts, error, delay))

    def broke(self, error: LlamaStreamError, kind: str, delay: float) -> None:
        """The stream broke in the middle, and is to go on."""
        self._state.notify(StreamBroke(self._id, error, kind, delay))

    def mended(self, broken: Break, kind: str, server: str, now: float, *, verified: bool) -> None:
        """It goes on, or has ended well."""
        recovery = Recovery(
            kind=kind,
            error=type(broken.error).__name__,
            message=broken.error.message,
            text_at_break=broken.characters,
            gap=now - broken.silent_since,
            verified=verified,
            attempts=broken.attempts,
            server=server,
            from_server=broken.server.url,
        )
        if len(self._recoveries) < MAX_RECOVERIES:
            self._recoveries.append(recovery)
        self._state.log_recovery(recovery)
        self._state.notify(StreamRecovered(self._id, recovery))

    def ended(self, reason: str, stats: Stats, error: LlamaStreamError | None = None) -> None:
        self._state.notify(RequestEnded(self._id, reason, stats, error))

    def hints(self, stats: Stats, request: GenerationRequest, exchange: GenerationExchange) -> None:
        """After a good end: say what could be better."""
        prompt, system_prompt = None, request.system_prompt
        if stats.prompt_tokens is not None and system_prompt:
            prompt = PromptFacts(system_prompt, stats.prompt_tokens, stats.cached_tokens or 0)
        hint = self._state.succeeded(prompt)
        if hint is not None:
            self._state.hint(self._id, "prompt_cache", hint)
        if stats.buffered:
            self._state.hint(self._id, "buffering", f"{exchange.url}: {buffering_advice(exchange.headers)}")
        if request.offers_tools and (advice := tool_advice(request.body, exchange.assembler.result(stats))):
            self._state.hint(self._id, *advice)

    def stats(self, now: float, exchange: GenerationExchange) -> Stats:
        """The figures as of `now`."""
        assembler = exchange.assembler
        body_bytes = self.earlier_bytes + exchange.body_bytes
        stats = self.meter.stats(now, assembler.usage, assembler.timings, body_bytes)
        return msgspec.structs.replace(
            stats,
            failed_attempts=tuple(self._failed),
            recoveries=tuple(self._recoveries),
            streamed=not exchange.whole,
            buffered=not exchange.whole and looks_buffered(stats, assembler.timings, self.silence),
            response_cache=exchange.headers.get("x-llamastream-cache", "")[:20],
        )
