"""Endpoints for those who run the gateway: metrics, the state of the servers, and single servers for administrators."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Struct, structs

from llamastream._version import __version__
from llamastream.address import parse_address
from llamastream.backends import Backend
from llamastream.client.servers import Server
from llamastream.gateway.lanes import Lane
from llamastream.gateway.passage import Passage
from llamastream.gateway.refusals import refusal, respond
from llamastream.observe.metrics import STATES, Metrics
from llamastream.observe.series import Sample

if TYPE_CHECKING:
    from llamastream.gateway.app import Gateway

INSTANCE_HEADER = b"x-llamastream-instance"

Status = Callable[[], Any]
"""How the servers are, as anything that can be written as JSON; may block for moments, so it runs in a thread."""


Counted = TypeVar("Counted", bound=Any)
"""What has an `id`, and requests `in_flight`: a `Backend`, or a fleet's report."""


class GatewayStatus(Struct, frozen=True, kw_only=True):
    """What `/fleet` says where nobody gave the gateway anything better. `instances`: what the source reports of each,
    else its backends without their keys."""

    pid: int
    version: str
    instances: tuple[Any, ...]


def new_metrics() -> Metrics:
    """Metrics with what this build is."""
    return Metrics({"version": __version__, "python": platform.python_version()})


def samples(gateway: Gateway, connections: Callable[[], int] | None = None) -> Iterator[Sample]:
    """What the gateway and its servers are like now."""
    lanes = gateway.lanes
    backends = gateway.source.snapshot()
    ready = [backend for backend in backends if backend.routable]
    values: dict[str, float] = {
        "queue_length": lanes.waiting,
        "requests_active": lanes.active,
        "slots": sum(max(1, backend.slots) for backend in ready),
        "admitted_requests": lanes.admitted,
        "refused_requests": lanes.refused,
        "instances_ready": len(ready),
    }
    if connections is not None:
        values["connections"] = connections()
    for name, value in values.items():
        yield Sample(name, (), value)
    yield from gateway.sharing.samples()
    for limit, count in gateway.limits.refused.items():
        yield Sample("rate_limited_requests", (limit,), count)
    own = lanes.at_work()
    for backend in backends:
        for state in STATES:
            yield Sample("instance_state", (backend.id, state), backend.state == state)
        yield Sample("instance_requests_active", (backend.id,), max(backend.in_flight, own.get(backend.id, 0)))
    for report in reports_of(gateway.source) or ():
        label = (report.id,)
        yield Sample("instance_memory_bytes", label, report.rss_bytes)
        yield Sample("instance_tokens_per_second", label, report.tokens_per_second)
        yield Sample("instance_restarts", label, report.restarts)


def reports_of(source: Any) -> Sequence[Any] | None:
    """What a fleet says of its instances; None for sources that say nothing."""
    status = getattr(source, "status", None)
    return status() if callable(status) else None


def status_of(source: Any, own: Mapping[str, int] | None = None) -> GatewayStatus:
    """What `/fleet` says of a source. `own`: requests that the gateway has at work on each instance."""
    reports = reports_of(source)
    found: Iterable[Any] = counted(source.snapshot() if reports is None else reports, own or {})
    if reports is None:
        found = map(_described, found)
    return GatewayStatus(pid=os.getpid(), version=__version__, instances=tuple(found))


def counted(instances: Iterable[Counted], own: Mapping[str, int]) -> tuple[Counted, ...]:
    """The instances, each with the gateway's own count of its requests where that is larger: what servers say of
    themselves is some seconds old."""
    return tuple(
        structs.replace(each, in_flight=own[each.id]) if own.get(each.id, 0) > each.in_flight else each
        for each in instances
    )


def _described(backend: Backend) -> dict[str, Any]:
    return {name: value for name, value in msgspec.structs.asdict(backend).items() if name != "api_key"}


class Operations:
    """The endpoints, as ASGI handlers."""

    def __init__(self, gateway: Gateway, metrics: Metrics, status: Status | None = None) -> None:
        self._gateway = gateway
        self._metrics = metrics
        self._status = status or (lambda: status_of(gateway.source, gateway.lanes.at_work()))

    async def metrics(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /metrics`."""
        # at the first scrape, and not with the application: who needs no metrics needs no library for them
        from llamastream.observe.exposition import exposition

        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        body, content_type = exposition(self._metrics, accept.decode("latin-1"))
        await respond(send, 200, body, content_type=content_type.encode())

    async def fleet(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /fleet`."""
        found = await asyncio.to_thread(self._status)
        await respond(send, 200, msgspec.json.encode(found))

    async def one_server(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """An endpoint of one server, which the header `x-llamastream-instance` names; where there is but one, it need
        not."""
        gateway = self._gateway
        wanted = next((value.decode("latin-1") for name, value in scope["headers"] if name == INSTANCE_HEADER), "")
        backends = [backend for backend in gateway.source.snapshot() if backend.url]
        found = [backend for backend in backends if not wanted or backend.id == wanted]
        if len(found) != 1:
            names = ", ".join(backend.id for backend in backends) or "none"
            status, what = (
                (404, f"there is no instance {wanted!r}") if wanted else (400, "this is asked of one instance")
            )
            message = f"{what}: name one in the header {INSTANCE_HEADER.decode()}; there are: {names}"
            await respond(send, status, refusal(scope["path"], status, message), [(b"connection", b"close")])
            return
        lane = gateway.lanes.of(found[0])
        server = server_of(lane, found[0])
        if server is None:
            message = f"instance {found[0].id} is not reachable now"
            await respond(send, 503, refusal(scope["path"], 503, message), [(b"connection", b"close")])
            return
        raw = await gateway.bodies.read(scope, receive) if scope["method"] == "POST" else None
        passage = Passage(lane.core, lane.pools, send)
        try:
            await gateway.hand_on(scope, raw, send, passage, lambda *asked: passage.run_at(server, *asked))
        finally:
            if raw is not None:
                gateway.sharing.identities.forget()  # it may have changed what the server is


def server_of(lane: Lane, backend: Backend) -> Server | None:
    """The one of a lane's servers that a backend is, None if it is not among them now."""
    servers = lane.core.servers
    servers.elsewhere(0.0, ())  # takes over what is new in the source
    url = parse_address(backend.url).url
    return next((server for server in reversed(servers.all) if server.url == url), None)
