"""Whether, and when, a request that failed before its first content is sent again.

Exponential backoff with full jitter (the delay is uniform between zero and the bound, so that clients which failed
together do not come back together), a budget that all requests of a client share, so that retries cannot multiply the
load on a server that is down, and patience while a server loads its model, which costs no budget.
"""

from __future__ import annotations

from msgspec import Struct

from llamastream.errors import (
    BadRequestError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    EventTooLargeError,
    LlamaStreamError,
    MalformedOutputError,
    ModelLoadingError,
    PoolTimeoutError,
    ProtocolError,
    ServerError,
    TotalTimeoutError,
    UnexpectedResponseError,
)
from llamastream.types import RetryPolicy

MAX_FAILOVERS = 16
"""Servers that one request tries at most before its first content."""


class RetryState(Struct, frozen=True):
    """What is known when an attempt has failed.

    Attributes:
        retries: how many repetitions there were, those while the model loaded not counted.
        loading_since: when the server first said that it loads its model, or None.
        now: the time, by the same clock, in seconds.
        budget: tokens left in the client's budget.
        reused_connection: the attempt used a connection that had been idle.
        answered: a byte of an answer came.
        emitted: content reached the caller.
        elsewhere: there is another server, which this request has not failed on.
    """

    retries: int
    loading_since: float | None
    now: float
    budget: float
    reused_connection: bool
    answered: bool
    emitted: bool
    elsewhere: bool = False


class Retry(Struct, frozen=True):
    """Send again after `delay` seconds. `cost` is what it takes from the budget; `counts` whether it is a repetition
    that `max_retries` bounds."""

    delay: float
    cost: float = 1.0
    counts: bool = True


def decide(error: LlamaStreamError, state: RetryState, policy: RetryPolicy, random: float) -> Retry | None:
    """The next attempt, or None if the error is final. `random` is uniform in [0, 1)."""
    if state.emitted:
        return None
    if state.reused_connection and not state.answered and isinstance(error, ConnectionLostError):
        # The server had closed the idle connection; it never saw the request.
        return Retry(delay=0.0, cost=0.0, counts=False)
    if state.elsewhere and _elsewhere_helps(error) and state.retries < MAX_FAILOVERS:
        return Retry(delay=0.0, cost=0.0, counts=True)
    if isinstance(error, ModelLoadingError):
        since = state.now if state.loading_since is None else state.loading_since
        if state.now - since < policy.loading_patience:
            return Retry(delay=policy.loading_interval, cost=0.0, counts=False)
        return None
    worth_it = _worth_it(error) or (state.answered and _garbled(error))
    if not worth_it or state.retries >= policy.max_retries or state.budget < 1.0:
        return None
    asked = error.retry_after if isinstance(error, ServerError) else None
    if asked is not None:
        return Retry(delay=asked) if asked <= policy.max_retry_after else None
    bound = min(policy.max_delay, policy.base_delay * 2.0 ** min(state.retries, 64))
    return Retry(delay=bound * random)


def too_long(error: LlamaStreamError, policy: RetryPolicy, left: float) -> str:
    """If the server asked to wait for longer than may be waited: that, and which limit forbids it; else "".

    `left`: seconds until the total clock runs out.
    """
    asked = error.retry_after if isinstance(error, ServerError) and error.retryable else None
    if asked is None or isinstance(error, ModelLoadingError) or not policy.max_retries:
        return ""
    said = f"the server asks to wait {asked:,.0f} s (Retry-After)"
    if asked > policy.max_retry_after:
        return f"{said}, longer than RetryPolicy.max_retry_after allows ({policy.max_retry_after:g} s)"
    if asked >= left:
        return f"{said}, but Timeouts.total leaves {max(0.0, left):,.1f} s"
    return ""


def _elsewhere_helps(error: LlamaStreamError) -> bool:
    # A clock that ran out is no reason to ask the same server again, but one to ask another; not so if it is no server
    # that kept us waiting.
    if isinstance(
        error, BadRequestError | EventTooLargeError | MalformedOutputError | PoolTimeoutError | TotalTimeoutError
    ):
        return False
    # An answer that says more of the server than of the request (no key, no such path, 500, a web page) helps too.
    return error.retryable or isinstance(error, ServerError | ProtocolError)


def _worth_it(error: LlamaStreamError) -> bool:
    # Timeouts other than that of connecting are not: the caller has waited long enough, and all would begin anew.
    return error.retryable and isinstance(error, ConnectError | ConnectTimeoutError | ConnectionLostError | ServerError)


def _garbled(error: LlamaStreamError) -> bool:
    """What came is broken, where it is not of another kind altogether: a web page stays one."""
    return isinstance(error, ProtocolError) and not isinstance(error, UnexpectedResponseError | EventTooLargeError)


class RetryBudget:
    """Tokens that retries of all requests share: each good request earns some, each retry costs one (not thread-safe).

    The idea is that of gRPC's retry throttling (proposal A6): under a lasting failure the share of retries in the load
    falls to `earned` of the good requests, however many requests there are.
    """

    __slots__ = ("_capacity", "_earned", "tokens")

    def __init__(self, capacity: float = 20.0, earned: float = 0.2) -> None:
        self._capacity = capacity
        self._earned = earned
        self.tokens = capacity

    def earn(self) -> None:
        """A request ended well."""
        self.tokens = min(self._capacity, self.tokens + self._earned)

    def spend(self, cost: float) -> None:
        """A retry begins."""
        self.tokens = max(0.0, self.tokens - cost)
