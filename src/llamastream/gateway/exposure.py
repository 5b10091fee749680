"""Who can reach an address, and whether that is meant."""

from __future__ import annotations

import ipaddress

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
