"""An asyncio connection: TCP, TLS or a Unix socket, handing what arrives to a receiver without a task switch."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from llamastream.address import Address
from llamastream.client.connection import connect_error
from llamastream.errors import ConnectTimeoutError


class Receiver(Protocol):
    """What a connection hands its bytes to, in the event loop's own callbacks."""

    def data_received(self, data: bytes) -> None: ...

    def closed(self, error: OSError | None) -> None:
        """The connection ended: `error` is None if the server closed it in order."""


class AsyncConnection(asyncio.Protocol):
    """One connection; what arrives goes to the receiver of the moment.

    Attributes:
        loop: the event loop that it belongs to, None until it is connected.
        data_received: the receiver's own, since every call on the way of a token counts.
    """

    data_received: Callable[[bytes], None]  # type: ignore[assignment]  # event loops just call it

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.data_received = _ignore
        self._receiver: Receiver | None = None
        self._transport: asyncio.Transport | None = None
        self._aborted = False
        self._paused = False
        self._made: Callable[[], None] | None = None

    @property
    def usable(self) -> bool:
        """Whether it is connected and not about to close."""
        return self._transport is not None and not self._aborted and not self._transport.is_closing()

    def keep(self, receiver: Receiver) -> None:
        """Hand what arrives from now on to another receiver."""
        self._receive_with(receiver)
        if self._transport is not None:
            self._transport.set_protocol(self)  # uvloop asks for `data_received` only then

    async def connect(
        self,
        receiver: Receiver,
        address: Address,
        tls: ssl.SSLContext | None,
        timeout: float | None,
        made: Callable[[], None] | None = None,
    ) -> None:
        """Connect, TLS included, within `timeout` seconds.

        `made`: called at once when the connection stands; whoever awaits this is told some turns of the loop later.

        Raises:
            ConnectTimeoutError: not within the time.
            ConnectError: no such host, refused, unreachable, no such socket, or TLS failed.
        """
        loop = self.loop = asyncio.get_running_loop()
        self._receive_with(receiver)
        self._made = made
        try:
            async with asyncio.timeout(timeout):
                if address.socket is not None:
                    await loop.create_unix_connection(lambda: self, address.socket)
                else:
                    secure = tls if address.scheme == "https" else None
                    await loop.create_connection(
                        lambda: self,
                        address.host,
                        address.port,
                        ssl=secure,
                        server_hostname=address.host if secure else None,
                    )
        except TimeoutError:
            self.abort()
            raise ConnectTimeoutError(f"{address.url}: no connection within {timeout} s (Timeouts.connect)") from None
        except OSError as error:
            self.abort()
            raise connect_error(address, error) from error

    def send(self, data: bytes) -> None:
        """Write it, if the connection still stands: if not, the receiver was told by `closed`."""
        if self._transport is not None:
            self._transport.write(data)

    def pause(self) -> None:
        """Stop reading: the reader of the stream is slower than the server."""
        if self._transport is not None and not self._transport.is_closing() and not self._paused:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing() and self._paused:
            self._paused = False
            self._transport.resume_reading()

    def abort(self) -> None:
        """Close at once, in the event loop's thread. Nothing is handed on after this."""
        self._receive_with(None)
        self._aborted = True
        transport, self._transport = self._transport, None  # they refer to each other
        if transport is not None and self.loop is not None and not self.loop.is_closed():
            transport.abort()

    def _receive_with(self, receiver: Receiver | None) -> None:
        self._receiver = receiver
        self.data_received = _ignore if receiver is None else receiver.data_received

    # -- callbacks of asyncio ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        made, self._made = self._made, None
        if self._aborted:
            self._transport.abort()
        elif made is not None:
            made()

    def connection_lost(self, exc: Exception | None) -> None:
        receiver = self._receiver
        self._receive_with(None)
        self._transport = None  # as in `abort`
        if receiver is not None:
            receiver.closed(exc if isinstance(exc, OSError) or exc is None else OSError(str(exc)))


def _ignore(data: bytes) -> None:
    """Nobody is there to receive it."""
