"""What a gateway takes over from other settings while it serves, and what it does not. Pure."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from llamastream.gateway.settings import GatewaySettings

LIVE = frozenset(
    {
        "api_keys",
        "body_timeout",
        "drain_timeout",
        "keys_file",
        "max_bodies",
        "max_body",
        "queue_limit",
        "queue_timeout",
        "strict_model",
        "tls_cert_file",
        "tls_key_file",
    }
)
"""Settings that `GatewayServer.reload` takes over."""
OF_KEYS = frozenset({"api_keys", "keys_file"})
OF_TLS = frozenset({"tls_cert_file", "tls_key_file"})


class Takeover(Struct, frozen=True):
    """What a reload has done.

    Attributes:
        taken: what is new now, in words for people. fixed: names of settings that have changed, but stay as they are
            until it is started again.
    """

    taken: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()


def live_part(before: GatewaySettings, wanted: GatewaySettings) -> tuple[GatewaySettings, tuple[str, ...]]:
    """The settings to go on with, and the names of those that cannot change now.

    TLS cannot be switched on or off: then its files count among these.
    """
    live = LIVE
    if (before.tls_cert_file is None) != (wanted.tls_cert_file is None):
        live = LIVE - OF_TLS
    other = [name for name in before.__struct_fields__ if getattr(wanted, name) != getattr(before, name)]
    fixed = tuple(name for name in other if name not in live)
    return replace(wanted, **{name: getattr(before, name) for name in fixed}), fixed


def taken_over(before: GatewaySettings, after: GatewaySettings, *, keys: bool, certificate: bool) -> tuple[str, ...]:
    """What has changed, in words for people: the settings by their names, the keys and the certificate by what they
    are, since their files may have been replaced.

    Args:
        keys, certificate: whether they are others than before.
    """
    names = [
        name
        for name in before.__struct_fields__
        if name not in OF_KEYS | OF_TLS and getattr(after, name) != getattr(before, name)
    ]
    return (*(["API keys"] if keys else []), *(["TLS certificate"] if certificate else []), *names)
