"""Around every request: an id, who asks, what became of it. Plain ASGI; nothing is done for single chunks of a stream
that takes the way past ASGI."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Protocol

from llamastream.backends import BackendSource
from llamastream.errors import LlamaStreamError, UnavailableError
from llamastream.events import GatewayListener
from llamastream.gateway.asgi import Receive, Send
from llamastream.gateway.keys import KeyRing, presented_key
from llamastream.gateway.passage import broken_stream
from llamastream.gateway.refusals import refusal, respond
from llamastream.gateway.routes import DASHBOARD_DATA, needed, route_of
from llamastream.gateway.served import SCOPE_KEY, Served, of_events

App = Callable[[Any, Any, Any], Awaitable[None]]

logger = logging.getLogger("llamastream.gateway")

_REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:-]{1,128}")
_IDS = random.Random(random.SystemRandom().getrandbits(256))  # noqa: S311  # ids of requests are no secrets


class Guard(Protocol):
    """What may change while the gateway runs (see `gateway.guarded.Guard`)."""

    keys: KeyRing
    closing: bool


class Access:
    """Middleware that keeps a record of each request, names it, and answers for what the application fails to."""

    def __init__(
        self, app: App, *, source: BackendSource, guard: Guard, listeners: Iterable[GatewayListener] = ()
    ) -> None:
        self._app = app
        self._source = source
        self._guard = guard
        self._listeners = tuple(listeners)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        served = Served(_request_id(scope), scope["method"], route_of(scope["path"]), _client(scope))
        scope[SCOPE_KEY] = served
        outgoing = _Outgoing(served, self._source, send)
        try:
            await self._app(scope, receive, outgoing)
        except asyncio.CancelledError:
            served.error = "CancelledError"
            if not self._guard.closing:
                raise
            await self._give_up(scope["path"], outgoing)
        except Exception as error:
            served.failed(error)
            logger.exception("request %s to %s failed", served.request_id, served.route)
            message = "the gateway failed at this request; its log says why"
            if not outgoing.began:
                await respond(outgoing, 500, refusal(scope["path"], 500, message), [(b"connection", b"close")])
            elif outgoing.stream and not outgoing.ended:
                await self._break_off(scope["path"], outgoing, LlamaStreamError(message, status=500))
            else:
                raise  # the server closes the connection, which is all that can still be said
        finally:
            if served.work is None or served.work.done():
                self._tell(served)
            else:  # it goes on for others, or for this client's return, and for this request's account
                served.work.add_done_callback(lambda _: self._tell(served))

    async def _give_up(self, path: str, outgoing: _Outgoing) -> None:
        """The time for running streams is over: say so, rather than break off."""
        error = UnavailableError("the gateway is shutting down, and the time for running requests is over", status=503)
        served = outgoing.served
        served.failed(error)
        with contextlib.suppress(OSError, RuntimeError):
            if not outgoing.began:
                await respond(outgoing, 503, refusal(path, 503, error.message), [(b"retry-after", b"1")])
            elif not outgoing.ended:
                await self._break_off(path, outgoing, error)

    @staticmethod
    async def _break_off(path: str, outgoing: _Outgoing, error: LlamaStreamError) -> None:
        """End a response that has begun; a stream with an error as its last event."""
        runner = outgoing.served.runner
        if outgoing.stream:
            last = broken_stream(path, error, runner.events if runner is not None else 0)
            await outgoing({"type": "http.response.body", "body": last, "more_body": True})
        await outgoing({"type": "http.response.body", "body": b"", "more_body": False})

    def _tell(self, served: Served) -> None:
        event = served.finish(self._source)
        served.runner = served.work = None  # which refer to what sends, and by that to this
        for listener in self._listeners:
            try:
                listener(event)
            except Exception:
                logger.exception("a listener failed on %s", type(event).__name__)


class _Outgoing:
    """What is sent to the client, with the headers that every response has.

    Attributes:
        began: the response's head was sent. stream: events follow it. ended: the response is complete.
    """

    def __init__(self, served: Served, source: BackendSource, send: Send) -> None:
        self.served = served
        self.began = False
        self.stream = False
        self.ended = False
        self._source = source
        self._send = send

    async def __call__(self, message: dict[str, Any]) -> None:
        served = self.served
        if served.work is None:
            served.saw(message)
        if message["type"] == "http.response.start":
            self.began, self.stream = True, of_events(message)
            served.status = served.status or message["status"]
            message = {**message, "headers": [*message.get("headers", ()), *served.own_headers(self._source)]}
        elif message["type"] == "http.response.body":
            self.ended = not message.get("more_body", False)
        await self._send(message)


class KeyCheck:
    """Middleware that lets those through who may pass."""

    def __init__(self, app: App, *, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        refused = self._refused(scope) if scope["type"] == "http" else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, message = refused
        headers = [(b"connection", b"close")]  # its body is not read
        if status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await respond(send, status, refusal(scope["path"], status, message), headers)

    def _refused(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        route = route_of(scope["path"])
        scope_needed = needed(route)
        if scope_needed is None:
            return None
        keys = self._guard.keys
        if not keys:
            if scope_needed != "admin" or route in DASHBOARD_DATA:
                return None
            return 403, "this needs an API key with the scope admin, and the gateway has no keys"
        presented = presented_key(scope["headers"])
        if presented is None:
            return 401, "an API key is needed: send it as `Authorization: Bearer KEY` or `x-api-key: KEY`"
        key = keys.find(presented)
        if key is None:
            return 401, "the API key is unknown"
        scope[SCOPE_KEY].key, scope[SCOPE_KEY].own = key.name, key.own
        scope[SCOPE_KEY].owner = key.digest.hex()
        if not key.may(scope_needed):
            return 403, f"the API key {key.name!r} lacks the scope {scope_needed}"
        return None


class Straight:
    """Middleware that takes requests to some paths to their endpoints, past the router and what is around it. Other
    methods go the usual way, and are refused there."""

    def __init__(self, app: App, *, endpoints: Mapping[str, App]) -> None:
        """`endpoints`: for POST, by path."""
        self._app = app
        self._endpoints = endpoints

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        straight = scope["type"] == "http" and scope["method"] == "POST"
        endpoint = self._endpoints.get(scope["path"]) if straight else None
        await (endpoint or self._app)(scope, receive, send)


def _request_id(scope: MutableMapping[str, Any]) -> str:
    """The client's own id for its request, if it is a harmless one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return str(value, "ascii")
    return f"{_IDS.getrandbits(96):024x}"


def _client(scope: MutableMapping[str, Any]) -> str:
    client = scope.get("client")
    return client[0] if client else "unix"
