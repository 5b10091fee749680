"""How a llama-server comes to exist: a llama-server executable, or the embedded engine."""

from llamastream.engine.launch import Launch, launch
from llamastream.engine.options import EngineKind, EngineOptions
from llamastream.engine.server import Engine

__all__ = ["Engine", "EngineKind", "EngineOptions", "Launch", "launch"]
