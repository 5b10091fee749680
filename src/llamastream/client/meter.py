"""Latency figures of one stream in constant memory: a histogram with logarithmic buckets instead of every gap."""

from __future__ import annotations

from array import array
from math import frexp

from llamastream.types import Stats, Timings, Usage

# 2**5 buckets to an octave: a value is known within 1/32, about 3 %.
_STEPS = 32

# So many times are kept before they become counts: 32 KiB.
_FOLD = 4096


class LatencyMeter:
    """When content came. Times are those of one monotonic clock, in seconds, given by the caller.

    Attributes:
        arrivals: times of chunks after the first that are not counted yet; whoever is in a hurry appends to it.
        connect_time, header_at: see `Stats`.
    """

    __slots__ = (
        "_buckets",
        "_first",
        "_gaps",
        "_last",
        "_max",
        "_started",
        "arrivals",
        "connect_time",
        "header_at",
    )

    def __init__(self, started: float) -> None:
        self.connect_time: float | None = None
        self.header_at: float | None = None
        self._started = started
        self._first: float | None = None
        self._last = started
        self._max = 0.0
        self._gaps = 0
        self.arrivals = array("d")
        self._buckets: dict[int, int] = {}

    def content(self, count: int, now: float) -> None:
        """`count` chunks of content arrived in one read."""
        if self._first is None:
            self._first = self._last = now
            count -= 1
        # The times are only noted here; what they mean is worked out when somebody asks, or when there are many.
        for _ in range(count):
            self.arrivals.append(now)
        self.fold_if_many()

    def fold_if_many(self) -> None:
        """Keep the memory constant."""
        if len(self.arrivals) >= _FOLD:
            self.fold()

    @property
    def chunks(self) -> int:
        """Chunks of content so far."""
        return self._gaps + len(self.arrivals) + (self._first is not None)

    def fold(self) -> None:
        """Make counts of the times that were noted."""
        buckets = self._buckets
        last = self._last
        count = len(self.arrivals)  # now: another thread may ask for figures while more come
        for now in self.arrivals[:count]:
            gap = now - last
            last = now
            if gap > self._max:
                self._max = gap
            key = _bucket(gap)
            buckets[key] = buckets.get(key, 0) + 1
        self._gaps += count
        self._last = last
        del self.arrivals[:count]

    @property
    def last_content(self) -> float:
        """When content last came; before the first, when the stream began."""
        return self.arrivals[-1] if self.arrivals else self._last

    def decode_ms(self) -> float:
        """Milliseconds from the first content to the last."""
        return 0.0 if self._first is None else (self.last_content - self._first) * 1e3

    def quantile(self, q: float) -> float | None:
        """The gap (seconds) that a share `q` of all gaps does not exceed, within 3 %."""
        self.fold()
        if not self._gaps:
            return None
        rank = q * self._gaps
        seen = 0
        for key in sorted(self._buckets):
            seen += self._buckets[key]
            if seen >= rank:
                return min(_value(key), self._max)
        return self._max

    def gaps(self) -> tuple[tuple[float, int], ...]:
        """All gaps between chunks of content: seconds (within 3 %, never too few), and how often."""
        self.fold()
        return tuple((min(_value(key), self._max), count) for key, count in sorted(self._buckets.items()))

    def stats(self, now: float, usage: Usage | None, timings: Timings | None, body_bytes: int) -> Stats:
        """All figures, with the token counts that the server sent (or else the chunks counted as tokens)."""
        self.fold()
        completion = prompt = cached = None
        if usage is not None:
            completion, prompt, cached = usage.completion_tokens, usage.prompt_tokens, usage.cached_tokens
        if timings is not None:
            completion = timings.predicted_n if completion is None else completion
            prompt = timings.prompt_n + timings.cache_n if prompt is None else prompt
            cached = max(cached or 0, timings.cache_n)
        server_rate = timings.predicted_per_second if timings else None
        rate = server_rate if self.chunks > 1 else None
        if self._first is not None and self._last > self._first:
            tokens = self.chunks if completion is None else completion
            rate = max(0, tokens - 1) / (self._last - self._first)
            if server_rate is not None:
                # Chunks that lay in a buffer until we read them seem to have come faster than they were made.
                rate = min(rate, server_rate)
        return Stats(
            time_to_header=None if self.header_at is None else self.header_at - self._started,
            time_to_first_token=None if self._first is None else self._first - self._started,
            duration=now - self._started,
            inter_token_latency_p50=self.quantile(0.50),
            inter_token_latency_p95=self.quantile(0.95),
            inter_token_latency_max=self._max if self._gaps else None,
            tokens_per_second=rate,
            server_tokens_per_second=server_rate,
            prompt_tokens=prompt,
            cached_tokens=cached,
            completion_tokens=completion,
            chunks=self.chunks,
            body_bytes=body_bytes,
            connect_time=self.connect_time,
        )


def _bucket(seconds: float) -> int:
    """Bucket number: the exponent and the first five bits of the mantissa of the time in microseconds."""
    mantissa, exponent = frexp(seconds * 1e6 + 1.0)
    return exponent * _STEPS + int((mantissa - 0.5) * 2 * _STEPS)


def _value(bucket: int) -> float:
    """The upper end of a bucket, in seconds."""
    exponent, step = divmod(bucket, _STEPS)
    return max(0.0, ((0.5 + (step + 1) / (2 * _STEPS)) * 2.0**exponent - 1.0) / 1e6)
