"""What a client may use, and what is left of it: token buckets that refill continuously."""

from __future__ import annotations

from math import ceil

from msgspec import Struct

from llamastream.policy.fairness import Priority

MINUTE = 60.0


class Allowance(Struct, frozen=True, kw_only=True):
    """What one key may use; None: no limit.

    Attributes:
        weight: its share of the slots while several keys wait: one with 2 gets twice as many as one with 1.
        priority: requests of a higher one go first. requests_per_minute, tokens_per_minute: of prompts and answers.
        requests_at_once: in line or at work.
    """

    weight: float = 1.0
    priority: Priority = "normal"
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_at_once: int | None = None


class Bucket:
    """So much a minute, all of it at once if need be. What is taken beyond it is a debt."""

    __slots__ = ("_at", "_left", "limit")

    def __init__(self, limit: int, now: float) -> None:
        self.limit = limit
        self._left = float(limit)
        self._at = now

    def left(self, now: float) -> float:
        """What may be taken now; below 0: the debt."""
        self._left = min(float(self.limit), self._left + (now - self._at) * self.limit / MINUTE)
        self._at = now
        return self._left

    def wait(self, amount: float, now: float) -> float:
        """Seconds until so much can be taken (of more than the limit, until it is full); 0: now."""
        missing = min(amount, self.limit) - self.left(now)
        return max(0.0, missing * MINUTE / self.limit)

    def take(self, amount: float, now: float) -> None:
        """Take it, or give back what is negative."""
        self._left = min(float(self.limit), self.left(now) - amount)

    def full_in(self, now: float) -> float:
        """Seconds until all of it is there again."""
        return (self.limit - self.left(now)) * MINUTE / self.limit


class Refusal(Struct, frozen=True):
    """A request goes beyond the allowance: which limit, its value, and after how many seconds it may be tried again."""

    limit: str
    value: int
    retry_after: float


class Account:
    """What one key has used. Not thread-safe."""

    __slots__ = ("_requests", "_tokens", "active", "allowance")

    def __init__(self, allowance: Allowance, now: float) -> None:
        self.active = 0
        self.allowance = allowance
        self._requests: Bucket | None = None
        self._tokens: Bucket | None = None
        self.changed(allowance, now)

    def changed(self, allowance: Allowance, now: float) -> None:
        """It may use something else from now on."""
        self.allowance = allowance
        self._requests = _bucket(self._requests, allowance.requests_per_minute, now)
        self._tokens = _bucket(self._tokens, allowance.tokens_per_minute, now)

    def begin(self, tokens: float, now: float) -> Refusal | None:
        """A request comes whose prompt has about so many tokens: take them, or say why not."""
        allowed = self.allowance
        if allowed.requests_at_once is not None and self.active >= allowed.requests_at_once:
            return Refusal("requests_at_once", allowed.requests_at_once, 1.0)
        if self._requests is not None and (wait := self._requests.wait(1.0, now)) > 0:
            return Refusal("requests_per_minute", self._requests.limit, wait)
        if self._tokens is not None and (wait := self._tokens.wait(max(1.0, tokens), now)) > 0:
            return Refusal("tokens_per_minute", self._tokens.limit, wait)
        if self._requests is not None:
            self._requests.take(1.0, now)
        if self._tokens is not None:
            self._tokens.take(tokens, now)
        self.active += 1
        return None

    def end(self, taken: float, used: float | None, now: float) -> None:
        """A request is over for which `taken` tokens were taken; `used`: what it really took, None: not known."""
        self.active -= 1
        if self._tokens is not None and used is not None:
            self._tokens.take(used - taken, now)

    def idle(self, now: float) -> bool:
        """Whether nothing would be lost by forgetting it."""
        return not self.active and all(
            bucket is None or bucket.left(now) >= bucket.limit for bucket in (self._requests, self._tokens)
        )

    def headers(self, now: float) -> list[tuple[str, str]]:
        """What is left, in OpenAI's headers."""
        found = []
        for name, bucket in (("requests", self._requests), ("tokens", self._tokens)):
            if bucket is not None:
                found += [
                    (f"x-ratelimit-limit-{name}", str(bucket.limit)),
                    (f"x-ratelimit-remaining-{name}", str(max(0, int(bucket.left(now))))),
                    (f"x-ratelimit-reset-{name}", duration(bucket.full_in(now))),
                ]
        return found


def _bucket(known: Bucket | None, limit: int | None, now: float) -> Bucket | None:
    if limit is None:
        return None
    return known if known is not None and known.limit == limit else Bucket(limit, now)


def duration(seconds: float) -> str:
    """Seconds as OpenAI writes them: `120ms`, `1s`, `6m0s`."""
    if seconds < 1:
        return f"{ceil(seconds * 1000)}ms"
    whole = ceil(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, last = divmod(rest, 60)
    return (f"{hours}h" if hours else "") + (f"{minutes}m" if hours or minutes else "") + f"{last}s"
