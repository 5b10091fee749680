"""One OpenAI-compatible address before one or many llama-servers.

Importing this part needs no library of the gateway; its names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llamastream.gateway.app import Gateway, create_app
    from llamastream.gateway.server import GatewayServer, run_gateway
    from llamastream.gateway.settings import GatewaySettings
    from llamastream.gateway.thread import gateway_thread
    from llamastream.gateway.upstreams import Upstreams

__all__ = [
    "Gateway",
    "GatewayServer",
    "GatewaySettings",
    "Upstreams",
    "create_app",
    "gateway_thread",
    "run_gateway",
]

_HOMES = {
    "Gateway": "app",
    "GatewayServer": "server",
    "GatewaySettings": "settings",
    "Upstreams": "upstreams",
    "create_app": "app",
    "gateway_thread": "thread",
    "run_gateway": "server",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
