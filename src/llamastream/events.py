"""Frozen events of a client's requests, for listeners: logging, metrics and tracing hear of everything here.

A listener is any callable that takes one event. It is called in the thread (or the event loop) of the stream, never for
single chunks, and must be quick; an exception in it is logged and goes no further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from msgspec import Struct

from llamastream.backends import InstanceState
from llamastream.types import Recovery, Stats


class RequestStarted(Struct, frozen=True):
    """A request begins. `request_id` is the same in all events of one request, and of no other request of this process;
    `url` is the endpoint's. `model`: that is asked for, "" if none is.
    """

    request_id: int
    url: str
    model: str = ""


class AttemptStarted(Struct, frozen=True):
    """An attempt begins: the first is number 1.

    `reused_connection`: over a connection that was idle in the pool. `server`: its base URL. `kind`: `first`,
    `restart`, or how a broken stream is to go on (see `Recovery`).

    Two in a row, the first with `reused_connection` and the second a `restart`: the server had closed the idle
    connection, and never saw the request. There is no `RetryScheduled` in between, and nothing in
    `Stats.failed_attempts`, since nothing failed.
    """

    request_id: int
    number: int
    reused_connection: bool
    server: str = ""
    kind: str = "first"


class FirstToken(Struct, frozen=True):
    """The first content came, `time_to_first_token` seconds after the request began."""

    request_id: int
    time_to_first_token: float


class RetryScheduled(Struct, frozen=True):
    """An attempt failed with `error`; the next begins in `delay` seconds."""

    request_id: int
    number: int
    error: Exception
    delay: float


class StreamBroke(Struct, frozen=True):
    """A stream broke in the middle with `error`; it is to go on by `kind` (see `Recovery`) in `delay` seconds."""

    request_id: int
    error: Exception
    kind: str
    delay: float


class StreamRecovered(Struct, frozen=True):
    """A stream that broke in the middle goes on, or has ended well: how, and after how long."""

    request_id: int
    recovery: Recovery


class Hint(Struct, frozen=True):
    """Something works, but not as well as it could; said once for each client. `topic` names it for programs."""

    request_id: int
    topic: str
    message: str


class RequestEnded(Struct, frozen=True):
    """The request is over: `finish_reason` is stop, length, tool_calls, cancelled, or error with `error` set."""

    request_id: int
    finish_reason: str
    stats: Stats
    error: Exception | None = None


ClientEvent: TypeAlias = (
    RequestStarted | AttemptStarted | FirstToken | RetryScheduled | StreamBroke | StreamRecovered | Hint | RequestEnded
)
Listener: TypeAlias = Callable[[ClientEvent], None]


# -- of a fleet -----------------------------------------------------------------------------------------------


class InstanceChanged(Struct, frozen=True):
    """An instance of a fleet came from one state to another; `time` is in seconds since the epoch."""

    id: str
    before: InstanceState
    after: InstanceState
    reason: str
    time: float
    generation: int
    last_exit: int | None = None


class InstanceWarning(Struct, frozen=True):
    """Something about an instance that a person should know. `topic` names it for programs: `memory`, `warm`, `start`,
    `drain`, `rolling`."""

    id: str
    topic: str
    message: str
    time: float


class SlotsRestored(Struct, frozen=True):
    """A planned restart brought prompt caches back: so many tokens of so many slots, from so many bytes on disk."""

    id: str
    tokens: int
    slots: int
    size: int
    seconds: float


FleetEvent: TypeAlias = InstanceChanged | InstanceWarning | SlotsRestored
FleetListener: TypeAlias = Callable[[FleetEvent], None]


# -- of a gateway ---------------------------------------------------------------------------------------------


class RequestServed(Struct, frozen=True, kw_only=True):
    """A request that came to a gateway is over; where its answer goes on without its client, that is, too. Times are in
    seconds; None: not known, or there was none.

    Attributes:
        time: when it began, since the epoch. request_id: also the response's `x-request-id`. method, route: what was
            asked, the route as it is declared, or `other`. status: of the response; 499 if the client left before it
            began.
        model: that was asked for, as far as it exists, else `other`; "" where none is needed.
        finish_reason: how the answer ended: stop, length, tool_calls, cancelled; refused, if the fault was the
            request's (see `is_refusal`); error, if it was ours; other, if the answer does not say, as an embedding; ""
            where no answer was asked for.
        error: the name of the error that ended it, or "".
        streamed: the answer was a stream. queue_wait: in line for a slot. time_to_first_token: from the request's
            beginning, its wait included. prompt_tokens, cached_tokens, completion_tokens: as the server counted.
        gaps: between chunks of content, as pairs of seconds (within 3 %) and how often. recoveries: kinds of the breaks
            that were mended.
        route_reason: why routing chose the instance that it chose first (see `policy.routing.Decision`).
        expected_first_token, first_token: from its slot to its first token, as routing expected it and as it was.
            expected_cached_tokens: that routing took to be in the prompt cache.
        instance: id of the server that answered last. key: the name of the client's key. client: its address.
        cache: what the response cache did: hit, miss, shared (with a request in flight), or "".
    """

    time: float
    request_id: str
    method: str
    route: str
    status: int
    duration: float
    model: str = ""
    finish_reason: str = ""
    error: str = ""
    streamed: bool = False
    queue_wait: float | None = None
    time_to_first_token: float | None = None
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    completion_tokens: int | None = None
    gaps: tuple[tuple[float, int], ...] = ()
    recoveries: tuple[str, ...] = ()
    route_reason: str = ""
    expected_first_token: float | None = None
    first_token: float | None = None
    expected_cached_tokens: int | None = None
    instance: str = ""
    key: str = ""
    client: str = ""
    cache: str = ""

    @property
    def failed(self) -> bool:
        """Whether the service failed at it. What was refused, or left by its client, is no failure; nor is it one to
        say that no server is ready, or that the cache has no such answer, to who asked just that."""
        if self.finish_reason:
            return self.finish_reason == "error"
        return self.status >= 500 and bool(self.error)


def is_refusal(status: int) -> bool:
    """Whether a status says that the fault is the request's: 4xx (a limit of its key among them), or 501, for what is
    not served here."""
    return 400 <= status < 500 or status == 501


GatewayEvent: TypeAlias = RequestServed
GatewayListener: TypeAlias = Callable[[GatewayEvent], None]
