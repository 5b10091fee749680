"""Errors of the operating system, in our words."""

from __future__ import annotations

from llamastream.errors import ConnectionLostError


def connection_lost(url: str, error: OSError) -> ConnectionLostError:
    """The error for a read or a write that failed."""
    return ConnectionLostError(f"{url}: the connection broke: {describe_os_error(error)}")


def describe_os_error(error: OSError) -> str:
    """An operating system's error in words, without Python's number brackets."""
    return error.strerror or str(error) or type(error).__name__
