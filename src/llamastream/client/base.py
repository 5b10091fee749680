"""What the sync and the async client have in common: how they are made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

from llamastream.backends import BackendSource
from llamastream.client.arguments import unknown_argument
from llamastream.client.core import ClientCore
from llamastream.client.holdings import Holdings
from llamastream.events import Listener
from llamastream.settings import ClientSettings, from_object
from llamastream.types import Fallback, RecoveryMode, RetryPolicy, Timeouts


class ClientBase:
    """A client of one llama-server, or of several that serve the same model.

    What is not given comes from the environment (`LLAMASTREAM_BASE_URL`, `LLAMASTREAM_API_KEY`, ...), else from the
    defaults. Base URLs work with and without `/v1`; `unix:///path` and `https://` work too.

    Args:
        base_url: where the server is, or a list: then each request goes to one that is well, and moves to another if
            that fails, also in the middle of an answer; or a source of servers, such as a `Fleet`, which is then
            followed: servers that drain, restart or come new are known at once. api_key: the key that they ask for.
        model, temperature, max_tokens: defaults of the requests.
        timeouts: the five clocks, in seconds.
        headers: sent with every request; they win over our own Accept, Authorization, Content-Type and User-Agent.
        ca_file, cert_file, key_file: PEM files for https (own authority, client certificate).
        settings: all of it at once; the other arguments win.
        retry: when a request that failed before its first content is sent again.
        fallback: whether an answer may come as one piece: `auto` (where streaming fails), `always`, `never`.
        recovery: how a stream that breaks in the middle may go on: `full`, `reattach` (only where the server still
            holds the generation), or `off` (it ends with the error).
        max_connections: in use to a server at the same time; further streams wait in line, as long as `first_byte`.
        listeners: called with the events of `llamastream.events` (requests, attempts, first tokens, retries, ends).

    Raises:
        SettingError: an argument, a setting or an environment variable has a value that is not allowed, or an argument
            goes by another name here than in other clients.
        TypeError: there is no argument of that name.
    """

    def __init__(
        self,
        base_url: str | Sequence[str] | BackendSource | None = None,
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
        recovery: RecoveryMode | None = None,
        max_connections: int | None = None,
        listeners: Iterable[Listener] = (),
        **unknown: Any,
    ) -> None:
        if unknown:
            raise unknown_argument(type(self).__name__, *next(iter(unknown.items())))
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
            recovery=recovery,
            max_connections=max_connections,
            listeners=listeners,
        )
        self._core.state.holdings = Holdings(self._core)

    @classmethod
    def from_settings(cls, source: Any, **arguments: Any) -> Self:
        """A client from a project's settings: any object (or mapping) with `llm_base_url`, `llm_model`,
        `llm_temperature`, `llm_max_tokens`, `llm_api_key`; `arguments` are the constructor's and win.

        Raises:
            SettingError: the object has none of these, or one has a value that is not allowed.
        """
        given = [name for name, value in arguments.items() if value is not None]
        arguments = {name: arguments[name] for name in given}
        return cls(**from_object(source, without=given), **arguments)

    @property
    def base_url(self) -> str:
        """The address of the (first) server, without `/v1`."""
        return self._core.url

    @property
    def base_urls(self) -> tuple[str, ...]:
        """The addresses of all servers, without `/v1`."""
        return tuple(server.url for server in self._core.servers.all)

    @property
    def settings(self) -> ClientSettings:
        """The settings in force: arguments, environment, settings file and defaults together."""
        return self._core.settings

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self.base_urls))})"
