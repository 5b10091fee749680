"""Which servers said that they cannot stream: asking for a stream first, each time, would be a request for nothing."""

from __future__ import annotations

import threading
from typing import TypeAlias

from llamastream.client.servers import Server
from llamastream.protocol.requests import GenerationRequest

REMEMBERED = 600.0
"""Seconds until a server is asked for a stream again: it may have been started anew, with another template."""

_MOST = 256
"""Kinds of requests that are remembered; callers may name any number of models."""

_Kind: TypeAlias = tuple[int, str, object, bool, bool]


class WholeOnly:
    """Remembers, for each server and kind of request, that streaming was refused. Thread-safe.

    A kind is the endpoint, the model, and whether there are tools and log probabilities: older servers cannot stream
    with tools, newer ones not with both, or not with the template of one model; and all can with all else.
    """

    def __init__(self) -> None:
        self._until: dict[_Kind, float] = {}
        self._lock = threading.Lock()

    def refused(self, server: Server, request: GenerationRequest, now: float) -> None:
        """The server said that it cannot stream the answer to this request."""
        with self._lock:
            if len(self._until) >= _MOST:
                self._until.clear()
            self._until[_kind(server, request)] = now + REMEMBERED

    def applies(self, server: Server, request: GenerationRequest, now: float) -> bool:
        """Whether it would say so again."""
        if not self._until:
            return False
        with self._lock:
            return self._until.get(_kind(server, request), now) > now


def _kind(server: Server, request: GenerationRequest) -> _Kind:
    body = request.body
    return server.index, request.path, body.get("model"), bool(body.get("tools")), bool(body.get("logprobs"))
