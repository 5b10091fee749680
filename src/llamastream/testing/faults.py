"""The faults that a `ChaosProxy` can put between a client and a server, as declarations.

Events are counted in the body as the server sent it, and only those with data; a ping (`:`) is none. llama-server's
first event carries the role, so `after_events=3` means the role and two tokens. Bytes are counted from the first byte
of the response head.

After a response with a fault, the proxy closes the connection.
"""

from __future__ import annotations

from typing import TypeAlias

from msgspec import Struct

from llamastream.errors import SettingError


class _At(Struct, frozen=True, kw_only=True):
    """Where in the response something happens.

    Attributes:
        after_events: when event N has gone out, up to and including its blank line; 0: after the response head.
        after_bytes: when so many bytes of the response, head and framing included, have gone out. Without either it
            happens when the server begins to answer, before the client gets a byte.
    """

    after_events: int | None = None
    after_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.after_events is not None and self.after_bytes is not None:
            raise SettingError("give either after_events or after_bytes, not both")
        if min(self.after_events or 0, self.after_bytes or 0) < 0:
            raise SettingError("after_events and after_bytes cannot be negative")


class _AfterEvent(Struct, frozen=True, kw_only=True):
    """Which event the fault follows. The body is framed anew, with one chunk for each event.

    Attributes:
        after_events: when event N has gone out; 0: after the response head.
    """

    after_events: int = 0

    def __post_init__(self) -> None:
        if self.after_events < 0:
            raise SettingError("after_events cannot be negative")


# -- the connection breaks ----------------------------------------------------------------------------------


class Reset(_At, frozen=True, kw_only=True):
    """The connection ends with a TCP reset, as after a crash.

    A reset throws away what was not delivered. On Linux and macOS the proxy therefore waits until the client's system
    has everything that came before. Linux lets a client read that before it reports the reset; other systems may
    not, so there the last events may be missing.
    """


class HalfClose(_At, frozen=True, kw_only=True):
    """The sending side ends in mid-answer, with an orderly FIN; the proxy still reads until the client leaves."""


class Stall(_At, frozen=True, kw_only=True):
    """Nothing more comes, and the connection stays open until the client leaves. The server is not read any more."""


class Refuse(Struct, frozen=True, kw_only=True):
    """The connection ends at once, without an answer; the server is not asked.

    Attributes:
        reset: by a TCP reset instead of an orderly close.
    """

    reset: bool = False


# -- the framing breaks -------------------------------------------------------------------------------------


class Garbage(_AfterEvent, frozen=True, kw_only=True):
    """Bytes that are no HTTP chunk stand between two chunks; then the answer goes on as if nothing had been.

    Attributes:
        data: the bytes.
    """

    data: bytes = b"\x16\x03\x01 this is no chunk\r\n"


class TruncatedChunk(_AfterEvent, frozen=True, kw_only=True):
    """The chunk after event N is half as long as its size says; then the connection is closed."""


class WrongChunkSize(_AfterEvent, frozen=True, kw_only=True):
    """The chunk after event N has a wrong size line; then the answer goes on as if nothing had been.

    Attributes:
        size: the line. No hexadecimal number by default; a number that is too large, such as `b"fffff"`, makes the
            client take the framing that follows for text, and wait for what never comes.
    """

    size: bytes = b"zz"


# -- the answer is changed ----------------------------------------------------------------------------------


class Duplicate(Struct, frozen=True, kw_only=True):
    """One event comes twice, both times correctly framed.

    Attributes:
        event: which one, from 1.
    """

    event: int = 1

    def __post_init__(self) -> None:
        if self.event < 1:
            raise SettingError("event counts from 1")


class Gzip(Struct, frozen=True, kw_only=True):
    """The answer is compressed and says so, whether the client wants that or not. Each event is flushed."""


class Trickle(Struct, frozen=True, kw_only=True):
    """The answer comes one byte at a time.

    Attributes:
        delay: seconds before each byte.
    """

    delay: float = 0.0


class SlowHeaders(Struct, frozen=True, kw_only=True):
    """The response head comes one byte at a time, the rest as usual.

    Attributes:
        delay: seconds before each byte.
    """

    delay: float = 0.01


# -- another answer comes -----------------------------------------------------------------------------------


class HtmlError(Struct, frozen=True, kw_only=True):
    """A web page of a proxy comes instead of the answer; the server is not asked.

    Attributes:
        status: status code and reason. page: the page.
    """

    status: str = "502 Bad Gateway"
    page: str = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


class Unavailable(Struct, frozen=True, kw_only=True):
    """A storm of 503: this request and those after it are refused in llama-server's form; the server is not asked.

    Attributes:
        times: how many requests, this one included. retry_after: the value of a Retry-After header.
        message: the error message.
    """

    times: int = 1
    retry_after: str | float | None = None
    message: str = "Loading model"


class EndlessHeaders(Struct, frozen=True, kw_only=True):
    """Header lines come for ever, until the client leaves; the server is not asked.

    Attributes:
        delay: seconds before each line.
    """

    delay: float = 0.0


Fault: TypeAlias = (
    Reset
    | HalfClose
    | Stall
    | Refuse
    | Garbage
    | TruncatedChunk
    | WrongChunkSize
    | Duplicate
    | Gzip
    | Trickle
    | SlowHeaders
    | HtmlError
    | Unavailable
    | EndlessHeaders
)
