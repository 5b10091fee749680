"""llamastream: production-grade streaming for llama.cpp's llama-server."""

from llamastream._version import __version__

__all__ = ["__version__"]
