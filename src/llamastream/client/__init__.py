"""Sync and async shells over the protocol: connections, streams, clients."""

from llamastream.client.aclient import AsyncStreamingClient
from llamastream.client.astream import AsyncStream
from llamastream.client.client import StreamingClient
from llamastream.client.stream import Stream

__all__ = ["AsyncStream", "AsyncStreamingClient", "Stream", "StreamingClient"]
