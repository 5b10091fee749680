"""When is a server ready, where does it listen, and what can it do: plain HTTP, answered by the server itself."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, TypeVar

import msgspec
import psutil

from llamastream.engine.address import ServerAddress
from llamastream.protocol.tasks import task_questions
from llamastream.protocol.toolcalls import Question, Reply, tool_questions
from llamastream.types import Capabilities, LogRecord

T = TypeVar("T")

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
        tools=_answered(address, api_key, tool_questions(props)),
        model_alias=str(props.get("model_alias", "")),
        model_path=str(props.get("model_path", "")),
        tasks=_answered(address, api_key, task_questions()),
    )


def _answered(address: ServerAddress, api_key: str | None, questions: Generator[Question, Reply, T]) -> T:
    """Ask a server all of the questions; what they come to."""
    question = next(questions)
    while True:
        try:
            reply = address.request("POST", *question, api_key=api_key)
        except OSError:
            reply = (0, b"")
        try:
            question = questions.send(reply)
        except StopIteration as end:
            found: T = end.value
            return found


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
