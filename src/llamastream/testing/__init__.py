"""Doubles and faults: for what a healthy llama-server cannot be made to show."""

from llamastream.testing.chaos import ChaosProxy
from llamastream.testing.double import Script, ServerDouble, chunked, sse_answer, sse_events
from llamastream.testing.faults import (
    Duplicate,
    EndlessHeaders,
    Fault,
    Garbage,
    Gzip,
    HalfClose,
    HtmlError,
    Refuse,
    Reset,
    SlowHeaders,
    Stall,
    Trickle,
    TruncatedChunk,
    Unavailable,
    WrongChunkSize,
)
from llamastream.testing.numbered import NumberedServer, ReceivedRequest
from llamastream.testing.relay import Exchange
from llamastream.testing.wire import http_answer

__all__ = [
    "ChaosProxy",
    "Duplicate",
    "EndlessHeaders",
    "Exchange",
    "Fault",
    "Garbage",
    "Gzip",
    "HalfClose",
    "HtmlError",
    "NumberedServer",
    "ReceivedRequest",
    "Refuse",
    "Reset",
    "Script",
    "ServerDouble",
    "SlowHeaders",
    "Stall",
    "Trickle",
    "TruncatedChunk",
    "Unavailable",
    "WrongChunkSize",
    "chunked",
    "http_answer",
    "sse_answer",
    "sse_events",
]
