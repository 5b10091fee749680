"""Where a server is: base URLs in all the spellings that people use, taken apart once."""

from __future__ import annotations

import re
from typing import Literal
from urllib.parse import unquote, urlsplit

from msgspec import Struct

from llamastream.errors import SettingError

_ALLOWED = (
    "allowed: http://HOST[:PORT], https://HOST[:PORT], unix:///PATH/TO.sock, http+unix://%2FPATH%2FTO.sock "
    "(with or without a path such as /v1)"
)


class Address(Struct, frozen=True):
    """A server's address.

    Attributes:
        scheme: `http` or `https` (what is spoken; over a Unix socket it is http).
        host, port: the TCP address; for a Unix socket host is "localhost" and port 0.
        socket: path of the Unix socket, or None.
        prefix: path before the endpoints, without a trailing slash and without `/v1` ("" mostly).
    """

    scheme: Literal["http", "https"]
    host: str
    port: int
    socket: str | None = None
    prefix: str = ""

    @property
    def host_header(self) -> str:
        """The `Host` header: default ports are left out, IPv6 addresses bracketed."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.socket is not None or self.port == (443 if self.scheme == "https" else 80):
            return host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The canonical base URL, without `/v1`."""
        if self.socket is not None:
            return f"unix://{self.socket}"
        return f"{self.scheme}://{self.host_header}{self.prefix}"

    def target(self, path: str) -> str:
        """The request target of an endpoint path such as `/v1/chat/completions`."""
        return self.prefix + path


def parse_address(url: str, source: str = "") -> Address:
    """Take a base URL apart; a trailing `/`, `/v1` or `/v1/` is accepted and dropped. `source` says where it came from.

    Raises:
        SettingError: no scheme, an unknown scheme, no host, a port out of range, a query or a fragment,
            credentials in the URL, or characters that do not belong into a request line.
    """
    shown = f"base_url {url!r} from {source}" if source else f"base_url {url!r}"
    if not isinstance(url, str) or not url.strip():
        raise SettingError(f"{shown} is empty; {_ALLOWED}")
    text = url.strip()
    if any(c <= " " or c == "\x7f" for c in text):
        raise SettingError(f"{shown} contains spaces or control characters; {_ALLOWED}")
    if "://" not in text:
        raise SettingError(f"{shown} has no scheme; did you mean http://{text.lstrip('/')} ? {_ALLOWED}")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise SettingError(f"{shown} cannot be read ({error}); {_ALLOWED}") from None
    if parts.query or parts.fragment:
        raise SettingError(f"{shown} has a query or a fragment; {_ALLOWED}")
    if parts.username is not None or parts.password is not None:
        shown = f"base_url for {parts.hostname!r}" + (f" from {source}" if source else "")
        raise SettingError(f"{shown} carries credentials; pass the key as api_key instead")

    scheme = parts.scheme.lower()
    if scheme == "unix":
        path = unquote(parts.netloc + parts.path)
        return _unix(shown, path, "")
    if scheme == "http+unix":
        return _unix(shown, unquote(parts.netloc), _prefix(parts.path))
    if scheme not in ("http", "https"):
        raise SettingError(f"{shown} has the scheme {scheme!r}; {_ALLOWED}")
    if not parts.hostname:
        raise SettingError(f"{shown} names no host; {_ALLOWED}")
    if ":" not in parts.hostname:
        _check_labels(shown, parts.hostname)
    if port == 0:
        raise SettingError(f"{shown} has port 0; allowed: 1 to 65535")
    if not (parts.path.isascii() and parts.hostname.isprintable()):
        raise SettingError(f"{shown} has characters that must be percent-encoded; {_ALLOWED}")
    if parts.path.rstrip("/").endswith(("/chat/completions", "/completions", "/completion", "/health", "/models")):
        raise SettingError(f"{shown} names an endpoint; give the address before it, with or without /v1")
    default_port = 443 if scheme == "https" else 80
    return Address(
        scheme="https" if scheme == "https" else "http",
        host=parts.hostname,
        port=port or default_port,
        prefix=_prefix(parts.path),
    )


def _check_labels(shown: str, host: str) -> None:
    """What the name service would refuse with an error that no caller expects."""
    labels = host.removesuffix(".").split(".")
    if not all(labels):
        raise SettingError(f"{shown} has a host name with two dots in a row, or one in front; {_ALLOWED}")
    try:
        long = next((label for label in labels if len(label.encode("ascii" if host.isascii() else "idna")) > 63), None)
    except UnicodeError:  # too long as ASCII, or characters that no host name may have
        raise SettingError(f"{shown} has a host name that cannot be (each part: 63 characters at most)") from None
    if long is not None:
        raise SettingError(f"{shown} has a host name with a part of {len(long)} characters; allowed: 63 at most")


def _prefix(path: str) -> str:
    return path.rstrip("/").removesuffix("/v1").rstrip("/")


def _unix(shown: str, path: str, prefix: str) -> Address:
    if not path.startswith("/"):
        raise SettingError(f"{shown} needs an absolute socket path; {_ALLOWED}")
    return Address(scheme="http", host="localhost", port=0, socket=path, prefix=prefix)


def parse_addresses(urls: str, source: str = "") -> tuple[Address, ...]:
    """Take one or several base URLs apart, separated by spaces or commas. Raises as `parse_address`."""
    # Only where another address begins: the path of a socket may have spaces and commas.
    return tuple(parse_address(url, source) for url in re.split(r"[\s,]+(?=[a-z+]+://)", urls.strip().rstrip(",")))
