"""Retries: which failure is worth another attempt, when, and at whose cost."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from llamastream.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    ContentIdleTimeoutError,
    EventTooLargeError,
    FirstByteTimeoutError,
    InternalServerError,
    LlamaStreamError,
    ModelLoadingError,
    NotFoundError,
    PrefillTimeoutError,
    ProtocolError,
    RateLimitedError,
    ServerError,
    StreamTruncatedError,
    UnavailableError,
    UnexpectedResponseError,
)
from llamastream.policy.retry import Retry, RetryBudget, RetryState, decide
from llamastream.types import RetryPolicy

POLICY = RetryPolicy(max_retries=3, base_delay=1.0, max_delay=3.0, loading_patience=100.0, loading_interval=0.5)
FRESH = RetryState(
    retries=0, loading_since=None, now=50.0, budget=5.0, reused_connection=False, answered=False, emitted=False
)


def state(**changes: Any) -> RetryState:
    return msgspec.structs.replace(FRESH, **changes)


@pytest.mark.parametrize(
    ("kind", "again"),
    [
        (ConnectError, True),
        (ConnectTimeoutError, True),
        (ConnectionLostError, True),
        (StreamTruncatedError, True),
        (RateLimitedError, True),
        (UnavailableError, True),
        (ModelLoadingError, True),
        (BadRequestError, False),
        (AuthenticationError, False),
        (NotFoundError, False),
        (InternalServerError, False),  # llama-server's answer to malformed JSON
        (ProtocolError, False),
        (FirstByteTimeoutError, False),  # the caller has waited long enough
        (PrefillTimeoutError, False),
        (ContentIdleTimeoutError, False),
    ],
)
def test_which_errors_are_worth_another_attempt(kind: type[LlamaStreamError], again: bool) -> None:
    assert (decide(kind("x"), FRESH, POLICY, 0.5) is not None) is again


@pytest.mark.parametrize(
    ("changes", "again"),
    [
        ({}, True),
        ({"retries": 2}, True),
        ({"retries": 3}, False),
        ({"budget": 0.9}, False),
        ({"emitted": True}, False),
        ({"answered": True}, True),
    ],
)
def test_bounds(changes: dict[str, Any], again: bool) -> None:
    assert (decide(ConnectError("x"), state(**changes), POLICY, 0.5) is not None) is again


@pytest.mark.parametrize(("retries", "bound"), [(0, 1.0), (1, 2.0), (2, 3.0)])
def test_backoff_is_exponential_with_full_jitter_and_a_cap(retries: int, bound: float) -> None:
    for random in (0.0, 0.25, 0.999):
        assert decide(ConnectError("x"), state(retries=retries), POLICY, random) == Retry(delay=bound * random)


@pytest.mark.parametrize(("seconds", "expected"), [(7.0, Retry(delay=7.0)), (0.0, Retry(delay=0.0)), (61.0, None)])
def test_retry_after_wins_unless_it_asks_for_too_much(seconds: float, expected: Retry | None) -> None:
    error = UnavailableError("x", status=503)
    error.retry_after = seconds
    assert decide(error, FRESH, POLICY, 0.5) == expected


def test_a_loading_model_is_waited_for_without_cost_until_patience_ends() -> None:
    error: ServerError = ModelLoadingError("x", status=503)
    free = Retry(delay=0.5, cost=0.0, counts=False)
    assert decide(error, state(retries=3, budget=0.0), POLICY, 0.5) == free
    assert decide(error, state(loading_since=0.0, now=99.9), POLICY, 0.5) == free
    assert decide(error, state(loading_since=0.0, now=100.0), POLICY, 0.5) is None


def test_a_stale_connection_is_replaced_without_delay_or_cost() -> None:
    stale = state(reused_connection=True, retries=3, budget=0.0)
    assert decide(ConnectionLostError("x"), stale, POLICY, 0.5) == Retry(delay=0.0, cost=0.0, counts=False)
    answered = msgspec.structs.replace(stale, answered=True)
    assert decide(ConnectionLostError("x"), answered, POLICY, 0.5) is None, "the server did see the request"


def test_the_budget_keeps_retries_a_fraction_of_the_load() -> None:
    budget = RetryBudget(capacity=10.0, earned=0.1)
    retries = 0
    for _ in range(1000):  # a server that fails every other request
        budget.earn()
        if budget.tokens >= 1.0:
            budget.spend(1.0)
            retries += 1
    assert 100 <= retries <= 110
    for _ in range(1000):
        budget.earn()
    assert budget.tokens == 10.0, "what is saved is bounded"


@pytest.mark.parametrize(
    ("error", "answered", "again"),
    [
        (ProtocolError("garbage"), True, True),  # a stream that was garbled before its first content
        (ProtocolError("garbage"), False, False),  # no HTTP at all: something else listens there
        (UnexpectedResponseError("a web page"), True, False),
        (EventTooLargeError("too large"), True, False),
    ],
)
def test_a_garbled_stream_is_asked_for_again(error: LlamaStreamError, answered: bool, again: bool) -> None:
    assert (decide(error, state(answered=answered), POLICY, 0.5) is not None) is again
