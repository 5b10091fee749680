"""The way of an answer past ASGI."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol


class Line(Protocol):
    """A client's connection (see `gateway.linger.LingeringTransport`)."""

    @property
    def write(self) -> Callable[[bytes], object]: ...
    def hold(self) -> None: ...
    def release(self) -> None: ...


class Outlet(Protocol):
    """A way past ASGI to the client's transport (see `gateway.wire.Splice`)."""

    @property
    def open(self) -> bool: ...
    @property
    def flow(self) -> Any: ...
    @property
    def transport(self) -> Line: ...
