"""What systemd is told of a service with `Type=notify`: datagrams to the socket that NOTIFY_SOCKET names.

See `sd_notify(3)`. Without the variable, nothing is sent anywhere.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from contextlib import suppress


class Notifier:
    """Tells systemd how we are. It never waits, and what cannot be sent is dropped.

    Attributes:
        watchdog: seconds between two signs of life, half of what systemd allows; None: it wants none.
    """

    def __init__(self, environ: MutableMapping[str, str] | None = None) -> None:
        """Takes NOTIFY_SOCKET out of the environment, so that no other program speaks in our name."""
        environ = os.environ if environ is None else environ
        address = environ.pop("NOTIFY_SOCKET", "")
        interval, owner = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self.watchdog: float | None = None
        if not self._address:
            return
        if interval.isdecimal() and int(interval) > 0 and owner in ("", str(os.getpid())):
            self.watchdog = int(interval) / 2e6
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def ready(self, status: str) -> None:
        """The start, or a reload, is over."""
        self._send("READY=1", _status(status))

    def status(self, status: str) -> None:
        """One line for `systemctl status`."""
        self._send(_status(status))

    def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str) -> None:
        """The end begins."""
        self._send("STOPPING=1", _status(status))

    def alive(self) -> None:
        """A sign of life."""
        if self.watchdog is not None:
            self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """A start or an end takes longer: do not lose patience for so many seconds from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.sendto("\n".join(lines).encode(), self._address)


def _status(text: str) -> str:
    return f"STATUS={' '.join(text.split())}"
