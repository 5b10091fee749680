"""`AsyncStreamingClient`: llama-server from asyncio code."""

from __future__ import annotations

import asyncio
from collections.abc import Generator, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import Any, Self, TypeVar

from llamastream.client import endpoints
from llamastream.client.apool import AsyncConnectionPool
from llamastream.client.astream import AsyncStream
from llamastream.client.aunary import call_pooled
from llamastream.client.base import ClientBase
from llamastream.client.core import (
    READY_POLL,
    UNARY_TIMEOUT,
    check_prewarm,
    checked_timeout,
    not_ready,
    prewarmed,
)
from llamastream.client.endpoints import Call
from llamastream.client.following import Pools
from llamastream.client.servers import Server
from llamastream.errors import (
    ConnectError,
    ConnectTimeoutError,
    LlamaStreamError,
    MalformedOutputError,
    StreamTimeoutError,
    TransportError,
)
from llamastream.protocol.tasks import task_questions
from llamastream.protocol.toolcalls import Question, Reply, tool_questions
from llamastream.tools import ToolSupport
from llamastream.types import Health, Result, Stats, Task, Timeouts

T = TypeVar("T")


class AsyncStreamingClient(ClientBase):
    """A client of one or several llama-servers for asyncio; share it between tasks. Names as in `StreamingClient`.

    Arguments: see `ClientBase`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._core.reads_block = False
        limits = self._core.limits  # not ourselves: a client that is dropped is freed at once, with its connections
        self._pools = Pools(self._core.servers, lambda server: AsyncConnectionPool(server, limits))

    # -- generation -------------------------------------------------------------------------------------

    def stream_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeouts: Timeouts | None = None,
        **body: Any,
    ) -> AsyncStream:
        """Stream an answer to a conversation; other keyword arguments go into the request body as they are.

        Raises:
            InvalidRequestError: the request cannot be right. All else is raised by the stream.
        """
        return AsyncStream(
            self._core, self._pools, self._core.chat(messages, model, temperature, max_tokens, body), timeouts
        )

    def stream_completion(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeouts: Timeouts | None = None,
        **body: Any,
    ) -> AsyncStream:
        """Stream the continuation of a text (or of token ids), without a chat template. Raises as `stream_chat`."""
        return AsyncStream(
            self._core, self._pools, self._core.completion(prompt, model, temperature, max_tokens, body), timeouts
        )

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeouts: Timeouts | None = None,
        **body: Any,
    ) -> Result:
        """The whole answer to a conversation. It is streamed underneath, so the same clocks watch it.

        Raises:
            LlamaStreamError: as a stream does; `partial` has what was received.
        """
        return await self.stream_chat(
            messages, model=model, temperature=temperature, max_tokens=max_tokens, timeouts=timeouts, **body
        ).result()

    async def complete(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeouts: Timeouts | None = None,
        **body: Any,
    ) -> Result:
        """The whole continuation of a text. Raises as `chat`."""
        return await self.stream_completion(
            prompt, model=model, temperature=temperature, max_tokens=max_tokens, timeouts=timeouts, **body
        ).result()

    async def prewarm(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        model: str | None = None,
        timeouts: Timeouts | None = None,
        **body: Any,
    ) -> Stats:
        """Have the server read a prompt (a long system prompt, say) ahead of time, so that it is in the prompt cache.

        One token is generated and thrown away. `cached_tokens` of the figures says what was cached already. Raises as
        `chat`.
        """
        check_prewarm(body)
        try:
            return (await self.chat(messages, model=model, max_tokens=1, timeouts=timeouts, **body)).stats
        except MalformedOutputError as error:
            return prewarmed(error)

    # -- endpoints that answer at once ------------------------------------------------------------------

    async def health(self, *, timeout: float | None = UNARY_TIMEOUT) -> Health:
        """What `GET /health` says within `timeout` seconds (None: as long as the client's own clocks allow).

        Raises:
            InvalidRequestError: `timeout` is no number above 0.
            LlamaStreamError: there is no connection, or what answers is no llama-server.
        """
        return await self._call(endpoints.health(), checked_timeout(timeout, "timeout"))

    async def check_server_health(self) -> bool:
        """Whether a server answers and is ready. Never raises for what the server does."""
        try:
            return (await self.health()).ok
        except LlamaStreamError:
            return False

    async def props(self) -> dict[str, Any]:
        """`GET /props`: slots, context, chat template, build. Raises as `health`, and ServerError."""
        return await self._call(endpoints.props())

    async def slots(self) -> list[dict[str, Any]]:
        """`GET /slots`: what each slot does. Raises as `props`."""
        return await self._call(endpoints.slots())

    async def models(self) -> list[str]:
        """`GET /v1/models`: the names that the server knows. Raises as `props`."""
        return await self._call(endpoints.models())

    async def metrics(self) -> dict[str, float]:
        """`GET /metrics`: values by name, as exposed for Prometheus. Raises as `props`."""
        return await self._call(endpoints.metrics())

    async def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The token ids of a text. Raises as `props`."""
        return await self._call(endpoints.tokenize(text, add_special, parse_special))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises as `props`."""
        return await self._call(endpoints.detokenize(tokens))

    async def apply_template(self, messages: Sequence[Mapping[str, Any]], **body: Any) -> str:
        """The prompt that the model would see for a conversation. Raises as `props`."""
        return await self._call(endpoints.apply_template(messages, body))

    async def tool_support(self) -> ToolSupport:
        """What the server does with requests that have tools: of several, the first that can be reached.

        Nothing is generated. Raises as `props`.
        """
        return await self._answered(tool_questions(await self.props()))

    async def tasks(self) -> tuple[Task, ...]:
        """What the server is for (`generate`, `embed`, `rerank`); empty: it does not tell. Raises as `props`."""
        return await self._answered(task_questions())

    async def wait_until_ready(self, timeout: float | None = 60.0) -> None:
        """Wait until the server has loaded its model.

        Raises:
            LlamaStreamError: it is not ready within `timeout` seconds; the message says what it did instead.
        """
        end = monotonic() + checked_timeout(timeout, "timeout")
        while True:
            last: Health | LlamaStreamError
            try:
                last = await self._call(endpoints.health(), timeout=max(0.1, min(UNARY_TIMEOUT, end - monotonic())))
                if last.ok:
                    return
            except (TransportError, StreamTimeoutError) as error:
                last = error
            if monotonic() + READY_POLL >= end:
                raise not_ready(self.base_url, last, timeout)
            await asyncio.sleep(READY_POLL)

    async def _answered(self, questions: Generator[Question, Reply, T]) -> T:
        """Ask all of the questions; what they come to."""
        question = next(questions)
        while True:
            reply = await self._call(endpoints.question(question))
            try:
                question = questions.send(reply)
            except StopIteration as end:
                found: T = end.value
                return found

    async def _call(self, call: Call[T], timeout: float = UNARY_TIMEOUT) -> T:
        servers = self._core.servers
        failed: list[Server] = []
        while True:
            server, _ = servers.choose(monotonic(), failed)
            try:
                return await call_pooled(self._core, self._pools[server.index], call, self._core.unary_timeout(timeout))
            except (ConnectError, ConnectTimeoutError):
                servers.failed(server, monotonic(), certain=True)
                failed.append(server)
                if len(failed) == len(servers):
                    raise

    # -- end --------------------------------------------------------------------------------------------

    async def close(self) -> None:
        """Close idle connections, and keep none from now on. Streams that run go on; close them by themselves."""
        if self._core.following is not None:
            self._core.following.leave()
        for pool in self._pools:
            pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
