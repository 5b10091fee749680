"""The pair of clients behind a model of another library, which is asked both from blocking and from asyncio code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llamastream import AsyncStreamingClient, RetryPolicy, StreamingClient, Timeouts
from llamastream.events import Listener


class ClientPair:
    """A client of each kind with the same arguments; what is not given comes from environment and settings.

    It never changes: copies of a model may share it, until one of them differs and takes another. Copied deeply, or
    pickled, it becomes None: connections stay where they are, and the model makes a pair of its own when it needs one.

    Args:
        arguments: those of `client_arguments`.

    Raises:
        SettingError: an argument or a setting has a value that is not allowed.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self._made_of = arguments
        base_url, both = arguments["base_url"], _of_clients(arguments)
        if arguments["retry"] is None and arguments["max_retries"] is not None:
            # the rest of the policy as environment and settings have it
            policy = StreamingClient(base_url, **both).settings.retry
            both["retry"] = msgspec.structs.replace(policy, max_retries=arguments["max_retries"])
        self.blocking = StreamingClient(base_url, **both)
        self.asynchronous = AsyncStreamingClient(base_url, **both)

    def known_as(self, arguments: Mapping[str, Any]) -> None:
        """Arguments that make the same pair, once what was not given has been found."""
        self._made_of = arguments

    def serves(self, arguments: Mapping[str, Any]) -> bool:
        """Whether the pair is the one that these arguments make."""
        return self._made_of == arguments

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


class HasClients:
    """A model whose clients fit its attributes as they are at the time of a call, also where they were changed."""

    _pair: ClientPair | None

    def _client_arguments(self) -> dict[str, Any]:
        raise NotImplementedError

    def _clients(self) -> ClientPair:
        arguments = self._client_arguments()
        pair = self._pair
        if pair is None or not pair.serves(arguments):
            pair = self._pair = ClientPair(arguments)
        return pair

    @property
    def _client(self) -> StreamingClient:
        return self._clients().blocking

    @property
    def _async_client(self) -> AsyncStreamingClient:
        return self._clients().asynchronous


def client_arguments(
    base_url: str | Sequence[str] | None,
    *,
    timeout: float | Timeouts | None,
    max_retries: int | None,
    retry: RetryPolicy | None,
    headers: Mapping[str, str] | None,
    listeners: Sequence[Listener],
    **arguments: Any,
) -> dict[str, Any]:
    """What a pair is made of, as it is now: lists that change later do not change it.

    Args:
        base_url: one server or several. timeout: seconds for each step of a request, or all clocks.
        max_retries: repetitions before the first content. retry: the whole policy instead.
        arguments: what else the clients take.
    """
    return {
        **arguments,
        "base_url": base_url if base_url is None or isinstance(base_url, str) else list(base_url),
        "timeout": timeout,
        "max_retries": max_retries,
        "retry": retry,
        "headers": None if headers is None else dict(headers),
        "listeners": list(listeners),
    }


def _of_clients(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The same in the clients' names."""
    ours = ("base_url", "timeout", "max_retries")
    timeout = arguments["timeout"]
    timeouts = Timeouts.all(timeout) if isinstance(timeout, int | float) else timeout
    return {**{name: value for name, value in arguments.items() if name not in ours}, "timeouts": timeouts}


def addresses(client: StreamingClient) -> str | list[str]:
    """The address that a client has found: one, or a list of several."""
    urls = client.base_urls
    return urls[0] if len(urls) == 1 else list(urls)


def project_arguments(source: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """A model's arguments from a project's settings: any object (or mapping) with `llm_base_url`, `llm_model`,
    `llm_temperature`, `llm_max_tokens`, `llm_api_key`; None stands for environment and settings file. Those that are
    `given` win.

    Raises:
        SettingError: the object has none of these, or one has a value that is not allowed.
    """
    client = StreamingClient() if source is None else StreamingClient.from_settings(source)
    names = ("api_key", "model", "temperature", "max_tokens")
    found: dict[str, Any] = {name: getattr(client.settings, name) for name in names}
    return {"base_url": addresses(client), **found, **given}
