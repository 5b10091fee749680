"""The dashboard's endpoints, as ASGI handlers."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from msgspec import Struct

from llamastream._version import __version__
from llamastream.errors import LlamaStreamError
from llamastream.gateway.dashboard.facts import Alerts, Reader
from llamastream.gateway.dashboard.guarding import asked_of, why_refused
from llamastream.gateway.dashboard.live import Live, Viewer
from llamastream.gateway.dashboard.pages import INDEX, PROTECTION, all_files
from llamastream.gateway.keys import presented_key
from llamastream.gateway.refusals import refusal, respond
from llamastream.gateway.served import served_of
from llamastream.observe.dashboard import Board

if TYPE_CHECKING:
    from llamastream.gateway.app import Gateway
    from llamastream.gateway.guarded import Guard

logger = logging.getLogger("llamastream.gateway")

Operate = Callable[[str, str], str]
"""Does something (drain, undrain, restart) to the instance with this id, and says so; may wait for moments, so it runs
in a thread. Raises LlamaStreamError where that is not possible."""

VIEWERS = 64
"""Pages that may watch at the same time."""
_NO_KEYS = (
    "Without API keys servers are changed on the command line (llamastream drain, undrain, restart): set keys, one "
    "with the scope admin, or dashboard_actions."
)
_NOBODY = "Whoever started these servers looks after them: they cannot be changed from here."


class Order(Struct, frozen=True, forbid_unknown_fields=True):
    """What a button asks for."""

    action: Literal["drain", "undrain", "restart"]
    instance: str


class Dashboard:
    """The page, its events and its buttons.

    Attributes:
        board: takes what happens; a listener to requests and to a fleet's events.
    """

    def __init__(self, gateway: Gateway, operate: Operate | None = None, alerts: Alerts | None = None) -> None:
        self.board = Board()
        self._gateway = gateway
        self._operate = operate
        self._alerts = alerts
        self._guard: Guard | None = None
        self._live: Live | None = None
        self._running: asyncio.Task[None] | None = None
        self._leave: Callable[[], None] = lambda: None
        self._ending = False

    # -- its life ---------------------------------------------------------------------------------------------------

    def attach(self, guard: Guard) -> None:
        """Before the start: whose keys count."""
        self._guard = guard
        guard.on_stop.append(self.end_streams)

    async def start(self) -> None:
        """Begin to look. In the gateway's event loop."""
        connections = None if self._guard is None else self._guard.connections
        self._ending = False
        self._live = live = Live(self.board, Reader(self._gateway, self._alerts, connections))
        self._leave = self._gateway.source.subscribe(live.poke)
        self._running = asyncio.ensure_future(live.run())

    async def close(self) -> None:
        """Look no more."""
        self._leave()
        self.end_streams()
        if self._running is not None:
            self._running.cancel()

    def end_streams(self) -> None:
        """The gateway stops: those who watch need not be waited for."""
        self._ending = True
        if self._live is not None:
            for viewer in self._live.viewers:
                viewer.news.set()

    # -- its endpoints ----------------------------------------------------------------------------------------------

    async def page(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /dashboard`: the page. There is nothing in it that is not public."""
        await self._file(INDEX, scope, send)

    async def elsewhere(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /dashboard/`: what is meant is a step above."""
        await respond(send, 308, b"", [(b"location", b"../dashboard"), *PROTECTION])

    async def file(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /dashboard/{file}`: scripts and styles."""
        await self._file(scope["path_params"]["file"], scope, send)

    async def _file(self, name: str, scope: dict[str, Any], send: Any) -> None:
        found = all_files().get(name)
        if found is None:
            await respond(send, 404, refusal(scope["path"], 404, f"there is no {scope['path'][:200]}"), PROTECTION)
            return
        known = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
        status, content = (304, b"") if known == found.tag else (200, found.content)
        headers = [(b"content-type", found.type), (b"content-length", str(len(content)).encode())]
        headers += [(b"etag", found.tag), (b"cache-control", b"no-cache"), *PROTECTION]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})

    async def events(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`GET /dashboard/events`: everything, then a state each second and what happens at once, as server-sent
        events."""
        if await self._refused(scope, send):
            return
        live = self._live
        if live is None or self._ending or len(live.viewers) >= VIEWERS:
            message = f"{VIEWERS} pages watch already" if live is not None and not self._ending else "it is stopping"
            await respond(send, 503, refusal(scope["path"], 503, message), [(b"retry-after", b"5"), *PROTECTION])
            return
        viewer = Viewer(live)
        gone = asyncio.ensure_future(_left(receive))
        gone.add_done_callback(lambda _: viewer.news.set())
        live.viewers.add(viewer)
        try:
            headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store")]
            headers += [(b"x-accel-buffering", b"no"), *PROTECTION]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await _send(send, viewer.first(self._about(scope)))
            while not (self._ending or gone.done()) and self._may_still(scope):
                if data := viewer.more():
                    await _send(send, data)
                await viewer.news.wait()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            live.viewers.discard(viewer)
            gone.cancel()

    async def act(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """`POST /dashboard/actions`: drain, undrain or restart an instance."""
        if await self._refused(scope, send):
            return
        path = scope["path"]
        if (why := self._no_actions()) is not None:
            await respond(send, 403, refusal(path, 403, why), PROTECTION)
            return
        assert self._operate is not None  # else that were the reason
        try:
            order = msgspec.json.decode(await self._gateway.bodies.read(scope, receive), type=Order)
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
            message = f'this takes {{"action": "drain" | "undrain" | "restart", "instance": ID}}: {error}'
            await respond(send, 400, refusal(path, 400, message), PROTECTION)
            return
        who = served_of(scope).key or "without a key"
        logger.info("the dashboard asks to %s %.100r (%s)", order.action, order.instance, who)
        try:
            message = await asyncio.to_thread(self._operate, order.action, order.instance)
        except LlamaStreamError as error:
            await respond(send, 409, refusal(path, 409, error.message), PROTECTION)
            return
        await respond(send, 200, msgspec.json.encode({"message": message}), PROTECTION)

    # -- who may what -----------------------------------------------------------------------------------------------

    @property
    def _keyed(self) -> bool:
        return self._guard is not None and len(self._guard.keys) > 0

    async def _refused(self, scope: dict[str, Any], send: Any) -> bool:
        why = self._why_refused(scope)
        if why is not None:
            await respond(send, 403, refusal(scope["path"], 403, why), [(b"connection", b"close"), *PROTECTION])
        return why is not None

    def _why_refused(self, scope: dict[str, Any]) -> str | None:
        client = scope.get("client")
        return why_refused(asked_of(scope["headers"], client[0] if client else ""), keyed=self._keyed)

    def _no_actions(self) -> str | None:
        """Why buttons do nothing; None: they do."""
        if self._operate is None:
            return _NOBODY
        return None if self._keyed or self._gateway.settings.dashboard_actions else _NO_KEYS

    def _may_still(self, scope: dict[str, Any]) -> bool:
        """Whether its key is still good: keys may be taken back while a page watches."""
        if not self._keyed:
            return self._why_refused(scope) is None
        assert self._guard is not None
        key = self._guard.keys.find(presented_key(scope["headers"]) or "")
        return key is not None and key.may("admin")

    def _about(self, scope: dict[str, Any]) -> dict[str, Any]:
        """What does not change while a page watches."""
        return {
            "version": __version__,
            "key": served_of(scope).key,
            "actions": self._no_actions() is None,
            "no_actions": self._no_actions(),
            "logs_here": self.board.telling,
        }


async def _send(send: Any, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _left(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
