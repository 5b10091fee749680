"""What to tell somebody who waits for an answer, and the dim line at the end of the screen that says it."""

from __future__ import annotations

import socket
from collections.abc import Callable

from rich.console import Console
from rich.text import Text

from llamastream.errors import (
    ConnectError,
    ConnectionLostError,
    ConnectTimeoutError,
    LlamaStreamError,
    ModelLoadingError,
    RateLimitedError,
    ServerError,
    UnavailableError,
)
from llamastream.events import ClientEvent, RetryScheduled, StreamBroke
from llamastream.printable import one_line

_ERASE = "\r\x1b[K"


def status_line(event: ClientEvent) -> str | None:
    """What a person who waits should know of an event; None: nothing. The place for further events that are shown."""
    if isinstance(event, RetryScheduled):
        if isinstance(event.error, ModelLoadingError):
            return "server is loading its model, trying again…"
        when = f" in {event.delay:.1f} s" if event.delay >= 0.05 else ""
        return f"{_cause(event.error)}, attempt {event.number + 1}{when}"
    if isinstance(event, StreamBroke):
        return f"{_cause(event.error)} in the middle of the answer, going on…"
    return None


def _cause(error: Exception) -> str:
    """What went wrong, in a few words: the whole message, with advice, comes only if no attempt succeeds."""
    reason = error.__cause__
    if isinstance(error, ConnectError):
        if isinstance(reason, ConnectionRefusedError):
            return "connection refused"
        if isinstance(reason, socket.gaierror):
            return "host name not known"
        return "no server at the socket" if isinstance(reason, FileNotFoundError) else "no connection"
    if isinstance(error, ConnectTimeoutError):
        return "no connection in time"
    if isinstance(error, ConnectionLostError):
        return "connection lost"
    if isinstance(error, RateLimitedError):
        return f"server has too much to do ({error.status})"
    if isinstance(error, UnavailableError):
        return f"server is unavailable ({error.status})"
    if isinstance(error, ServerError) and error.status is not None:
        return f"server answered {error.status}"
    message = error.message if isinstance(error, LlamaStreamError) else str(error)
    return one_line(message.partition(";")[0])


class StatusRelay:
    """A listener for a client: hands its status lines to whatever shows an answer at the moment."""

    tells_recoveries = True  # without a log, Python would write the client's own lines into the answer

    def __init__(self) -> None:
        self.show: Callable[[str], None] | None = None

    def __call__(self, event: ClientEvent) -> None:
        line = status_line(event)
        if line is not None and self.show is not None:
            self.show(line)


class StatusLine:
    """One dim line below everything else, in the place of the one before, until `clear`.

    On a terminal that cannot erase, and on what is no terminal, it is a line for good, but not the same one twice.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._transient = console.is_terminal and not console.is_dumb_terminal
        self._shown = False
        self._last = ""

    def show(self, line: str) -> None:
        """To be called only while the cursor stands at the beginning of a line, or behind the last status line."""
        text = Text(one_line(line), style="dim")
        if not self._transient:
            if line != self._last:
                self._console.print(text, soft_wrap=True)
            self._last = line
            return
        self.clear()
        text.truncate(self._console.width - 1, overflow="ellipsis")  # a line that wraps could not be erased
        self._shown = True
        self._console.print(text, end="", no_wrap=True)

    def clear(self) -> None:
        """Before anything else is written."""
        if self._shown:
            self._shown = False
            self._console.file.write(_ERASE)
            self._console.file.flush()
