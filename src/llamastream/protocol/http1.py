"""HTTP/1.1 as bytes: requests written, responses read (llhttp does the parsing, through httptools).

`ResponseReader` knows no sockets. Feed it what arrived; it collects the header and hands out the de-chunked
body. Source: RFC 9112 (message framing), RFC 9110 (fields).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import httptools

from llamastream.errors import EventTooLargeError, ProtocolError

MAX_HEADER_BYTES = 64 * 1024
"""Limit for the header block of a response (all fields together)."""

USER_AGENT = "llamastream"
_UNFIT = re.compile("[\r\n\0]")


def build_request(method: str, target: str, host: str, headers: Mapping[str, str], body: bytes | None = None) -> bytes:
    """One request as bytes, header and body.

    Raises:
        ProtocolError: a header name or value contains a line break or another control character.
    """
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}"]
    if not any(name.lower() == "user-agent" for name in headers):
        lines.append(f"User-Agent: {USER_AGENT}")
    for name, value in headers.items():
        if not name or ":" in name or _UNFIT.search(name) or _UNFIT.search(value):
            raise ProtocolError(f"header {name!r} contains characters that are not allowed in a header")
        lines.append(f"{name}: {value}")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    try:
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
    except UnicodeEncodeError as error:
        raise ProtocolError(f"a header contains {error.object[error.start]!r}; use ASCII characters") from None
    return head + body if body else head


class ResponseReader:
    """Reads exactly one response.

    Attributes:
        status: the status code, 0 until the header is complete.
        reason: the reason phrase.
        headers: field names in lower case; values of repeated fields joined with ", ".
        header_complete, complete: how far the response is.
        body_bytes: length of the de-chunked body so far.
        trailing: bytes came after the end of the response (the connection must not be used again).
        failure: why the response cannot be read any further, or None. What came before it is still handed out.
    """

    def __init__(self) -> None:
        self.status = 0
        self.reason = ""
        self.headers: dict[str, str] = {}
        self.header_complete = False
        self.complete = False
        self.keep_alive = False
        self.trailing = False
        self.failure: ProtocolError | None = None
        self.body_bytes = 0
        self._body: list[bytes] = []
        self._body_end = 0
        self._between_chunks = False
        # Called for each piece of body: an append and nothing else, since it is called for every chunk of a stream.
        self.on_body = self._body.append
        self._header_bytes = 0
        self._started = False
        self._first_bytes = b""
        # Parser and reader refer to each other, so there is one only while it is needed: nothing of an ended response
        # has to wait for the garbage collector.
        self._parser: httptools.HttpResponseParser | None = None

    # -- input ------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the connection; returns the pieces of de-chunked body that they complete.

        Does not raise: what is not HTTP/1.1, or a header block over `MAX_HEADER_BYTES`, is told by `failure`.
        """
        if not self._started and data:
            self._first_bytes = data[:64]
            self._started = True
            self._parser = httptools.HttpResponseParser(self)
        if not self.header_complete:
            self._header_bytes += len(data)
        parser = self._parser
        if parser is None:
            self.trailing = self.trailing or bool(data)
            return []
        self._between_chunks = False
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.failure = ProtocolError("the server switched to another protocol (101), which nobody asked for")
        except httptools.HttpParserError as error:
            if self.complete:
                self.trailing = True
            else:
                self.failure = ProtocolError(self._describe(error))
        if not self.header_complete and self._header_bytes > MAX_HEADER_BYTES:
            self.failure = EventTooLargeError(f"the response header is larger than {MAX_HEADER_BYTES} bytes")
        if self.complete or self.failure is not None:
            self.leave()
        if not self._body:
            return []
        body = self._body[: self._body_end] if self.complete else self._body.copy()
        self._body.clear()
        # Where the body's last bytes are two LF and the connection's are those and CRLF, the CRLF is no body: it ends a
        # chunk, and nothing of the next has come (a size line holds no LF but its last).
        self._between_chunks = data.endswith(b"\n\n\r\n") and bool(body) and body[-1].endswith(b"\n\n")
        self.body_bytes += sum(map(len, body))
        return body

    @property
    def between_chunks(self) -> bool:
        """Whether all bytes so far end with a whole chunk of the body, so that the next bytes begin a new one."""
        return self._between_chunks and self.failure is None and not self.complete

    def feed_eof(self) -> bool:
        """The connection was closed by the server. True if that is a proper end of this response."""
        self.leave()
        if self.complete:
            return True
        if self.header_complete and not self._framed:
            # RFC 9112 section 6.3: without a length and without chunks the body ends with the connection.
            self.complete = True
            self.keep_alive = False
            return True
        return False

    def leave(self) -> None:
        """No more of it is read."""
        self._parser = None

    @property
    def _framed(self) -> bool:
        return "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()

    def _describe(self, error: Exception) -> str:
        if self.header_complete:
            return f"the response body is not framed as HTTP/1.1 requires ({error})"
        start = self._first_bytes[:40]
        hint = ""
        if start.startswith((b"\x15\x03", b"\x16\x03")):
            hint = "; these bytes are TLS: use https:// in the base URL"
        return f"the server does not speak HTTP/1.1 ({error}); its first bytes: {start!r}{hint}"

    # -- callbacks of httptools --------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        if self.complete:
            self.trailing = True  # a second response that nobody asked for; the callbacks below ignore it

    def on_status(self, status: bytes) -> None:
        if self.complete:
            return
        self.reason += status.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.complete:
            return
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        if key in self.headers:
            text = f"{self.headers[key]}, {text}"
        self.headers[key] = text

    def on_headers_complete(self) -> None:
        if self.complete:
            return
        assert self._parser is not None
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            # An interim response (100 Continue, 103 Early Hints): the real one follows.
            self.headers.clear()
            self.reason = ""
            return
        self.status = status
        self.keep_alive = self._parser.should_keep_alive()
        self.header_complete = True

    def on_message_complete(self) -> None:
        if self.header_complete:
            self.complete = True
            self._body_end = len(self._body)
