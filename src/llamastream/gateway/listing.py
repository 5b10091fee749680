"""The models of all servers in one list, each as its own server describes it."""

from __future__ import annotations

import asyncio
from time import monotonic
from typing import Any

from llamastream.backends import Backend
from llamastream.client import endpoints
from llamastream.client.aunary import call_pooled
from llamastream.errors import LlamaStreamError
from llamastream.gateway.lanes import Lane, Lanes

TIMEOUT = 2.0
"""Seconds that a server has to describe its model; then it stands in the list with its name alone."""

_CAPABILITIES = {"embed": ["embedding"], "rerank": ["rerank"]}


async def listing(lanes: Lanes, backends: tuple[Backend, ...]) -> dict[str, Any]:
    """What `/v1/models` says: `data` for OpenAI's clients, `models` for those of llama-server."""
    first: dict[str, Backend] = {}
    for backend in backends:
        for name in backend.models:
            if name not in first or (backend.routable and not first[name].routable):
                first[name] = backend
    asked = list({backend.id: backend for backend in first.values() if backend.routable}.values())
    said = await asyncio.gather(*(_ask(lanes.of(backend)) for backend in asked))
    known = {backend.id: answer for backend, answer in zip(asked, said, strict=True)}
    found: dict[str, Any] = {"object": "list", "data": [], "models": []}
    for name, backend in first.items():
        answer = known.get(backend.id) or {}
        found["data"].append(_of(answer.get("data"), "id", name, backend) or plain(name))
        if (described := _of(answer.get("models"), "model", name, backend)) is not None:
            found["models"].append(described)
    return found


def plain(name: str) -> dict[str, Any]:
    """A model of which nothing but its name is known."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "llamacpp"}


async def _ask(lane: Lane) -> dict[str, Any] | None:
    server, _ = lane.core.servers.choose(monotonic())
    try:
        return await call_pooled(lane.core, lane.pools[server.index], endpoints.model_list(), TIMEOUT)
    except LlamaStreamError:
        return None


def _of(entries: Any, field: str, name: str, backend: Backend) -> dict[str, Any] | None:
    """The entry of a model in what its server said. A server that lists one model means that one, by whatever name."""
    found = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
    for entry in found:
        if entry.get(field) == name or len(found) == 1:
            entry = {**entry, field: name}
            if "capabilities" in entry and (task := next(iter(backend.tasks), "generate")) in _CAPABILITIES:
                entry["capabilities"] = _CAPABILITIES[task]
            return entry
    return None
