"""When is a server ready, where does it listen, and what can it do: plain HTTP, answered by the server itself."""

from __future__ import annotations

import http.client
import re
import socket
from typing import Any

import msgspec
import psutil

from llamastream.protocol.toolcalls import tool_questions
from llamastream.tools import ToolSupport
from llamastream.types import Capabilities, LogRecord

# `listening on http://127.0.0.1:8080`, `server is listening on unix:///x.sock`; with port 0 they name the real port
_LISTENING = re.compile(r"listening on (?P<url>https?://\S+?:(?P<port>\d+)|unix://\S+)")
# 2023 to 2024: `HTTP server is listening, hostname: 127.0.0.1, port: 8080`, `HTTP server listening hostname=.. port=..`
_LISTENING_OLD = re.compile(r"server (?:is )?listening\b.*?port[\":= ]+(?P<port>\d+)")


def announced_port(record: LogRecord) -> int | None:
    """The port that a log record announces; None if it announces none, 0 for a Unix socket."""
    match = _LISTENING.search(record.message) or _LISTENING_OLD.search(record.message)
    if match is None:
        return None
    return int(match.groupdict().get("port") or 0)


def listening_ports(pid: int) -> set[int]:
    """The TCP ports that a process listens on, as the system knows them (for servers that do not say)."""
    try:
        connections = psutil.Process(pid).net_connections(kind="tcp")
    except psutil.Error:
        return set()
    return {c.laddr.port for c in connections if c.status == psutil.CONN_LISTEN and c.laddr}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise


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
        # a server on all addresses is reached on the loopback one
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        shown = f"[{host}]" if ":" in host else host
        return f"{'https' if self.tls else 'http'}://{shown}:{self.port}"

    def get(self, path: str, *, api_key: str | None = None, timeout: float = 5.0) -> tuple[int, bytes]:
        """GET a path: status and body (at most 1 MiB). Raises as `request`."""
        return self.request("GET", path, api_key=api_key, timeout=timeout)

    def request(
        self, method: str, path: str, body: Any = None, *, api_key: str | None = None, timeout: float = 5.0
    ) -> tuple[int, bytes]:
        """Any request: status and body of the answer (at most 1 MiB).

        Args:
            body: sent as JSON; None: nothing. timeout: seconds for connecting, and for each wait for bytes.

        Raises:
            OSError: no connection, or it broke.
        """
        connection = self._connection(timeout)
        headers = {"Connection": "close"} | ({"Authorization": f"Bearer {api_key}"} if api_key else {})
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            connection.request(method, path, None if body is None else msgspec.json.encode(body), headers)
            response = connection.getresponse()
            return response.status, response.read(1 << 20)
        except http.client.HTTPException as error:
            raise ConnectionError(f"no HTTP answer: {error!r}") from None
        finally:
            connection.close()

    def _connection(self, timeout: float) -> http.client.HTTPConnection:
        if self.socket is not None:
            return _UnixConnection(self.socket, timeout)
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104
        if self.tls:
            import ssl

            # our own child, reached over loopback; its certificate names the public host
            context = ssl.create_default_context()
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return http.client.HTTPSConnection(host, self.port, timeout=timeout, context=context)
        return http.client.HTTPConnection(host, self.port, timeout=timeout)


def is_healthy(address: ServerAddress, timeout: float = 2.0) -> bool:
    """Whether `/health` says 200: the model is loaded."""
    try:
        return address.get("/health", timeout=timeout)[0] == 200
    except OSError:
        return False


def read_capabilities(address: ServerAddress, api_key: str | None, build: str = "") -> Capabilities:
    """Ask a ready server what it can do; what an old server does not answer counts as absent.

    Args:
        build: the version as known otherwise, for servers that do not tell theirs.
    """
    props = _json(address, "/props", api_key)
    slots = _json(address, "/slots", api_key)
    first = slots[0] if isinstance(slots, list) and slots and isinstance(slots[0], dict) else {}
    props = props if isinstance(props, dict) else {}
    defaults = props.get("default_generation_settings")
    n_ctx = defaults.get("n_ctx", 0) if isinstance(defaults, dict) else 0
    caps = props.get("chat_template_caps")
    told = str(props.get("build_info", ""))
    return Capabilities(
        # a wheel built without git says `b0-unknown`
        build=told if told and "unknown" not in told else build or told,
        slots=int(props.get("total_slots", 0)) or (len(slots) if isinstance(slots, list) else 0),
        n_ctx=int(first.get("n_ctx") or n_ctx or 0),
        slots_endpoint=isinstance(slots, list),
        metrics_endpoint=_status(address, "/metrics", api_key) == 200,
        # without an id: 400 where the endpoint exists, 404 where it does not
        reattach=_status(address, "/v1/stream", api_key) == 400,
        chat_template_caps={k: v for k, v in caps.items() if isinstance(v, bool)} if isinstance(caps, dict) else {},
        tools=_tool_support(address, props, api_key),
        model_alias=str(props.get("model_alias", "")),
        model_path=str(props.get("model_path", "")),
    )


def _tool_support(address: ServerAddress, props: dict[str, Any], api_key: str | None) -> ToolSupport:
    questions = tool_questions(props)
    question = next(questions)
    while True:
        try:
            reply = address.request("POST", *question, api_key=api_key)
        except OSError:
            reply = (0, b"")
        try:
            question = questions.send(reply)
        except StopIteration as end:
            support: ToolSupport = end.value
            return support


def _json(address: ServerAddress, path: str, api_key: str | None) -> Any:
    try:
        status, body = address.get(path, api_key=api_key)
        return msgspec.json.decode(body) if status == 200 else None
    except (OSError, msgspec.DecodeError):
        return None


def _status(address: ServerAddress, path: str, api_key: str | None) -> int:
    try:
        return address.get(path, api_key=api_key)[0]
    except OSError:
        return 0
