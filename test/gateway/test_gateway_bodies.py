"""The bodies of requests: how much of them all together may be here at the same time, and where it goes afterwards."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from wires import ask, dial, hear

from gateways import Running, serving
from llamastream.engine import Engine
from llamastream.errors import SettingError
from llamastream.gateway import GatewaySettings, Upstreams, create_app
from llamastream.settings import load
from polling import wait_for

MIB = 1 << 20


@pytest.fixture(scope="module")
def gateway(engine: Engine) -> Iterator[Running]:
    with serving(Upstreams([engine.url]), GatewaySettings(max_bodies=3 * MIB, max_body=2 * MIB)) as running:
        yield running


def begin(gateway: Running, stack: ExitStack, sent: int, length: int = 2 * MIB) -> socket.socket:
    """A request of which so many bytes are sent, and the rest is not."""
    connection = stack.enter_context(dial(gateway.url))
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
    connection.sendall(b" " * sent)
    return connection


def test_bodies_share_a_bound_and_small_ones_do_not_count(gateway: Running) -> None:
    bodies = gateway.gateway.bodies
    with ExitStack() as stack:
        begin(gateway, stack, 3 * MIB // 2)
        wait_for(lambda: bodies.held == 3 * MIB // 2)
        with begin(gateway, stack, 3 * MIB // 2 + 65536) as refused:
            heard = hear(refused)
            assert (heard.status, heard.ended) == (503, "closed")
            assert b"retry-after: " in heard.head
            assert "max_bodies" in heard.json["error"]["message"]
        wait_for(lambda: bodies.held == 3 * MIB // 2)
        assert ask(gateway.url, body={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}).status == 200
    wait_for(lambda: bodies.held == 0)


def test_a_body_counts_until_its_answer_is_over(gateway: Running) -> None:
    bodies = gateway.gateway.bodies
    body = {"prompt": "Once", "stream": True, "max_tokens": 8000, "ignore_eos": True, "user": "x" * MIB}
    with dial(gateway.url) as connection:
        raw = json.dumps(body).encode()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw)
        hear(connection, lambda raw: raw.count(b"data: ") > 3)
        assert bodies.held == len(raw)
    wait_for(lambda: bodies.held == 0)


def test_one_body_may_not_be_larger_than_all_together(engine: Engine) -> None:
    with serving(Upstreams([engine.url]), GatewaySettings(max_bodies=MIB)) as gateway, ExitStack() as stack:
        assert hear(begin(gateway, stack, 0)).status == 413


@pytest.mark.parametrize("origin", ["notanorigin", "https://a.example/", "a.example", "https://A.example", "https://"])
def test_what_is_no_origin_is_refused(origin: str, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is no origin; allowed: SCHEME://HOST"):
        load(GatewaySettings, given={"cors_origins": (origin,)}, environ={"HOME": str(tmp_path)})
    with pytest.raises(SettingError, match="is no origin"):
        create_app(Upstreams(["http://127.0.0.1:1"]), GatewaySettings(cors_origins=(origin,)))


@pytest.mark.parametrize(
    "origin", ["*", "https://a.example", "http://127.0.0.1:3000", "http://[::1]:3000", "tauri://x"]
)
def test_origins(origin: str) -> None:
    create_app(Upstreams(["http://127.0.0.1:1"]), GatewaySettings(cors_origins=(origin,)))
