"""Where a server answers, and short questions to it: over a connection of its own, blocking, with a deadline."""

from __future__ import annotations

from socket import AF_UNIX, SOCK_STREAM, create_connection
from socket import socket as Socket  # noqa: N812 - a field below has that name
from time import monotonic
from typing import Any

import msgspec

from llamastream.protocol.http1 import ResponseReader, build_request

MAX_BODY = 1 << 20
"""Bytes of an answer that are read."""


class ServerAddress(msgspec.Struct, frozen=True):
    """Where a server answers: host and port, or a Unix socket path; `tls` if it was started with a certificate."""

    host: str = ""
    port: int = 0
    socket: str | None = None
    tls: bool = False

    @property
    def url(self) -> str:
        """`http://host:port` (brackets around IPv6), or `unix:///path`."""
        if self.socket is not None:
            return f"unix://{self.socket}"
        host = self._reached
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{self.port}"

    @property
    def _reached(self) -> str:
        # a server on all addresses is reached on the loopback one
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104

    def get(self, path: str, *, api_key: str | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
        """GET a path: status and body (at most 1 MiB). Raises as `request`."""
        return self.request("GET", path, api_key=api_key, timeout=timeout)

    def request(
        self, method: str, path: str, body: Any = None, *, api_key: str | None = None, timeout: float = 5.0
    ) -> tuple[int, bytes]:
        """Any request: status and body of the answer (at most 1 MiB).

        Args:
            body: sent as JSON; None: nothing. timeout: seconds for all of it.

        Raises:
            OSError: no connection, it broke, the time is up, or what answers does not speak HTTP.
        """
        headers = {"Connection": "close"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        data = build_request(
            method, path, self.host or "localhost", headers, None if body is None else msgspec.json.encode(body)
        )
        end = monotonic() + timeout
        with self._connect(timeout) as connection:
            connection.settimeout(_left(end))
            connection.sendall(data)
            return _read(connection, end)

    def _connect(self, timeout: float) -> Socket:
        if self.socket is not None:
            connection = Socket(AF_UNIX, SOCK_STREAM)
            try:
                connection.settimeout(timeout)
                connection.connect(self.socket)
            except OSError:
                connection.close()
                raise
            return connection
        connection = create_connection((self._reached, self.port), timeout)
        if not self.tls:
            return connection
        import ssl

        # our own child, reached over loopback; its certificate names the public host
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            return context.wrap_socket(connection)
        except OSError:
            connection.close()
            raise


def _left(end: float) -> float:
    left = end - monotonic()
    if left <= 0:
        raise TimeoutError("the time is up")
    return left


def _read(connection: Socket, end: float) -> tuple[int, bytes]:
    reader = ResponseReader()
    body = bytearray()
    while not reader.complete and len(body) < MAX_BODY:
        connection.settimeout(_left(end))
        data = connection.recv(65536)
        if not data:
            if not reader.feed_eof():
                raise ConnectionError("the connection ended in the middle of the answer")
            break
        body += b"".join(reader.feed(data))
        if reader.failure is not None:
            raise ConnectionError(f"no HTTP answer: {reader.failure.message}")
    return reader.status, bytes(body[:MAX_BODY])
