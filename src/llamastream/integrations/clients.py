"""The pair of clients behind a model of another library, which is asked both from blocking and from asyncio code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from llamastream import AsyncStreamingClient, RetryPolicy, StreamingClient, Timeouts


def client_pair(
    base_url: str | Sequence[str] | None,
    *,
    timeout: float | Timeouts | None,
    max_retries: int | None,
    retry: RetryPolicy | None,
    **arguments: Any,
) -> tuple[StreamingClient, AsyncStreamingClient]:
    """A client of each kind with the same arguments; what is not given comes from environment and settings.

    Args:
        base_url: one server or several. timeout: seconds for each step of a request, or all clocks.
        max_retries: repetitions before the first content. retry: the whole policy instead.
        arguments: what else the clients take.

    Raises:
        SettingError: an argument or a setting has a value that is not allowed.
    """
    both: dict[str, Any] = {
        **arguments,
        "timeouts": Timeouts.all(timeout) if isinstance(timeout, int | float) else timeout,
        "retry": retry,
    }
    if retry is None and max_retries is not None:  # the rest of the policy as environment and settings have it
        policy = StreamingClient(base_url, **both).settings.retry
        both["retry"] = msgspec.structs.replace(policy, max_retries=max_retries)
    return StreamingClient(base_url, **both), AsyncStreamingClient(base_url, **both)


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
