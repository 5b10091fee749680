"""Errors that are LangChain's as well as ours, so that code which catches either goes on working."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core.exceptions import (
    ContextOverflowError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelError,
    ModelInvalidRequestError,
    ModelNotFoundError,
    ModelPermissionDeniedError,
    ModelRateLimitError,
    ModelTimeoutError,
)

from llamastream.errors import (
    AuthenticationError,
    BadRequestError,
    ContextSizeError,
    InvalidRequestError,
    LlamaStreamError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    StreamTimeoutError,
    TransportError,
)

# The first that fits.
_THEIRS: list[tuple[type[LlamaStreamError], type[ModelError]]] = [
    (ContextSizeError, ContextOverflowError),
    (BadRequestError, ModelInvalidRequestError),
    (InvalidRequestError, ModelInvalidRequestError),
    (AuthenticationError, ModelAuthenticationError),
    (PermissionDeniedError, ModelPermissionDeniedError),
    (NotFoundError, ModelNotFoundError),
    (RateLimitedError, ModelRateLimitError),
    (ServerError, ModelAPIError),
    (StreamTimeoutError, ModelTimeoutError),
    (TransportError, ModelConnectionError),
]


@contextmanager
def as_langchain_errors() -> Iterator[None]:
    """Make errors from inside the block LangChain's, too: a `ContextSizeError` is then a `ContextOverflowError` as
    well, and its `is_retryable` is our `retryable`."""
    try:
        yield
    except LlamaStreamError as error:
        error.__class__ = _both(type(error))
        raise


_made: dict[type[LlamaStreamError], type[LlamaStreamError]] = {}


def _both(ours: type[LlamaStreamError]) -> type[LlamaStreamError]:
    if issubclass(ours, ModelError):
        return ours
    if ours not in _made:
        _made[ours] = _make(ours)
    return _made[ours]


def _make(ours: type[LlamaStreamError]) -> type[LlamaStreamError]:
    theirs = next((theirs for base, theirs in _THEIRS if issubclass(ours, base)), ModelError)
    own = {"__doc__": ours.__doc__, "__module__": __name__, "is_retryable": ours.retryable}
    return type(ours.__name__, (ours, theirs), own)
