"""The files of the page, and the headers that keep everything else out of it."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.resources import files

from msgspec import Struct

INDEX = "index.html"
_TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}

_POLICY = (
    "default-src 'self'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types 'none'"
)
PROTECTION = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
"""Headers of everything that the dashboard answers."""


class File(Struct, frozen=True):
    """A file as it is sent."""

    content: bytes
    type: bytes
    tag: bytes


@lru_cache(maxsize=1)
def all_files() -> dict[str, File]:
    """All files by their names."""
    found = {}
    for entry in files(__package__).joinpath("static").iterdir():
        suffix = entry.name[entry.name.rfind(".") :]
        if suffix in _TYPES:
            content = entry.read_bytes()
            tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()
            found[entry.name] = File(content, _TYPES[suffix], tag)
    return found
