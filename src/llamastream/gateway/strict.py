"""Heads of requests that are refused although the parser takes them: what another reader of the same bytes, such as a
proxy before us, could read in another way. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class HeadError(Exception):
    """The head is not allowed; `status` is that of the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


MAX_FIELDS = 128


def check_head(version: str, url: bytes, headers: Sequence[tuple[bytes, bytes]]) -> None:
    """Raise what is wrong with it. The names of the headers are in lower case.

    Raises:
        HeadError: it is not allowed.
    """
    if version not in ("1.0", "1.1"):
        raise HeadError(400, "only HTTP 1.0 and 1.1 are spoken here")
    if len(headers) > MAX_FIELDS:
        raise HeadError(431, f"the request has more than {MAX_FIELDS} headers")
    if not url.startswith(b"/") and not url.startswith((b"http://", b"https://")) and url != b"*":
        raise HeadError(400, "the request's target is no path")
    hosts = lengths = codings = 0
    for name, value in headers:
        if name == b"host":
            hosts += 1
        elif name == b"content-length":
            lengths += 1
            if not value.isdigit() or not value.isascii():
                raise HeadError(400, "Content-Length is no number")
        elif name == b"transfer-encoding":
            codings += 1
            if value.strip().lower() != b"chunked":
                raise HeadError(400, "the only transfer coding that is known here is chunked")
            if version == "1.0":
                raise HeadError(400, "HTTP/1.0 knows no Transfer-Encoding")
    if hosts > 1 or (not hosts and version == "1.1"):
        raise HeadError(400, "a request has exactly one Host header")
    if lengths > 1 or codings > 1 or (lengths and codings):
        raise HeadError(400, "a request has one Content-Length or one Transfer-Encoding, not both")
