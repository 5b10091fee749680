"""llamastream: production-grade streaming for llama.cpp's llama-server.

    from llamastream import StreamingClient

    with StreamingClient("http://localhost:8080") as client:
        for text in client.stream_chat([{"role": "user", "content": "Tell me a story."}]):
            print(text, end="", flush=True)

Names are imported when they are first used, so that `import llamastream` itself costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from llamastream._version import __version__

if TYPE_CHECKING:
    from llamastream.client import AsyncStream, AsyncStreamingClient, Stream, StreamingClient
    from llamastream.engine import Engine, EngineOptions, launch
    from llamastream.errors import LlamaStreamError
    from llamastream.fleet import Fleet, FleetSettings
    from llamastream.observe import LoggingListener
    from llamastream.settings import ClientSettings
    from llamastream.tools import ToolCall
    from llamastream.types import Result, RetryPolicy, Stats, Timeouts, Usage

_HOME = {
    "AsyncStream": "client",
    "AsyncStreamingClient": "client",
    "Stream": "client",
    "StreamingClient": "client",
    "Engine": "engine",
    "EngineOptions": "engine",
    "launch": "engine",
    "Fleet": "fleet",
    "FleetSettings": "fleet",
    "LlamaStreamError": "errors",
    "ClientSettings": "settings",
    "LoggingListener": "observe",
    "Result": "types",
    "RetryPolicy": "types",
    "Stats": "types",
    "Timeouts": "types",
    "ToolCall": "tools",
    "Usage": "types",
}

__all__ = [
    "AsyncStream",
    "AsyncStreamingClient",
    "ClientSettings",
    "Engine",
    "EngineOptions",
    "Fleet",
    "FleetSettings",
    "LlamaStreamError",
    "LoggingListener",
    "Result",
    "RetryPolicy",
    "Stats",
    "Stream",
    "StreamingClient",
    "Timeouts",
    "ToolCall",
    "Usage",
    "__version__",
    "launch",
]


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'llamastream' has no attribute {name!r}")
    value = getattr(import_module(f"llamastream.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
