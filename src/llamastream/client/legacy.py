"""The client under its old names, as existing projects import it from `core.llm_streaming_client`.

Differences to `StreamingClient`: streams are generators of plain strings that include reasoning text, one `timeout`
stands for every step, and `stream_with_retry` wraps a call. Errors are raised, never yielded as text.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from llamastream.client.aclient import AsyncStreamingClient
from llamastream.client.client import StreamingClient
from llamastream.errors import InvalidRequestError, LlamaStreamError, ServerError
from llamastream.types import ReasoningDelta, TextDelta, Timeouts

MAX_DELAY = 60.0
"""Longest pause between two attempts, in seconds."""


class LlamaStreamingClient:
    """Synchronous client.

    Args:
        base_url: the server; None: LLAMASTREAM_BASE_URL, else `http://localhost:8080`.
        timeout: seconds for each step: connecting, the first byte, the first token, and from token to token.
    """

    def __init__(self, base_url: str | None = None, timeout: float = 30) -> None:
        self._client = StreamingClient(base_url, timeouts=Timeouts.all(timeout))

    @property
    def base_url(self) -> str:
        """The server's address, without `/v1`."""
        return self._client.base_url

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> Generator[str, None, None]:
        """Yield the answer piece by piece, reasoning included; `kwargs` go into the request body.

        Raises:
            LlamaStreamError: while iterating; `partial` has what was received.
        """
        with self._client.stream_chat(
            messages, model=model, temperature=temperature, max_tokens=max_tokens, **kwargs
        ) as stream:
            for event in stream.events():
                if isinstance(event, TextDelta | ReasoningDelta):
                    yield event.text

    def stream_completion(
        self,
        prompt: str,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> Generator[str, None, None]:
        """Yield the continuation of a text piece by piece. Raises as `stream_chat`."""
        with self._client.stream_completion(
            prompt, model=model, temperature=temperature, max_tokens=max_tokens, **kwargs
        ) as stream:
            yield from stream

    def stream_with_retry(
        self,
        stream_func: Callable[..., Iterable[str]],
        *args: Any,
        max_retries: int = 3,
        base_delay: float = 1.0,
        **kwargs: Any,
    ) -> Generator[str, None, None]:
        """Yield from `stream_func(*args, **kwargs)`; start again if it fails before its first piece.

        Waits `base_delay` seconds, then twice as long each time, with jitter (`Retry-After` of the server wins). What
        has been yielded is never repeated: after the first piece an error is raised at once, as are errors that a
        repetition cannot mend (400, 401, 404, ...).

        Raises:
            LlamaStreamError: the last attempt failed, or a piece had been yielded.
        """
        attempt = 0
        while True:
            begun = False
            try:
                for piece in stream_func(*args, **kwargs):
                    begun = True
                    yield piece
            except LlamaStreamError as error:
                delay = retry_delay(error, attempt, max_retries, base_delay, begun)
                if delay is None:
                    raise
                attempt += 1
                time.sleep(delay)
            else:
                return

    def check_server_health(self) -> bool:
        """Whether a server answers and is ready."""
        return self._client.check_server_health()

    def close(self) -> None:
        """Give back what the client holds."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncLlamaStreamingClient:
    """Asynchronous client; arguments as `LlamaStreamingClient`, streams are asynchronous generators."""

    def __init__(self, base_url: str | None = None, timeout: float = 30) -> None:
        self._client = AsyncStreamingClient(base_url, timeouts=Timeouts.all(timeout))

    @property
    def base_url(self) -> str:
        """The server's address, without `/v1`."""
        return self._client.base_url

    async def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the answer piece by piece, reasoning included. Raises as `LlamaStreamingClient.stream_chat`."""
        async with self._client.stream_chat(
            messages, model=model, temperature=temperature, max_tokens=max_tokens, **kwargs
        ) as stream:
            async for event in stream.events():
                if isinstance(event, TextDelta | ReasoningDelta):
                    yield event.text

    async def stream_completion(
        self,
        prompt: str,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """Yield the continuation of a text piece by piece. Raises as `stream_chat`."""
        async with self._client.stream_completion(
            prompt, model=model, temperature=temperature, max_tokens=max_tokens, **kwargs
        ) as stream:
            async for text in stream:
                yield text

    async def stream_with_retry(
        self,
        stream_func: Callable[..., AsyncIterable[str]],
        *args: Any,
        max_retries: int = 3,
        base_delay: float = 1.0,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """As `LlamaStreamingClient.stream_with_retry`, for an asynchronous `stream_func`."""
        attempt = 0
        while True:
            begun = False
            try:
                async for piece in stream_func(*args, **kwargs):
                    begun = True
                    yield piece
            except LlamaStreamError as error:
                delay = retry_delay(error, attempt, max_retries, base_delay, begun)
                if delay is None:
                    raise
                attempt += 1
                await asyncio.sleep(delay)
            else:
                return

    async def check_server_health(self) -> bool:
        """Whether a server answers and is ready."""
        return await self._client.check_server_health()

    async def close(self) -> None:
        """Give back what the client holds."""
        await self._client.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def retry_delay(
    error: LlamaStreamError, attempt: int, max_retries: int, base_delay: float, begun: bool
) -> float | None:
    """Seconds to wait before the next attempt, or None if there shall be none.

    Args:
        attempt: how many repetitions there were. begun: whether a piece has been handed out.
    """
    if begun or attempt >= max_retries or not error.retryable or isinstance(error, InvalidRequestError):
        return None
    if isinstance(error, ServerError) and error.retry_after is not None:
        return min(MAX_DELAY, error.retry_after)
    # Half of the delay is random, so that clients which failed together do not come back together.
    return min(MAX_DELAY, base_delay * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311  # not for secrets
