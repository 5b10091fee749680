"""Closing a connection so that the last answer arrives.

A socket that is closed while its peer still sends is reset, and a reset may overtake the answer: whoever sent too much
would learn nothing but that. So the write side ends first, and what still comes is thrown away, for a while.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

LINGER = 2.0
"""Seconds that a client has to take its last answer and to stop sending."""


def _no_more() -> bool:
    return False


class LingeringTransport:
    """A transport whose `close` lingers where the peer may still be sending; apart from that, the transport itself.

    Attributes:
        write: the transport's own method: no way around for what is written often. closing: it is being closed.
    """

    def __init__(
        self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, sending: Callable[[], bool]
    ) -> None:
        """`sending`: whether the peer may be in the middle of something that will not be read."""
        self.write: Callable[[bytes], object] = transport.write
        self._held: list[bytes] = []
        self._sending = sending
        self.closing = False
        self._transport = transport
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """As the transport's own, but addresses have two parts, and there is no socket: uvicorn would ask that for both
        addresses, which takes it seven system calls for each connection."""
        if name == "socket":
            return default
        found = self._transport.get_extra_info(name, default)
        return found[:2] if name in ("peername", "sockname") and isinstance(found, tuple) else found

    def is_closing(self) -> bool:
        """Whether nothing is to be read or written any more."""
        return self.closing or self._transport.is_closing()

    def hold(self) -> None:
        """Keep what is written, until it is released."""
        self.write = self._held.append

    def release(self) -> None:
        """Write what was held, as one."""
        self.write = self._transport.write
        if self._held:
            data = b"".join(self._held)
            self._held.clear()
            with contextlib.suppress(RuntimeError):  # uvloop's word for a connection that was closed a moment ago
                self.write(data)

    def close(self) -> None:
        """Close it, after a while if the peer is sending."""
        if self.is_closing():
            return
        self.release()
        self.closing = True
        if not self._sending() or not self._transport.can_write_eof():
            self._transport.close()
            return
        self._transport.write_eof()
        self._transport.resume_reading()
        self._timer = self._loop.call_later(LINGER, self._transport.abort)

    def over(self) -> None:
        """The connection is gone, or the peer has stopped sending."""
        self._sending = _no_more  # which was the protocol's, whose transport this is
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
