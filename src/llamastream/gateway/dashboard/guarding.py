"""Who may see the dashboard's data: not pages of strangers in the same browser, nor names that lead here by a trick.

With API keys a request needs one with the scope `admin`, which a browser never adds by itself. Without keys it is
enough to be on this machine, so everything else has to be told apart by what a browser says of its requests.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from msgspec import Struct

from llamastream.gateway.exposure import is_loopback

MARK = b"x-llamastream-dashboard"
"""Header of all requests of the page: a browser lets no page of another origin send it without asking us first."""


class Asked(Struct, frozen=True, kw_only=True):
    """What a request says of where it comes from. `client`: its address, "" over a Unix socket."""

    client: str = ""
    host: str = ""
    origin: str = ""
    site: str = ""
    marked: bool = False


def asked_of(headers: Iterable[tuple[bytes, bytes]], client: str) -> Asked:
    """The same from the headers of a request."""
    found = {name: value.decode("latin-1") for name, value in headers}
    return Asked(
        client=client,
        host=found.get(b"host", ""),
        origin=found.get(b"origin", ""),
        site=found.get(b"sec-fetch-site", ""),
        marked=MARK in found,
    )


def why_refused(asked: Asked, *, keyed: bool) -> str | None:
    """Why a request for data, or one that changes something, is not answered; None: it is. `keyed`: there are keys, and
    the request's has been checked."""
    if not asked.marked:
        return f"this is for the page at /dashboard; programs send the header {MARK.decode()}: 1"
    if asked.site not in ("", "same-origin", "none"):
        return "pages of other origins may not ask for this"
    if asked.origin and urlsplit(asked.origin).netloc.lower() != asked.host.lower():
        return f"pages of {asked.origin[:200]} may not ask for this: they come from another origin"
    if keyed:
        return None
    if asked.client and not is_loopback(asked.client.removeprefix("::ffff:")):
        return "without API keys the dashboard is for this machine only: set keys, one with the scope admin"
    if asked.client and not _is_own_name(asked.host):
        return (
            f"without API keys the dashboard is reached as localhost or 127.0.0.1, and not as {asked.host[:200]!r}: a "
            "page of a stranger could use that name"
        )
    return None


def _is_own_name(host: str) -> bool:
    """Whether a `Host` header names this machine, with names that nobody else can lead here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return is_loopback(name)
