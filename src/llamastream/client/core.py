"""What both clients have in common: settings, address, headers, and the requests they build."""

from __future__ import annotations

import random
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from time import time
from typing import Any

from llamastream.backends import Backend, BackendSource
from llamastream.client import tls
from llamastream.client.arguments import (
    check_retry,
    check_timeouts,
    checked_headers,
    checked_listeners,
    checked_settings,
    joined_urls,
    replaced,
)
from llamastream.client.attempt import Attempt
from llamastream.client.endpoints import Call
from llamastream.client.following import Following, common_key, is_source, source_backends
from llamastream.client.pool import PoolLimits
from llamastream.client.servers import Server, Servers
from llamastream.client.session import SessionOptions, StreamSession
from llamastream.client.state import ClientState
from llamastream.client.whole import WholeOnly
from llamastream.errors import (
    InvalidRequestError,
    LlamaStreamError,
    MalformedOutputError,
    SettingError,
    UnavailableError,
)
from llamastream.events import Listener
from llamastream.protocol.http1 import build_request
from llamastream.protocol.requests import GenerationRequest, chat_request, completion_request, in_slot
from llamastream.settings import ClientSettings, load, replaced_settings
from llamastream.types import Fallback, Health, RecoveryMode, RetryPolicy, Stats, Timeouts

UNARY_TIMEOUT = 10.0
"""Seconds that an endpoint which answers at once (health, slots, tokenize, ...) may take."""

READY_POLL = 0.05
"""Seconds between two looks at a server that is not ready yet."""


class ClientCore:
    """The part of a client that does no I/O."""

    def __init__(
        self,
        base_url: str | Sequence[str] | BackendSource | None,
        *,
        api_key: str | None,
        model: str | None,
        temperature: float | None,
        max_tokens: int | None,
        timeouts: Timeouts | None,
        headers: Mapping[str, str] | None,
        ca_file: str | None,
        cert_file: str | None,
        key_file: str | None,
        settings: ClientSettings | None,
        retry: RetryPolicy | None = None,
        fallback: Fallback | None = None,
        recovery: RecoveryMode | None = None,
        max_connections: int | None = None,
        listeners: Iterable[Listener] = (),
        random: Callable[[], float] = random.random,
    ) -> None:
        source: BackendSource | None = None
        backends: tuple[Backend, ...] = ()
        if is_source(base_url):
            source = base_url
            backends = source_backends(source, model)
            base_url = [backend.url for backend in backends]
            api_key = common_key(backends) if api_key is None else api_key
        given = {
            "base_url": joined_urls(base_url),
            "api_key": api_key,
            "model": model,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "ca_file": ca_file,
            "cert_file": cert_file,
            "key_file": key_file,
            "fallback": fallback,
            "recovery": recovery,
            "max_connections": max_connections,
        }
        base = checked_settings(settings)
        check_timeouts(timeouts, SettingError)
        check_retry(retry)
        if base is None:
            settings, _ = load(ClientSettings, given=given, given_source="the argument")
        else:
            settings = replaced_settings(base, given, "settings=", "the argument")
        self.settings = settings
        self.timeouts = timeouts or settings.timeouts
        self.limits = PoolLimits(connections=settings.max_connections)
        self._random = random
        self._whole_only = WholeOnly()
        self.reads_block = True
        addresses = settings.addresses
        context: ssl.SSLContext | None = None
        if any(address.scheme == "https" for address in addresses):
            context = tls.client_context(settings.ca_file, settings.cert_file, settings.key_file)
        self.servers = Servers(addresses, context)
        self.following = None if source is None else Following(source, self.servers, backends, model)
        self.state = ClientState(retry or settings.retry, checked_listeners(listeners), self.servers)
        ours = {"Accept": "text/event-stream, application/json"}
        if settings.api_key:
            ours["Authorization"] = f"Bearer {settings.api_key}"
        own = checked_headers(headers)
        self._headers = replaced({**ours, "Content-Type": "application/json"}, own)
        self._bare_headers = {name: value for name, value in self._headers.items() if name.lower() != "content-type"}

    @property
    def url(self) -> str:
        """The (first) server's canonical base URL, without `/v1`."""
        return self.servers.all[0].url

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        model: str | None,
        temperature: float | None,
        max_tokens: int | None,
        extra: Mapping[str, Any],
    ) -> GenerationRequest:
        defaults = self.settings
        return chat_request(
            messages,
            model=defaults.model if model is None else model,
            temperature=defaults.temperature if temperature is None else temperature,
            max_tokens=defaults.max_tokens if max_tokens is None else max_tokens,
            extra=extra,
        )

    def completion(
        self,
        prompt: str | Sequence[int],
        model: str | None,
        temperature: float | None,
        max_tokens: int | None,
        extra: Mapping[str, Any],
    ) -> GenerationRequest:
        defaults = self.settings
        return completion_request(
            prompt,
            model=defaults.model if model is None else model,
            temperature=defaults.temperature if temperature is None else temperature,
            max_tokens=defaults.max_tokens if max_tokens is None else max_tokens,
            extra=extra,
        )

    def session(
        self, request: GenerationRequest, timeouts: Timeouts | None, now: float, prefer: Server | None = None
    ) -> StreamSession:
        settings = self.settings
        options = SessionOptions(
            timeouts or self.timeouts,
            settings.max_event_bytes,
            settings.fallback,
            settings.recovery,
            time() - now,
            self._whole_only,
            self.reads_block,
            prefer,
        )
        return StreamSession(request, options, self.state, self._random, now)

    def unary_timeout(self, seconds: float) -> float:
        """How long an endpoint that answers at once may take: `seconds`, or less where the client's clocks say so."""
        return min(seconds, self.timeouts.first_byte or seconds, self.timeouts.total or seconds)

    def attempt_bytes(self, attempt: Attempt, slot: int | None = None) -> bytes:
        """What an attempt sends. `slot`: that the server is to put a generation into; None: the server chooses."""
        generation = attempt.generation
        if attempt.kind == "reattach":
            return self._bytes(generation.server, "GET", generation.reattach_path, None)
        request = generation.request
        more = request.headers()
        if generation.conversation_id is not None:
            more["X-Conversation-Id"] = generation.conversation_id
        if generation.unrepeatable:
            more["Cache-Control"] = "no-store"
        body = request.encoded() if slot is None else in_slot(request.encoded(), slot)
        return self._bytes(generation.server, "POST", request.path, body, more)

    def call_bytes(self, server: Server, call: Call[Any]) -> bytes:
        """A request with a whole answer, ready to send."""
        return self._bytes(server, call.method, call.path, call.body)

    def _bytes(
        self, server: Server, method: str, path: str, body: bytes | None, more: Mapping[str, str] | None = None
    ) -> bytes:
        headers = self._bare_headers if body is None else self._headers
        if more:
            headers = {**headers, **more}
        return build_request(method, server.address.target(path), server.address.host_header, headers, body)


def describe_stream(core: ClientCore, request: GenerationRequest, session: StreamSession | None) -> str:
    """A stream's endpoint and state in a few words."""
    state = "not sent yet" if session is None else session.finish_reason or "running"
    return f"{core.url if session is None else session.server.url}{request.path} {state}"


def not_ready(url: str, last: Health | LlamaStreamError, timeout: float | None) -> LlamaStreamError:
    """The error of `wait_until_ready`: what the server did instead of becoming ready."""
    if isinstance(last, LlamaStreamError):
        return type(last)(f"{last.message} (waited {timeout} s for the server to be ready)", status=last.status)
    return UnavailableError(f"{url} is not ready after {timeout} s: {last.detail or last.status}", status=503)


def checked_timeout(timeout: float | None, name: str) -> float:
    """A timeout argument in seconds, as a positive number (None: one year).

    Raises:
        InvalidRequestError: it is not a positive number.
    """
    longest = 365 * 86400.0
    if timeout is None:
        return longest
    if isinstance(timeout, bool) or not isinstance(timeout, int | float) or not timeout > 0:
        raise InvalidRequestError(f"{name} must be a number of seconds above 0, or None for no limit, not {timeout!r}")
    return float(min(timeout, longest))


def check_prewarm(body: Mapping[str, Any]) -> None:
    """Raises:
    InvalidRequestError: there is something in the body that `prewarm` decides itself.
    """
    if "max_tokens" in body:
        raise InvalidRequestError(
            "prewarm has no max_tokens: it generates one token and throws it away; leave it out, or call chat()"
        )


def prewarmed(error: MalformedOutputError) -> Stats:
    """The figures of a prewarming whose one token was the beginning of a tool call, of which nothing shows.

    Raises:
        MalformedOutputError: the token could not be read.
    """
    if error.partial is None or error.partial.finish_reason != "length":
        raise error
    return error.partial.stats
