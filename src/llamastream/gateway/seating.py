"""Which requests are put into a slot that routing chose, and how it comes to know that slots are free."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from time import monotonic
from typing import Any

from llamastream.backends import Backend
from llamastream.client import endpoints
from llamastream.client.aunary import call_once
from llamastream.client.core import ClientCore
from llamastream.client.servers import Server
from llamastream.errors import LlamaStreamError
from llamastream.gateway.settings import SlotChoice
from llamastream.policy.routing import Router
from llamastream.protocol.requests import CHAT_PATH, COMPLETION_PATH

PLACEABLE = frozenset({CHAT_PATH, COMPLETION_PATH, "/completion", "/v1/responses", "/infill"})
"""Where llama-server heeds `id_slot`; on `/v1/messages` it drops it."""
FIRST_LOOK, LONGEST_PAUSE = 0.1, 2.0
"""Seconds before the second look at slots, and between later ones at most."""
LOOK_TIMEOUT = 2.0


def placeable(path: str, body: dict[str, Any]) -> bool:
    """Whether a slot can be chosen for a request: it takes one alone, and its client chose none."""
    if path not in PLACEABLE or "id_slot" in body:
        return False
    if any(body.get(name, 1) not in (1, None) for name in ("n", "n_cmpl", "best_of")):
        return False
    prompt = body.get("prompt")
    return not isinstance(prompt, list) or all(type(each) is int for each in prompt)


def ours(backend: Backend, choice: SlotChoice) -> bool:
    """Whether the slots of a server are chosen here. One that may be for something else, too, has requests of several
    lines, which know nothing of each other."""
    return backend.tasks == ("generate",) and (choice == "on" or (choice == "auto" and backend.private))


class SlotWatch:
    """Asks servers for their slots where it is not certain which are free. Belongs to one event loop."""

    def __init__(self, core: ClientCore, router: Router, server: Callable[[int], Server | None]) -> None:
        """`server`: that of an instance, by its number."""
        self._core = core
        self._router = router
        self._server = server
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._news = asyncio.Event()

    def look(self) -> None:
        """Something happened: look where that is needed."""
        if not self._router.unsure:
            return
        self._news.set()
        for number in self._router.unsure:
            if number not in self._tasks:
                self._tasks[number] = asyncio.get_running_loop().create_task(self._settle(number))

    async def _settle(self, number: int) -> None:
        pause = FIRST_LOOK
        try:
            while number in self._router.unsure:
                server = self._server(number)
                if server is not None and self._router.may_look(number, monotonic()):
                    await self._ask(number, server)
                if number in self._router.unsure:
                    self._news.clear()
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(self._news.wait(), pause)
                    pause = min(LONGEST_PAUSE, 2 * pause)
        finally:
            del self._tasks[number]

    async def _ask(self, number: int, server: Server) -> None:
        generation = self._router.generation(number)
        try:
            slots = await call_once(self._core, server, endpoints.slots(), LOOK_TIMEOUT)
        except LlamaStreamError:
            return  # it is busy, or away: later
        if self._router.generation(number) == generation:
            idle = {each["id"] for each in slots if each.get("is_processing") is False and "id" in each}
            self._router.looked(number, idle, monotonic())

    def close(self) -> None:
        """Nothing more is to be done."""
        for task in tuple(self._tasks.values()):
            task.cancel()
