"""The server around the gateway: where it listens, how it begins and ends, TLS, CORS, administrators' endpoints."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trustme
from msgspec.structs import replace
from wires import ask, dial, hear

from gateways import Running, serving
from llamastream import AsyncStreamingClient, StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import PortInUseError, SettingError
from llamastream.gateway import GatewaySettings, Upstreams, create_app
from llamastream.gateway.reloading import Takeover
from llamastream.gateway.server import GatewayServer
from llamastream.gateway.thread import gateway_thread
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
ADMIN = "sk-admin-0123456789"


def request(tokens: int) -> bytes:
    body = {"messages": STORY, "stream": True, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    raw = json.dumps(body).encode()
    return b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(raw) + raw


@pytest.fixture
def source(engine: Engine) -> Upstreams:
    return Upstreams([engine.url])


def ready(running: Running) -> None:
    wait_for(lambda: running.gateway.source.snapshot()[0].models != ())


# -- beginning ------------------------------------------------------------------------------------------------------


def test_inside_another_asyncio_program(source: Upstreams) -> None:
    async def work() -> str:
        before = signal.getsignal(signal.SIGTERM)
        async with GatewayServer(create_app(source), port=0) as server:
            assert signal.getsignal(signal.SIGTERM) is before  # signals are the program's own
            async with AsyncStreamingClient(server.url, temperature=0) as client:
                text = (await client.chat(STORY)).text
            await server.stop()
            await server.stop()
            return text

    assert asyncio.run(work()).startswith("Once upon a time")


def test_a_unix_socket_is_for_its_user_alone(source: Upstreams, tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    for _ in range(2):  # the second finds what the first left
        with gateway_thread(create_app(source), socket=str(path)) as server:
            assert server.url == f"unix://{path}"
            assert path.stat().st_mode & 0o777 == 0o600
            with StreamingClient(server.url, temperature=0) as client:
                assert client.chat(STORY).text
            with pytest.raises(PortInUseError, match=r"g\.sock"), gateway_thread(create_app(source), socket=str(path)):
                pass


def test_a_taken_port_is_named(source: Upstreams) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"127.0.0.1:{port}"), gateway_thread(create_app(source), port=port):
            pass


def test_https(source: Upstreams, tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    settings = GatewaySettings(tls_cert_file=str(tmp_path / "cert.pem"), tls_key_file=str(tmp_path / "key.pem"))
    with serving(source, settings) as gateway:
        assert gateway.url.startswith("https://")
        with StreamingClient(gateway.url, ca_file=str(tmp_path / "ca.pem"), temperature=0) as client:
            assert "".join(client.stream_chat(STORY)).startswith("Once")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with pytest.warns(DeprecationWarning, match="TLSv1_1"):
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        with dial(gateway.url) as plain, pytest.raises((ssl.SSLError, ConnectionError)):
            old.wrap_socket(plain)
        with dial(gateway.url) as plain:
            plain.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
            assert b"200" not in hear(plain).raw


def test_a_reload_says_what_it_took_over(source: Upstreams, tmp_path: Path) -> None:
    def issue() -> trustme.CA:
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        return authority

    issue()
    settings = GatewaySettings(tls_cert_file=str(tmp_path / "cert.pem"), tls_key_file=str(tmp_path / "key.pem"))
    with serving(source, settings) as gateway:
        assert gateway.server.reload(settings) == Takeover()
        issue()
        assert gateway.server.reload(settings) == Takeover(("TLS certificate",))
        with StreamingClient(gateway.url, ca_file=str(tmp_path / "ca.pem")) as client:
            assert client.health().ok
        other = replace(settings, max_body=2048, max_head=2048, tls_cert_file=None, tls_key_file=None)
        took = gateway.server.reload(other)
        assert (took.taken, set(took.fixed)) == (("max_body",), {"max_head", "tls_cert_file", "tls_key_file"})
        assert gateway.gateway.bodies.settings.max_body == 2048
        (tmp_path / "cert.pem").write_text("nonsense")
        with pytest.raises(SettingError, match=r"cert\.pem"):
            gateway.server.reload(settings)
        assert gateway.server.settings.max_body == 2048


@pytest.mark.parametrize(
    ("names", "says"),
    [(("nothing.pem", "nothing.pem"), "nothing.pem"), (("nothing.pem", None), "both"), ((None, "k.pem"), "both")],
)
def test_tls_files_that_cannot_be_used_are_named(source: Upstreams, names: tuple[Any, Any], says: str) -> None:
    settings = GatewaySettings(tls_cert_file=names[0], tls_key_file=names[1])
    with pytest.raises(SettingError, match=says):
        GatewayServer(create_app(source, settings), port=0)


# -- the end --------------------------------------------------------------------------------------------------------


def test_streams_are_finished_at_the_end(source: Upstreams) -> None:
    with ExitStack() as held:
        with serving(source, GatewaySettings(drain_timeout=30)) as gateway:
            ready(gateway)
            streaming, idle = (held.enter_context(dial(gateway.url)) for _ in range(2))
            streaming.sendall(request(2000))
            hear(streaming, lambda raw: raw.count(b"data: ") > 3)
        # the gateway has ended by now, and everything it sent is on its way
        assert hear(streaming).raw.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        assert hear(idle).ended in ("closed", "reset")


@pytest.mark.parametrize("stream", [True, False])
def test_what_does_not_finish_in_time_is_told_so(source: Upstreams, slots_free: Any, stream: bool) -> None:
    with ExitStack() as held:
        with serving(source, GatewaySettings(drain_timeout=0.2)) as gateway:
            ready(gateway)
            connection = held.enter_context(dial(gateway.url))
            data = request(8000)
            connection.sendall(data if stream else data.replace(b'"stream": true', b'"stream": null'))
            if stream:
                hear(connection, lambda raw: raw.count(b"data: ") > 3)
            else:
                wait_for(lambda: gateway.gateway.lanes.active == 1)
            began = time.monotonic()
        assert time.monotonic() - began < 3.0
        heard = hear(connection)
    assert b"the gateway is shutting down" in heard.raw
    assert heard.raw.endswith(b"0\r\n\r\n") if stream else heard.status == 503
    said = heard.raw.split(b"data: ")[-1].partition(b"\n\n")[0] if stream else heard.body
    error = json.loads(said)["error"]
    assert (error["type"], error["code"]) == ("unavailable_error", 503)
    if stream:  # a whole answer is let go of when llama-server looks, which it does not while it is asked for its slots
        assert slots_free() < 1
    assert gateway.served[-1].error == "UnavailableError"


def test_who_waits_in_line_is_told_at_once() -> None:
    with ExitStack() as held:
        engine = held.enter_context(launch(EngineOptions(parallel=1)))
        gateway = held.enter_context(serving(Upstreams([engine.url]), GatewaySettings(drain_timeout=60)))
        ready(gateway)
        running, *waiting = (held.enter_context(dial(gateway.url)) for _ in range(3))
        running.sendall(request(4000))
        hear(running, lambda raw: raw.count(b"data: ") > 3)
        for connection in waiting:
            connection.sendall(request(5))
        wait_for(lambda: gateway.gateway.lanes.waiting == 2)
        task = gateway.server._serving
        assert task is not None
        task.get_loop().call_soon_threadsafe(gateway.server.request_stop)
        for connection in waiting:
            heard = hear(connection)
            assert heard.status == 503
            assert heard.json["error"]["type"] == "unavailable_error"
            assert "no request waits" in heard.json["error"]["message"]
            assert b"retry-after: " in heard.head
        assert gateway.gateway.lanes.active == 1, "they were told while the first still ran"
        assert hear(running).raw.rstrip().endswith(b"data: [DONE]\n\n\r\n0")


def test_a_second_request_to_stop_waits_for_nobody(source: Upstreams) -> None:
    with ExitStack() as held:
        with serving(source, GatewaySettings(drain_timeout=60)) as gateway:
            ready(gateway)
            connection = held.enter_context(dial(gateway.url))
            connection.sendall(request(8000))
            hear(connection, lambda raw: raw.count(b"data: ") > 3)
            task = gateway.server._serving
            assert task is not None
            task.get_loop().call_soon_threadsafe(gateway.server.request_stop)
            began = time.monotonic()
        assert time.monotonic() - began < 3.0
        assert b"the gateway is shutting down" in hear(connection).raw


SCRIPT = """
import sys
from llamastream.gateway import Upstreams, create_app, run_gateway
run_gateway(create_app(Upstreams([sys.argv[1]])), port=0, ready=lambda url: print(url, flush=True))
print("ended", flush=True)
"""


def test_in_the_foreground_a_signal_ends_it_when_streams_have_ended(engine: Engine) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, engine.url], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )
    assert process.stdout is not None
    with process.stdout as said:
        url = said.readline().strip()
        with dial(url) as connection:
            connection.sendall(request(1000))
            begun = hear(connection, lambda raw: raw.count(b"data: ") > 3)
            process.terminate()
            rest = hear(connection)
        assert (begun.raw + rest.raw).count(b"[DONE]") == 1
        assert said.readline() == "ended\n"
    assert process.wait(20) == 0


def test_nothing_is_left_of_a_gateway(source: Upstreams) -> None:
    threads = threading.active_count()
    for _ in range(3):
        with serving(source) as gateway, StreamingClient(gateway.url) as client:
            ready(gateway)
            assert client.chat(STORY, max_tokens=2).text
    wait_for(lambda: threading.active_count() <= threads)


# -- browsers ---------------------------------------------------------------------------------------------------------


def preflight(url: str, origin: str) -> bytes:
    return ask(
        url, "OPTIONS", "/v1/chat/completions", Origin=origin, Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization",
    ).head  # fmt: skip


def test_cors_is_off_where_no_origin_is_named(source: Upstreams) -> None:
    with serving(source) as gateway:
        assert b"access-control" not in preflight(gateway.url, "https://chat.example")
        assert b"access-control" not in ask(gateway.url, "GET", "/health", Origin="https://chat.example").head


def test_cors_for_the_origins_that_are_named(source: Upstreams) -> None:
    settings = GatewaySettings(cors_origins=("https://chat.example",), api_keys="sk-user-0123456789")
    with serving(source, settings) as gateway:
        assert b"access-control-allow-origin: https://chat.example" in preflight(gateway.url, "https://chat.example")
        assert b"access-control-allow-origin" not in preflight(gateway.url, "https://evil.example")
        refused = ask(gateway.url, "GET", "/v1/models", Origin="https://chat.example")
        assert refused.status == 401
        assert b"access-control-allow-origin: https://chat.example" in refused.head


# -- other endpoints --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/rerank"])
def test_what_the_server_cannot_do_is_a_501_that_says_so(source: Upstreams, path: str) -> None:
    with serving(source) as gateway:
        ready(gateway)
        heard = ask(gateway.url, path=path, body={"input": "a", "query": "a", "documents": ["b"]})
    assert (heard.status, heard.json["error"]["type"]) == (501, "not_supported_error")
    assert "Start one for it" in heard.json["error"]["message"]


def test_an_administrator_asks_one_server(engine: Engine) -> None:
    source = Upstreams([engine.url, engine.url.replace("127.0.0.1", "localhost")])
    with serving(source, GatewaySettings(api_keys=f"root:admin:{ADMIN}")) as gateway:
        ready(gateway)

        def get(path: str, instance: str | None = None) -> Any:
            headers: dict[str, Any] = {"Authorization": f"Bearer {ADMIN}"}
            if instance is not None:
                headers["X-Llamastream-Instance"] = instance
            return ask(gateway.url, "GET", path, **headers)

        unnamed = get("/slots")
        assert unnamed.status == 400
        assert "upstream-0, upstream-1" in unnamed.json["error"]["message"]
        assert get("/slots", "nobody").status == 404
        for name in ("upstream-0", "upstream-1"):
            slots = get("/slots", name)
            assert (slots.status, len(slots.json)) == (200, 4)
            assert f"x-llamastream-instance: {name}".encode() in slots.head
        assert get("/lora-adapters", "upstream-0").json == []
        heard = get("/slots/%0d%0aX-Evil:%20a", "upstream-0")
        assert heard.status in (404, 405)


def test_errors_without_a_route_have_the_same_form(source: Upstreams) -> None:
    with serving(source) as gateway:
        missing, wrong = ask(gateway.url, path="/nothing", body={}), ask(gateway.url, "GET", "/v1/chat/completions")
        slash = ask(gateway.url, "GET", "/health/")
    assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")
    assert (wrong.status, wrong.json["error"]["code"]) == (405, 405)
    assert b"allow: POST" in wrong.head
    assert slash.status == 404  # and no redirect to wherever the Host header says
