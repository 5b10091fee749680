"""Every route of the gateway, and what a key needs to be allowed there."""

from __future__ import annotations

from typing import TypeAlias

from llamastream.gateway.keys import Scope
from llamastream.gateway.served import OTHER

GENERATION = (
    "/v1/chat/completions",
    "/v1/completions",
    "/completion",
    "/v1/responses",
    "/v1/messages",
    "/infill",
    "/v1/embeddings",
    "/embedding",
    "/v1/rerank",
)
"""Endpoints that take a slot."""
AT_ONCE = (
    "/tokenize",
    "/detokenize",
    "/apply-template",
    "/v1/messages/count_tokens",
    "/v1/chat/completions/input_tokens",
    "/v1/responses/input_tokens",
)
"""Endpoints that answer without a slot."""
ALIASES = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/completion",
    "/responses": "/v1/responses",
    "/embeddings": "/embedding",
    "/v1/reranking": "/v1/rerank",
    "/rerank": "/v1/rerank",
    "/reranking": "/v1/rerank",
    "/chat/completions/input_tokens": "/v1/chat/completions/input_tokens",
    "/responses/input_tokens": "/v1/responses/input_tokens",
    "/models": "/v1/models",
    "/v1/health": "/health",
}
"""llama-server's other names of them, as it takes them: without `/v1` some have another form than with it."""
FACTS = ("/props", "/v1/models", "/v1/models/{model}")
HEALTH = "/health"
METRICS, FLEET = "/metrics", "/fleet"
STREAM, LOOKUP = "/v1/stream", "/v1/streams/lookup"
"""Streams that are kept for clients which lost their connection."""
ADMIN = ("/slots", "/slots/{id}", "/lora-adapters", "/tools", "/cors-proxy")
"""Endpoints of one server that change it, or reach beyond it: for keys with the scope `admin`, and never without."""
DASHBOARD, DASHBOARD_FILE = "/dashboard", "/dashboard/{file}"
"""The page: everybody may load it, since there is no data in it."""
DASHBOARD_DATA = ("/dashboard/events", "/dashboard/actions")
"""For keys with the scope `admin`. Without keys they see themselves to it who asks (`dashboard.guarding`)."""

Need: TypeAlias = Scope | None

_NEEDS: dict[str, Need] = {
    **dict.fromkeys((*GENERATION, *AT_ONCE, *FACTS), "inference"),
    HEALTH: None,
    STREAM: "inference",
    LOOKUP: "inference",
    METRICS: "metrics",
    FLEET: "metrics",
    **dict.fromkeys(ADMIN, "admin"),
    **dict.fromkeys((DASHBOARD, DASHBOARD_FILE), None),
    **dict.fromkeys(DASHBOARD_DATA, "admin"),
}


def named(route: str) -> tuple[str, ...]:
    """All names of a route."""
    return (route, *(name for name, meant in ALIASES.items() if meant == route))


def route_of(path: str) -> str:
    """The route that a path belongs to, or `other`."""
    path = ALIASES.get(path, path)
    if path.startswith("/v1/models/"):
        return "/v1/models/{model}"
    if path.startswith("/slots/"):
        return "/slots/{id}" if path.count("/") == 2 else OTHER
    if path in _NEEDS:
        return path
    return DASHBOARD_FILE if path.startswith("/dashboard/") and path.count("/") == 2 else OTHER


def needed(route: str) -> Need:
    """The scope that a key needs there; None: no key is needed. What does not exist is no secret, but is told only to
    those who may ask for what does."""
    return _NEEDS.get(route, "inference")
