"""The application with everything around it: records, keys, CORS, errors in one form, a beginning and an end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from llamastream.events import GatewayListener
from llamastream.gateway.access import Access, KeyCheck, Straight
from llamastream.gateway.dashboard import Dashboard
from llamastream.gateway.keys import KeyRing, load_keys
from llamastream.gateway.operations import samples
from llamastream.gateway.refusals import refusal
from llamastream.gateway.routes import GENERATION, named
from llamastream.gateway.settings import GatewaySettings, check_origins
from llamastream.observe.access import AccessLog
from llamastream.observe.metrics import Metrics

if TYPE_CHECKING:
    from llamastream.gateway.app import Gateway

logger = logging.getLogger("llamastream.gateway")


class Guard:
    """What may change while the gateway runs. In `app.state.guard`.

    Attributes:
        keys: those that are known. closing: the gateway stops, and what is cancelled from now on is told so.
        connections: how many there are now, if the server tells. on_stop: called, in the event loop, when the server
            takes no more requests and waits for those that run.
    """

    def __init__(self, settings: GatewaySettings) -> None:
        self.keys = self.read(settings)
        self.closing = False
        self.connections: Callable[[], int] | None = None
        self.on_stop: list[Callable[[], None]] = []

    @staticmethod
    def read(settings: GatewaySettings) -> KeyRing:
        """The keys as they are now.

        Raises:
            SettingError: they cannot be read, or are not allowed.
        """
        keys, notes = load_keys(settings.keys_file, settings.api_keys)
        for note in notes:
            logger.warning(note)
        return keys


def guarded(
    gateway: Gateway,
    routes: Sequence[Route],
    metrics: Metrics,
    listeners: Iterable[GatewayListener],
    dashboard: Dashboard | None = None,
) -> Starlette:
    """The application.

    Raises:
        SettingError: the API keys cannot be read, or are not allowed.
    """
    settings = gateway.settings
    hot = {name for path in GENERATION for name in named(path)}
    check_origins(settings.cors_origins, "settings=")
    guard = Guard(settings)
    watching = [] if dashboard is None else [dashboard.board]
    if dashboard is not None:
        dashboard.attach(guard)
    metrics.scrapers.append(lambda: samples(gateway, guard.connections))

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        if dashboard is not None:
            await dashboard.start()
        try:
            yield
        finally:
            if dashboard is not None:
                await dashboard.close()
            await gateway.close()

    middleware = [
        Middleware(Access, source=gateway.source, guard=guard, listeners=[AccessLog(), metrics, *watching, *listeners]),
        Middleware(KeyCheck, guard=guard),
        Middleware(Straight, endpoints={route.path: route.app for route in routes if route.path in hot}),
    ]
    if settings.cors_origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=list(settings.cors_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=[
                "authorization",
                "content-type",
                "x-api-key",
                "x-request-id",
                "x-conversation-id",
                "cache-control",
            ],
            expose_headers=["x-request-id", "retry-after", "x-llamastream-cache"],
        )
        middleware.insert(1, cors)  # before the keys: a browser asks first, and without one
    app = Starlette(
        routes=list(routes), lifespan=lifespan, middleware=middleware, exception_handlers={HTTPException: _refused}
    )
    app.router.redirect_slashes = False  # a redirect would name an address that the client made up
    app.state.gateway = gateway
    app.state.guard = guard
    app.state.dashboard = dashboard
    return app


async def _refused(request: Request, error: Any) -> Response:
    """What the router refuses, in the same form as everything else."""
    path = request.url.path
    message = {
        404: f"there is no {path}",
        405: f"{path} does not take {request.method}",
    }.get(error.status_code, str(error.detail))
    body = refusal(path, error.status_code, message)
    return Response(body, error.status_code, media_type="application/json", headers=error.headers)
