"""Gateways before gateways, and no circles of them: each adds its mark to the header `Via` of what it asks."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable

MOST_HOPS = 8
"""Gateways that a request may pass, one behind the other."""
_MARK = re.compile(r"1\.[01] llamastream-[0-9a-f]{16}")


class LoopError(Exception):
    """The request has been here, or at too many others; `str` of it is for the client."""


def new_mark() -> str:
    """The mark of one gateway."""
    return f"1.1 llamastream-{secrets.token_hex(8)}"


def onward(headers: Iterable[tuple[bytes, bytes]], mark: str) -> str:
    """The `Via` with which a request goes on: the marks of the gateways that it passed, and our own. What others wrote
    there stays behind.

    Args:
        headers: of the request, with names in lower case. mark: our own.

    Raises:
        LoopError: it has passed here before, or too many others.
    """
    via = None
    for name, value in headers:
        if name == b"via":
            via = value if via is None else via + b"," + value
    if via is None:
        return mark
    marks = [part for each in via.decode("latin-1").split(",") if _MARK.fullmatch(part := each.strip())]
    if mark in marks:
        raise LoopError("the request has come back to the gateway that sent it: its servers lead here again")
    if len(marks) >= MOST_HOPS:
        raise LoopError(f"the request has passed {len(marks)} gateways, and no more may be before one server")
    return ", ".join((*marks, mark))
