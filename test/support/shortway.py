"""A read as a runner takes it: the short way where that is open, which the text tells."""

from __future__ import annotations

from llamastream.protocol.exchange import GenerationExchange


def short_way(exchange: GenerationExchange, read: bytes, now: float = 0.0) -> str | None:
    """The piece of text that the read was; None: it was not taken, and must go the long way."""
    return None if exchange.steady is None else exchange.steady.take(read, now)
