"""`StreamingClient`: llama-server from synchronous code."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self, TypeVar

from llamastream.client import endpoints
from llamastream.client.core import (
    READY_POLL,
    UNARY_TIMEOUT,
    ClientCore,
    checked_timeout,
    not_ready,
)
from llamastream.client.endpoints import Call
from llamastream.client.pool import ConnectionPool
from llamastream.client.stream import Stream
from llamastream.client.unary import call_pooled
from llamastream.errors import (
    LlamaStreamError,
    StreamTimeoutError,
    TransportError,
)
from llamastream.events import Listener
from llamastream.settings import ClientSettings, from_object
from llamastream.types import Fallback, Health, Result, RetryPolicy, Stats, Timeouts

T = TypeVar("T")


class StreamingClient:
    """A client of one llama-server. Safe to share between threads; each stream belongs to one of them.

    What is not given comes from the environment (`LLAMASTREAM_BASE_URL`, `LLAMASTREAM_API_KEY`, ...), else from the
    defaults. Base URLs work with and without `/v1`; `unix:///path` and `https://` work too.

    Args:
        base_url: where the server is. api_key: the key it asks for.
        model, temperature, max_tokens: defaults of the requests.
        timeouts: the five clocks, in seconds. headers: sent with every request.
        ca_file, cert_file, key_file: PEM files for https (own authority, client certificate).
        settings: all of it at once; the other arguments win.
        retry: when a request that failed before its first content is sent again.
        fallback: whether an answer may come as one piece: `auto` (where streaming fails), `always`, `never`.
        max_connections: open at the same time; further requests wait in line.
        listeners: called with the events of `llamastream.events` (requests, attempts, first tokens, retries, ends).

    Raises:
        SettingError: an argument or an environment variable has a value that is not allowed.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeouts: Timeouts | None = None,
        headers: Mapping[str, str] | None = None,
        ca_file: str | None = None,
        cert_file: str | None = None,
        key_file: str | None = None,
        settings: ClientSettings | None = None,
        retry: RetryPolicy | None = None,
        fallback: Fallback | None = None,
        max_connections: int | None = None,
        listeners: Iterable[Listener] = (),
    ) -> None:
        self._core = ClientCore(
            base_url,
            api_key=api_key,
            model=model,
            temperature=temperature,
            max_tokens=max_tokens,
            timeouts=timeouts,
            headers=headers,
            ca_file=ca_file,
            cert_file=cert_file,
            key_file=key_file,
            settings=settings,
            retry=retry,
            fallback=fallback,
            max_connections=max_connections,
            listeners=listeners,
        )
        self._pool = ConnectionPool(self._core.address, self._core.tls, self._core.limits)

    @classmethod
    def from_settings(cls, source: Any, **arguments: Any) -> Self:
        """A client from a project's settings: any object (or mapping) with `llm_base_url`, `llm_model`,
        `llm_temperature`, `llm_max_tokens`, `llm_api_key`; `arguments` are the constructor's and win.

        Raises:
            SettingError: the object has none of these, or one has a value that is not allowed.
        """
        return cls(**{**from_object(source), **arguments})

    @property
    def base_url(self) -> str:
        """The server's address, without `/v1`."""
        return self._core.url

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
    ) -> Stream:
        """Stream an answer to a conversation; other keyword arguments go into the request body as they are.

        Raises:
            InvalidRequestError: the request cannot be right. All else is raised by the stream.
        """
        return Stream(self._core, self._pool, self._core.chat(messages, model, temperature, max_tokens, body), timeouts)

    def stream_completion(
        self,
        prompt: str | Sequence[int],
        *,
        model: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        timeouts: Timeouts | None = None,
        **body: Any,
    ) -> Stream:
        """Stream the continuation of a text (or of token ids), without a chat template. Raises as `stream_chat`."""
        return Stream(
            self._core, self._pool, self._core.completion(prompt, model, temperature, max_tokens, body), timeouts
        )

    def chat(
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
        return self.stream_chat(
            messages, model=model, temperature=temperature, max_tokens=max_tokens, timeouts=timeouts, **body
        ).result()

    def complete(
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
        return self.stream_completion(
            prompt, model=model, temperature=temperature, max_tokens=max_tokens, timeouts=timeouts, **body
        ).result()

    def prewarm(
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
        return (self.chat(messages, model=model, max_tokens=1, timeouts=timeouts, **body)).stats

    # -- endpoints that answer at once ------------------------------------------------------------------

    def health(self, *, timeout: float = UNARY_TIMEOUT) -> Health:
        """What `GET /health` says within `timeout` seconds.

        Raises:
            LlamaStreamError: there is no connection, or what answers is no llama-server.
        """
        return self._call(endpoints.health(), timeout)

    def check_server_health(self) -> bool:
        """Whether a server answers and is ready. Never raises for what the server does."""
        try:
            return self.health().ok
        except LlamaStreamError:
            return False

    def props(self) -> dict[str, Any]:
        """`GET /props`: slots, context, chat template, build. Raises as `health`, and ServerError."""
        return self._call(endpoints.props())

    def slots(self) -> list[dict[str, Any]]:
        """`GET /slots`: what each slot does. Raises as `props`."""
        return self._call(endpoints.slots())

    def models(self) -> list[str]:
        """`GET /v1/models`: the names that the server knows. Raises as `props`."""
        return self._call(endpoints.models())

    def metrics(self) -> dict[str, float]:
        """`GET /metrics`: values by name, as exposed for Prometheus. Raises as `props`."""
        return self._call(endpoints.metrics())

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The token ids of a text. Raises as `props`."""
        return self._call(endpoints.tokenize(text, add_special, parse_special))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids. Raises as `props`."""
        return self._call(endpoints.detokenize(tokens))

    def apply_template(self, messages: Sequence[Mapping[str, Any]], **body: Any) -> str:
        """The prompt that the model would see for a conversation. Raises as `props`."""
        return self._call(endpoints.apply_template(messages, body))

    def wait_until_ready(self, timeout: float | None = 60.0) -> None:
        """Wait until the server has loaded its model.

        Raises:
            LlamaStreamError: it is not ready within `timeout` seconds; the message says what it did instead.
        """
        end = monotonic() + checked_timeout(timeout, "timeout")
        while True:
            last: Health | LlamaStreamError
            try:
                last = self._call(endpoints.health(), timeout=max(0.1, min(UNARY_TIMEOUT, end - monotonic())))
                if last.ok:
                    return
            except (TransportError, StreamTimeoutError) as error:
                last = error
            if monotonic() + READY_POLL >= end:
                raise not_ready(self.base_url, last, timeout)
            sleep(READY_POLL)

    def _call(self, call: Call[T], timeout: float = UNARY_TIMEOUT) -> T:
        return call_pooled(self._core, self._pool, call, self._core.unary_timeout(timeout))

    # -- end --------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close idle connections. Streams that still run go on; close them by themselves."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base_url!r})"
