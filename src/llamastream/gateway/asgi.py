"""The two directions of a request, as ASGI has them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

Receive = Callable[[], Awaitable[dict[str, Any]]]
"""What comes next from the client."""
Send = Callable[[dict[str, Any]], Awaitable[None]]
"""Part of the answer, for the client."""
