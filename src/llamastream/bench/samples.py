"""What was measured of single requests, and of a load once through."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.bench.loads import Load
from llamastream.types import Timings

INTERRUPTED = "Interrupted"
"""In place of an error's name: we ended the request ourselves, when the measurement was broken off."""


class Sample(Struct, frozen=True, kw_only=True):
    """One request. Times are seconds from the beginning of its load, by our clock.

    Attributes:
        repeat: from 1. number: of its conversation in the load, from 0. turn: in its conversation, from 0.
        scheduled: when it was due; latencies count from here, so that a server that makes us late is not excused.
        started: when it was sent. first: first content. finished: the finish reason, with which the last token is
            here. ended: the stream's end.
        gaps: from one chunk of content to the next.
        tokens, prompt_tokens, cached_tokens: as the server counted; `tokens` are the chunks where it does not.
        error, message: name of the error that ended it and what it says, or "".
        recoveries: kinds of the breaks that were mended. retries: attempts that failed before the first content.
        timings: the server's own measurement. response_cache: see `Stats`.
    """

    repeat: int
    number: int
    turn: int = 0
    scheduled: float
    started: float
    first: float | None = None
    finished: float | None = None
    ended: float
    gaps: tuple[float, ...] = ()
    tokens: int = 0
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str = ""
    error: str = ""
    message: str = ""
    recoveries: tuple[str, ...] = ()
    retries: int = 0
    timings: Timings | None = None
    response_cache: str = ""

    @property
    def ok(self) -> bool:
        """Whether it ended well."""
        return not self.error

    @property
    def lag(self) -> float:
        """Seconds that we sent it too late."""
        return self.started - self.scheduled

    @property
    def time_to_first_token(self) -> float | None:
        """Seconds, from when it was due."""
        return None if self.first is None else self.first - self.scheduled

    @property
    def end_to_end(self) -> float | None:
        """Seconds from when it was due to its good end."""
        return self.ended - self.scheduled if self.ok else None

    @property
    def client_tokens_per_second(self) -> float | None:
        """Decode speed by our clock alone: tokens after the first, by the time since the first, which is prefill's."""
        if self.first is None or self.finished is None or self.tokens < 2 or self.finished <= self.first:
            return None
        return (self.tokens - 1) / (self.finished - self.first)

    @property
    def tokens_per_second(self) -> float | None:
        """Decode speed: by our clock, but never above the server's, since chunks that lay in a buffer until we read
        them seem to have come faster than they were made."""
        known = [rate for rate in (self.client_tokens_per_second, self.server_tokens_per_second) if rate is not None]
        return min(known, default=None)

    @property
    def time_per_token(self) -> float | None:
        """Seconds for each token after the first, on average."""
        rate = self.tokens_per_second
        return None if rate is None else 1.0 / rate

    @property
    def server_tokens_per_second(self) -> float | None:
        """The same by the server's clock. Builds differ in whether `predicted_per_second` counts the first token, whose
        time is not in `predicted_ms`; here it never does."""
        timings = self.timings
        if timings is None or timings.predicted_n < 2 or timings.predicted_ms <= 0:
            return None
        return (timings.predicted_n - 1) / timings.predicted_ms * 1e3

    @property
    def prefill_tokens_per_second(self) -> float | None:
        """Prompt tokens that no cache saved, by the time to the first token: the queue and the way are part of it."""
        if self.prompt_tokens is None or self.first is None or self.first <= self.started:
            return None
        return (self.prompt_tokens - (self.cached_tokens or 0)) / (self.first - self.started)

    @property
    def server_prefill_tokens_per_second(self) -> float | None:
        """Prefill speed by the server's clock."""
        timings = self.timings
        if timings is None or timings.prompt_n < 1 or timings.prompt_ms <= 0:
            return None
        return timings.prompt_n / timings.prompt_ms * 1e3

    def tokens_until(self, moment: float) -> float:
        """How many of its tokens had arrived at that time, as far as chunks tell."""
        if self.first is None or self.first > moment:
            return 0.0
        if self.ended <= moment:
            return float(self.tokens)
        arrived = sum(at <= moment for at in accumulate(self.gaps, initial=self.first))
        return self.tokens * arrived / (len(self.gaps) + 1)

    def row(self) -> dict[str, Any]:
        """Its figures without the single gaps, for a file."""
        shown = msgspec.structs.asdict(self)
        del shown["gaps"], shown["timings"]
        gaps = sorted(self.gaps)
        shown["longest_gap"] = gaps[-1] if gaps else None
        for name in PER_REQUEST:
            shown[name] = getattr(self, name)
        timings = self.timings or Timings()
        for name in ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "predicted_per_second", "cache_n"):
            shown[f"server_{name}"] = getattr(timings, name) if self.timings else None
        return shown


PER_REQUEST = (
    "time_to_first_token",
    "end_to_end",
    "time_per_token",
    "tokens_per_second",
    "client_tokens_per_second",
    "server_tokens_per_second",
    "prefill_tokens_per_second",
    "server_prefill_tokens_per_second",
)
"""Measures that each request has one value of, or none."""


class Lap(Struct, frozen=True):
    """A load, once through.

    Attributes:
        load, repeat: which. samples: all its requests.
        seconds: until the last request ended. steady: until the load was no longer what it should be, because there was
            nothing left to begin; throughput counts only what arrived before.
        cpu: seconds of CPU that we spent, by which a busy load generator is noticed.
    """

    load: Load
    repeat: int
    samples: tuple[Sample, ...]
    seconds: float
    steady: float
    cpu: float

    @property
    def total_tokens_per_second(self) -> float | None:
        """Tokens of all streams together, by time."""
        if self.steady <= 0 or not any(sample.tokens for sample in self.samples):
            return None
        return sum(sample.tokens_until(self.steady) for sample in self.samples) / self.steady

    @property
    def requests_per_second(self) -> float | None:
        """Good answers, by time."""
        done = sum(sample.ok and sample.ended <= self.seconds for sample in self.samples)
        return done / self.seconds if done and self.seconds > 0 else None

    @property
    def chunks(self) -> int:
        """Chunks of content of all requests."""
        return sum(len(sample.gaps) + (sample.first is not None) for sample in self.samples)
