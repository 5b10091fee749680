"""Doubles that inject the faults which a healthy llama-server cannot be made to show."""

from llamastream.testing.double import Script, ServerDouble, chunked, sse_answer, sse_events
from llamastream.testing.wire import http_answer

__all__ = ["Script", "ServerDouble", "chunked", "http_answer", "sse_answer", "sse_events"]
