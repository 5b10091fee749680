"""Wires client and engine together: which server a command talks to, and one of our own where there is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec

from llamastream.client import StreamingClient
from llamastream.engine import EngineOptions, launch
from llamastream.errors import ProtocolError, StreamTimeoutError, TransportError
from llamastream.settings import ClientSettings

PROBE_TIMEOUT = 3.0
"""Seconds: a server of one's own machine says how it is at once or not at all."""


def server_answers(settings: ClientSettings, notify: Callable[[str], None]) -> bool:
    """Whether a llama-server is at the configured address; one that still loads its model is waited for.

    Raises:
        LlamaStreamError: the server is there but reports a failure.
    """
    client = StreamingClient(settings=settings)
    try:
        health = client.health(timeout=PROBE_TIMEOUT)
    except (TransportError, StreamTimeoutError):
        return False
    except ProtocolError as error:
        notify(f"{error.message}")
        return False
    if health.status == "loading":
        notify(f"the server at {client.base_url} is loading its model; waiting")
        client.wait_until_ready(None)
    return True


@contextmanager
def server_for(
    settings: ClientSettings, *, demo: bool, explicit_url: bool, notify: Callable[[str], None]
) -> Iterator[ClientSettings]:
    """Settings of a server that runs: the configured one, or the demo engine, started for the while and stopped after.

    Args:
        demo: start the demo engine in any case.
        explicit_url: the address was chosen by the user; then nothing is started in its place.
        notify: takes one line for the user.

    Raises:
        LlamaStreamError: no server can be had.
    """
    if not demo:
        if explicit_url or server_answers(settings, notify):
            yield settings
            return
        notify(
            f"no llama-server at {settings.base_url}: starting the demo engine "
            "(`llamastream serve` runs one that stays)"
        )
    with launch(EngineOptions()) as engine:
        slots = f"{engine.capabilities.slots} slots × {engine.capabilities.n_ctx:,} tokens"
        notify(f"demo model on {engine.url} ({engine.kind} engine, {slots})")
        # The demo model knows its answers by heart; sampling would only make it stumble.
        temperature = 0.0 if settings.temperature is None else settings.temperature
        yield msgspec.structs.replace(settings, base_url=engine.url, api_key=engine.api_key, temperature=temperature)
