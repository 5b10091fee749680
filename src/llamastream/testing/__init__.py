"""Doubles that inject the faults which a healthy llama-server cannot be made to show."""

from llamastream.testing.double import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events

__all__ = ["Script", "ServerDouble", "chunked", "http_answer", "sse_answer", "sse_events"]
