"""Who can reach an address, whether that is meant, and whether it is our own."""

from __future__ import annotations

import ipaddress
import os

from llamastream.address import parse_address
from llamastream.errors import SettingError


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False  # a name may mean anything


def check_exposure(host: str, *, keys: int, allow_open: bool) -> None:
    """Refuse to let everybody in by accident.

    Raises:
        SettingError: others can reach the address, there are no keys, and nobody said that this is meant.
    """
    if keys or allow_open or is_loopback(host):
        return
    raise SettingError(
        f"on {host or 'all addresses'} everybody who reaches this machine could use the models: set API keys "
        "(--keys-file FILE, or LLAMASTREAM_GATEWAY_API_KEYS; `llamastream keys new` makes one), listen on 127.0.0.1, "
        "or say --allow-open"
    )


def is_own_address(url: str, host: str, port: int, socket: str | None) -> bool:
    """Whether a server's address is that on which we listen, as far as one can see without asking anybody: names of
    other machines may lead back here as well (for those, see `gateway.hops`).

    Args:
        host, port: where we listen; port 0 is none that is known yet. socket: path of a Unix socket instead.
    """
    address = parse_address(url)
    if address.socket is not None or socket is not None:
        both = address.socket is not None and socket is not None
        return both and os.path.realpath(address.socket or "") == os.path.realpath(socket or "")
    if not port or address.port != port:
        return False
    theirs, ours = address.host.strip("[]").lower(), host.strip("[]").lower()
    everywhere = ours in ("", "0.0.0.0", "::")  # noqa: S104  # compared, not bound
    return theirs == ours or theirs in ("0.0.0.0", "::") or (is_loopback(theirs) and (everywhere or is_loopback(ours)))  # noqa: S104  # as above
