"""The gateway's application: routes, admission, and what becomes of errors. Plain ASGI on the way of a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qs

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route

from llamastream.backends import BackendSource
from llamastream.errors import LlamaStreamError, UnavailableError
from llamastream.events import GatewayListener, Listener
from llamastream.gateway.asgi import Receive, Send
from llamastream.gateway.attendance import attended
from llamastream.gateway.bodies import Bodies, RequestError
from llamastream.gateway.dashboard import Dashboard, Operate
from llamastream.gateway.dashboard.facts import Alerts
from llamastream.gateway.demand import Demand, admitted, demand_of
from llamastream.gateway.guarded import guarded
from llamastream.gateway.hops import LoopError, new_mark, onward
from llamastream.gateway.lanes import Lane, Lanes, UnknownModelError, UnservedTaskError
from llamastream.gateway.limits import Limiter
from llamastream.gateway.listing import listing
from llamastream.gateway.operations import Operations, Status, new_metrics
from llamastream.gateway.passage import Passage, broken_stream
from llamastream.gateway.reattach import Reattach
from llamastream.gateway.refusals import error_response, refusal, respond
from llamastream.gateway.relay import RawRequest, Relay
from llamastream.gateway.routes import (
    ADMIN,
    ALIASES,
    AT_ONCE,
    DASHBOARD,
    DASHBOARD_DATA,
    DASHBOARD_FILE,
    FLEET,
    GENERATION,
    HEALTH,
    LOOKUP,
    METRICS,
    STREAM,
)
from llamastream.gateway.routes import named as all_names
from llamastream.gateway.served import Served, served_of
from llamastream.gateway.settings import GatewaySettings
from llamastream.gateway.sharing import Sharing
from llamastream.gateway.tasks import task_of
from llamastream.gateway.upstreams import Upstreams, out_of_service
from llamastream.gateway.wire import EXTENSION
from llamastream.observe.metrics import Metrics
from llamastream.protocol.requests import CHAT_PATH, COMPLETION_PATH

Handler = Callable[[dict[str, Any], Receive, Send], Awaitable[None]]

FIRST_LOOK = 0.5
"""Seconds that the first look at servers of somebody else may take before requests are answered."""


class Gateway:
    """Everything that one gateway shares between its requests. Belongs to one event loop."""

    def __init__(
        self, source: BackendSource, settings: GatewaySettings | None = None, listeners: Iterable[Listener] = ()
    ) -> None:
        self.settings = settings or GatewaySettings()
        self.source = source
        self.lanes = Lanes(source, self.settings, listeners)
        self.limits = Limiter(self.settings)
        self.bodies = Bodies(self.settings)
        self.mark = new_mark()
        self.sharing = Sharing(self.settings)
        self._leave: Callable[[], None] = lambda: None
        self._watch: asyncio.Task[None] | None = None

    def reload(self, settings: GatewaySettings) -> None:
        """Take over other settings, for requests that come from now on (see `GatewayServer.reload`)."""
        self.settings = settings
        self.lanes.reload(settings)
        self.limits.reload(settings)
        self.bodies.settings = settings

    async def start(self) -> None:
        """Follow the servers."""
        loop = asyncio.get_running_loop()

        def changed() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.lanes.look)

        self._leave = self.source.subscribe(changed)
        if isinstance(self.source, Upstreams):
            looked = asyncio.Event()
            self._watch = loop.create_task(self.source.watch(looked.set))
            with contextlib.suppress(TimeoutError):  # who asks at once, is not refused since nobody has looked yet
                await asyncio.wait_for(looked.wait(), FIRST_LOOK)
        await self.sharing.start()

    async def close(self) -> None:
        self._leave()
        if self._watch is not None:
            self._watch.cancel()
        self.bodies.close()
        await self.sharing.close()
        await self.lanes.close()

    # -- generation ---------------------------------------------------------------------------------------------

    async def generate(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """A generation endpoint."""
        path: str = ALIASES.get(scope["path"], scope["path"])
        served_of(scope).wanted = True
        raw = await self.bodies.read(scope, receive)
        body = _json(raw)
        lane = self._lane(lambda model: self.lanes.find(model, task_of(path)), body)
        plan = self.sharing.plan(scope, path, body, lane)
        if plan is None:
            await attended(self._answer(scope, send, path, raw, body, lane), receive)
            return
        served = served_of(scope)
        served.headers = self.limits.left(served.key, self.limits.allowance(served.own))
        work = _endpoint(lambda scope, _, send: self._answer(scope, send, path, raw, body, lane))
        await self.sharing.serve(plan, lambda scope, send: work(scope, receive, send), scope, receive, send)

    async def _answer(
        self, scope: dict[str, Any], send: Send, path: str, raw: bytes, body: dict[str, Any], lane: Lane
    ) -> None:
        """Wait for a slot, hand on the answer, mend it where that is possible."""
        runner: Relay | Passage
        via = self._via(scope)
        if mendable(path, body):
            request = RawRequest(path, body, _choices(body), raw, via)
            runner = Relay(lane.core, lane.pools, request, None, send, scope.get("extensions", {}).get(EXTENSION))
            work: Coroutine[Any, Any, object] = runner.run()
        else:
            runner = Passage(lane.core, lane.pools, send, stream=body.get("stream") is True)
            runner.via = via
            work = runner.run("POST", path, raw)
        served = served_of(scope)
        served.generation(body, runner)
        try:
            demand = demand_of(scope["headers"], path, body, self.limits.allowance(served.own))
        except ValueError as wrong:
            work.close()
            raise RequestError(400, str(wrong)) from None
        served.explain = demand.explain
        try:
            await self._charged(lane, demand, runner, work, served)
        except LlamaStreamError as error:
            served.failed(error)
            await self._failed(path, error, runner, send)
            error.__traceback__ = None  # refers to all that was at work, which may keep the error

    async def _charged(
        self, lane: Lane, demand: Demand, runner: Relay | Passage, work: Coroutine[Any, Any, object], served: Served
    ) -> None:
        """As far as the key may, wait for a slot, and do the work."""
        try:
            tokens = lane.admission.scheduler.router.tokens(demand.prompt)
            charge = self.limits.begin(served.key, demand.allowance, tokens)
        except BaseException:
            work.close()
            raise
        finally:
            served.headers = self.limits.headers(served.key)
        try:
            await admitted(lane.admission, demand, runner, work, served)
        finally:
            self.limits.end(charge, served.used_tokens())

    async def _failed(self, path: str, error: LlamaStreamError, runner: Relay | Passage, send: Send) -> None:
        if runner.began:
            last = broken_stream(path, error, runner.events)
            await send({"type": "http.response.body", "body": last, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await respond(send, *error_response(path, error))

    # -- the rest -----------------------------------------------------------------------------------------------

    async def pass_on(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """An endpoint that answers at once."""
        if scope["method"] == "POST":
            raw: bytes | None = await self.bodies.read(scope, receive)
            lane = self._lane(self.lanes.about, _json(raw or b""))
        else:
            raw = None
            asked = parse_qs(scope["query_string"].decode("latin-1")).get("model")
            lane = self._lane(self.lanes.about, {"model": asked[0]}) if asked else self.lanes.any()
        passage = Passage(lane.core, lane.pools, send)
        await self.hand_on(scope, raw, send, passage, passage.run)

    async def hand_on(
        self,
        scope: dict[str, Any],
        raw: bytes | None,
        send: Send,
        passage: Passage,
        run: Callable[[str, str, bytes | None], Awaitable[int]],
    ) -> None:
        """Pass a request on as it is."""
        query = scope["query_string"].decode("latin-1")
        passage.via = self._via(scope)
        known = ALIASES.get(scope["path"], scope["raw_path"].decode("ascii"))
        path = known + (f"?{query}" if query else "")
        served_of(scope).runner = passage
        try:
            await run("GET" if raw is None else "POST", path, raw)  # of a HEAD the server around us leaves the head
        except LlamaStreamError as error:
            served_of(scope).failed(error)
            await self._failed(known, error, passage, send)

    async def models(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """The models of all servers, or one of them."""
        found = await listing(self.lanes, self.source.snapshot())
        wanted = scope.get("path_params", {}).get("model")
        if wanted is None:
            await respond(send, 200, msgspec.json.encode(found))
            return
        one = next((each for each in found["data"] if each["id"] == wanted), None)
        if one is None:
            raise RequestError(404, f"the model {wanted[:200]!r} does not exist")
        await respond(send, 200, msgspec.json.encode(one))

    async def health(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Ready if a server is."""
        backends = self.source.snapshot()
        ready = sum(backend.routable for backend in backends)
        if ready:
            body: dict[str, Any] = {"status": "ok", "ready": ready, "instances": len(backends)}
            await respond(send, 200, msgspec.json.encode(body), [])
            return
        counts: dict[str, int] = Counter(backend.state for backend in backends)
        message = "Loading model" if counts.keys() & {"starting", "loading"} else out_of_service(backends)
        error = {"message": message, "type": "unavailable_error", "code": 503}
        body = {"error": error, "ready": 0, "instances": len(backends), "states": counts}
        await respond(send, 503, msgspec.json.encode(body), [(b"retry-after", b"1")])

    def _via(self, scope: dict[str, Any]) -> str:
        try:
            return onward(scope["headers"], self.mark)
        except LoopError as error:
            raise RequestError(508, str(error)) from None

    @staticmethod
    def _lane(find: Callable[[str | None], Lane], body: dict[str, Any]) -> Lane:
        model = body.get("model")
        try:
            return find(model if isinstance(model, str) else None)
        except UnknownModelError as error:
            raise RequestError(404 if model else 400, str(error)) from None
        except UnservedTaskError as error:
            raise RequestError(501, str(error)) from None


def create_app(
    source: BackendSource,
    settings: GatewaySettings | None = None,
    *,
    metrics: Metrics | None = None,
    listeners: Iterable[GatewayListener] = (),
    status: Status | None = None,
    operate: Operate | None = None,
    alerts: Alerts | None = None,
) -> Starlette:
    """The gateway as an ASGI application, to be served by `gateway.server` or mounted in another one.

    Args:
        metrics: counts what happens; None: one of its own. To hear of a fleet's events it has to be among the fleet's
            listeners.
        listeners: called with a `RequestServed` when a request is over, besides the access log and the metrics.
        status: what `/fleet` says; None: what the source reports.
        operate: what the dashboard's buttons do; None: it has none. alerts: those that are active, for the dashboard.
            Its `board`, for a fleet's events and for lines of logs, is that of `app.state.dashboard`, which is None
            where the setting `dashboard` is off.

    Raises:
        SettingError: the API keys cannot be read, or are not allowed.
    """
    metrics = metrics or new_metrics()
    gateway = Gateway(source, settings, [metrics])
    operations = Operations(gateway, metrics, status)
    dashboard = Dashboard(gateway, operate, alerts) if gateway.settings.dashboard else None
    routes = _routes(gateway, operations)
    if dashboard is not None:
        routes += _dashboard_routes(dashboard, gateway.bodies)
    return guarded(gateway, routes, metrics, listeners, dashboard)


def _routes(gateway: Gateway, operations: Operations) -> list[Route]:
    reattach = Reattach(gateway)
    taken: list[tuple[Iterable[str], Handler, list[str]]] = [
        (GENERATION, gateway.generate, ["POST"]),
        (AT_ONCE, gateway.pass_on, ["POST"]),
        (ADMIN, operations.one_server, ["GET", "POST"]),
        (["/props"], gateway.pass_on, ["GET"]),
        (["/v1/models", "/v1/models/{model:path}"], gateway.models, ["GET"]),
        ([HEALTH], gateway.health, ["GET"]),
        ([STREAM], reattach.stream, ["GET", "DELETE"]),
        ([LOOKUP], reattach.lookup, ["POST"]),
        ([METRICS], operations.metrics, ["GET"]),
        ([FLEET], operations.fleet, ["GET"]),
    ]
    return [
        Route(name, _endpoint(handler, gateway.bodies), methods=methods)
        for routes, handler, methods in taken
        for route in routes
        for name in all_names(route)
    ]


def _dashboard_routes(dashboard: Dashboard, bodies: Bodies) -> list[Route]:
    events, actions = DASHBOARD_DATA
    return [
        Route(DASHBOARD, _endpoint(dashboard.page), methods=["GET"]),
        Route(f"{DASHBOARD}/", _endpoint(dashboard.elsewhere), methods=["GET"]),
        Route(events, _endpoint(dashboard.events), methods=["GET"]),
        Route(actions, _endpoint(dashboard.act, bodies), methods=["POST"]),
        Route(DASHBOARD_FILE, _endpoint(dashboard.file), methods=["GET"]),
    ]


def _endpoint(handler: Handler, bodies: Bodies | None = None) -> Any:
    """A handler as an ASGI application: Starlette takes an instance of a class as it is, without a wrapper.

    `bodies`: where to give back what it read; None: its caller does.
    """
    return _Endpoint(handler, bodies)


class _Endpoint:
    def __init__(self, handler: Handler, bodies: Bodies | None) -> None:
        self._handler = handler
        self._bodies = bodies

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        try:
            await self._handler(scope, receive, send)
        except UnavailableError as error:  # before anybody was asked
            served_of(scope).failed(error)
            status, body, headers = error_response(scope["path"], error)
            await respond(send, status, body, [*headers, (b"connection", b"close")])
        except RequestError as error:
            served_of(scope).failed(error)
            if error.status != 499:
                body = refusal(scope["path"], error.status, error.message)
                await respond(send, error.status, body, [*error.headers, (b"connection", b"close")])
        finally:
            if self._bodies is not None:
                self._bodies.release(scope)


def _json(raw: bytes) -> dict[str, Any]:
    try:
        body = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestError(400, f"the request's body is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(400, "the request's body must be a JSON object")
    return body


def mendable(path: str, body: dict[str, Any]) -> bool:
    """Whether the stream of this request can go on after a break. What is malformed is for the server to refuse."""
    if body.get("stream") is not True:
        return False
    if path == CHAT_PATH:
        messages = body.get("messages")
        return isinstance(messages, list) and bool(messages) and all(isinstance(each, dict) for each in messages)
    prompt = body.get("prompt")
    return path == COMPLETION_PATH and (
        isinstance(prompt, str) or (isinstance(prompt, list) and all(type(token) is int for token in prompt))
    )


def _choices(body: dict[str, Any]) -> int:
    count = body.get("n")
    return count if isinstance(count, int) and not isinstance(count, bool) and count > 0 else 1
