"""The import path of existing projects: `from core.llm_streaming_client import LlamaStreamingClient`."""

from llamastream.client.legacy import AsyncLlamaStreamingClient, LlamaStreamingClient

__all__ = ["AsyncLlamaStreamingClient", "LlamaStreamingClient"]
