"""What it is that answers: model, build, template and defaults of a lane's servers, as one word.

Answers are kept under it, so that another model behind the same name never gives the answers of the one before.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from llamastream.backends import Backend
from llamastream.client import endpoints
from llamastream.client.aunary import call_once
from llamastream.client.servers import Server
from llamastream.errors import LlamaStreamError
from llamastream.gateway.lanes import Lane
from llamastream.gateway.operations import server_of

FRESH = 2.0
"""Seconds for which the word of a server is good whose process nobody watches."""
TIMEOUT = 1.0
FACTS = ("model_path", "model_ftype", "build_info", "chat_template", "default_generation_settings", "modalities")
"""What of `/props` an answer depends on."""
_CALENDAR = ("strftime_now", "date_string")
"""Words of templates that write today's date into the prompt."""


class _Known(Struct, frozen=True):
    """What was found out. `process`: of which. `asked_at`: by the monotonic clock."""

    process: tuple[Any, ...]
    asked_at: float
    digest: str
    dated: bool


class Identities:
    """Knows the servers of all lanes. Belongs to one event loop."""

    def __init__(self) -> None:
        self._known: dict[str, _Known] = {}
        self._asking: dict[str, asyncio.Task[_Known | None]] = {}

    def forget(self) -> None:
        """Somebody may have changed a server."""
        self._known.clear()

    async def of(self, lane: Lane, *, fresh: bool = False) -> str | None:
        """What answers in a lane; None: not known, or not the same everywhere (in the middle of a change, say).

        Args:
            fresh: ask a server whose process nobody watches even if it was asked a moment ago.
        """
        backends = [backend for backend in lane.backends() if backend.routable and backend.url]
        found = await asyncio.gather(*(self._one(lane, backend, fresh) for backend in backends))
        first = found[0] if found else None
        if first is None or any(each is None or each.digest != first.digest for each in found):
            return None
        return first.digest + (time.strftime("%Y-%m-%d") if first.dated else "")

    async def _one(self, lane: Lane, backend: Backend, fresh: bool) -> _Known | None:
        process = (backend.url, backend.pid, backend.generation)
        known = self._known.get(backend.id)
        if known is not None and known.process == process:
            watched = backend.pid > 0  # then another process is another pid
            if watched or (not fresh and time.monotonic() - known.asked_at < FRESH):
                return known
        task = self._asking.get(backend.id)
        if task is None:
            task = self._asking[backend.id] = asyncio.ensure_future(self._ask(lane, backend, process))
            task.add_done_callback(lambda _: self._asking.pop(backend.id, None))
        return await asyncio.shield(task)  # others may wait for it, too

    async def _ask(self, lane: Lane, backend: Backend, process: tuple[Any, ...]) -> _Known | None:
        server = server_of(lane, backend)
        if server is None:
            return None
        began = time.monotonic()
        try:
            props = await call_once(lane.core, server, endpoints.props(), TIMEOUT)
            adapters = await self._adapters(lane, server)
        except LlamaStreamError:
            return None
        template = str(props.get("chat_template"))
        dated = any(word in template for word in _CALENDAR)
        known = _Known(process, began, identity_of(props, adapters), dated)
        self._known[backend.id] = known
        return known

    @staticmethod
    async def _adapters(lane: Lane, server: Server) -> list[Any]:
        """LoRA adapters and their scales, which can be changed while a server runs."""
        return await call_once(lane.core, server, endpoints.lora_adapters(), TIMEOUT)


def identity_of(props: Mapping[str, Any], adapters: list[Any]) -> str:
    """What a server says of itself, with size and time of its model's file if that is on this machine."""
    facts = [props.get(name) for name in FACTS]
    path = props.get("model_path")
    if isinstance(path, str):
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            pass
        else:
            facts.append([status.st_size, status.st_mtime_ns])
    return hashlib.sha256(msgspec.json.encode([facts, adapters], order="sorted")).hexdigest()
