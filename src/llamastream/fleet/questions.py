"""What a supervisor asks a server: short questions with deadlines, over connections of their own."""

from __future__ import annotations

from typing import Any

import msgspec

from llamastream.engine import Engine
from llamastream.types import Task

SLOTS_TIMEOUT = 2.0
HEALTH_TIMEOUT = 1.0


def slots(engine: Engine, timeout: float = SLOTS_TIMEOUT) -> list[dict[str, Any]] | None:
    """What `/slots` answers; None if nothing useful in time."""
    try:
        status, body = engine.address.get("/slots", api_key=engine.api_key, timeout=timeout)
        found = msgspec.json.decode(body) if status == 200 else None
    except (OSError, msgspec.DecodeError):
        return None
    return found if isinstance(found, list) and all(isinstance(slot, dict) for slot in found) else None


def healthy(engine: Engine, timeout: float = HEALTH_TIMEOUT) -> bool:
    """Whether `/health` answers 200 in time, which says nothing of the decode loop."""
    try:
        return engine.address.get("/health", timeout=timeout)[0] == 200
    except OSError:
        return False


_CANARIES: dict[Task, tuple[str, dict[str, Any]]] = {
    "generate": ("/completion", {"prompt": "a", "n_predict": 1, "cache_prompt": False, "temperature": 0}),
    "embed": ("/embedding", {"content": "a"}),
    "rerank": ("/v1/rerank", {"query": "a", "documents": ["a"]}),
}


def canary(engine: Engine, timeout: float) -> bool:
    """Whether the server does the least of what it is for, one token, in time."""
    tasks = engine.capabilities.tasks
    path, body = _CANARIES[tasks[0] if tasks else "generate"]
    try:
        return engine.address.request("POST", path, body, api_key=engine.api_key, timeout=timeout)[0] == 200
    except OSError:
        return False


def load(engine: Engine) -> int | None:
    """Requests that the server works on, or has in its own line; None if it does not tell."""
    if engine.capabilities.metrics_endpoint:
        try:
            status, body = engine.address.get("/metrics", api_key=engine.api_key, timeout=SLOTS_TIMEOUT)
        except OSError:
            return None
        return parse_load(body.decode("utf-8", "replace")) if status == 200 else None
    found = slots(engine) if engine.capabilities.slots_endpoint else None
    return None if found is None else in_flight(found)


def parse_load(metrics: str) -> int:
    """The gauges of requests under way and in line, in a text of metrics, added up."""
    total = 0
    for line in metrics.splitlines():
        if line.startswith(("llamacpp:requests_deferred ", "llamacpp:requests_processing ")):
            total += int(float(line.split()[1]))
    return total


def in_flight(found: list[dict[str, Any]]) -> int:
    """Slots that work."""
    return sum(1 for slot in found if slot.get("is_processing"))


def decoded(found: list[dict[str, Any]]) -> int:
    """Tokens that the working slots have decoded for the requests that they work on."""
    total = 0
    for slot in found:
        next_token = slot.get("next_token")
        first = next_token[0] if isinstance(next_token, list) and next_token else next_token
        if slot.get("is_processing") and isinstance(first, dict):
            total += int(first.get("n_decoded") or 0)
    return total
