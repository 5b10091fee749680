"""`llamastream serve` with the gateway: before its own servers, and before those of somebody else."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
from wires import ask, dial

from commandline import LONG, run
from llamastream.client import StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import AuthenticationError
from polling import wait_for
from ports import free_port
from serving import Serving, busy, environment, fleet_of_two, runtime_directory, serving

QUESTION = [{"role": "user", "content": LONG.question}]
KEY = "sk-0123456789abcdef"


def settings_file(environ: dict[str, str], text: str) -> dict[str, str]:
    path = Path(environ["HOME"]) / "settings.toml"
    path.write_text(text)
    return {**environ, "LLAMASTREAM_CONFIG": str(path)}


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """Two servers behind the gateway, for the tests that leave them as they were."""
    with runtime_directory() as runtime, fleet_of_two(environment(tmp_path_factory.mktemp("home"), runtime)) as started:
        yield started


# -- before its own servers -----------------------------------------------------------------------------------------


def test_the_gateway_listens_and_nobody_passes_it_by(fronted: Serving) -> None:
    ready = fronted.ready()
    assert ready["url"].startswith("http://127.0.0.1:")
    paths = [Path(urlsplit(each["url"]).path) for each in ready["instances"]]
    assert len(set(paths)) == 2
    for path in paths:
        assert path.is_socket()
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    with StreamingClient(ready["url"]) as client:
        assert client.chat(QUESTION, temperature=0).text == LONG.answer
        assert "".join(client.stream_chat(QUESTION, temperature=0)) == LONG.answer


def test_what_it_says_of_itself(fronted: Serving) -> None:
    url = fronted.ready()["url"]
    shown = fronted.status()
    assert (shown["url"], shown["waiting"]) == (url, 0)
    assert url in fronted.command("status").stdout
    fleet = ask(url, "GET", "/fleet").json
    assert [each["id"] for each in fleet["instances"]] == ["demo-0", "demo-1"]
    assert (fleet["name"], fleet["pid"]) == (shown["name"], shown["pid"])
    assert ask(url, "GET", "/health").json == {"status": "ok", "ready": 2, "instances": 2}
    metrics = ask(url, "GET", "/metrics").body.decode()
    assert 'llamastream_instance_state{instance="demo-1",state="ready"} 1.0' in metrics


def test_each_request_is_a_record(fronted: Serving) -> None:
    answer = ask(fronted.ready()["url"], body={"messages": QUESTION, "max_tokens": 3}, X_Request_Id="mine-1")
    assert answer.status == 200
    record = fronted.expect("request", request_id="mine-1")
    assert (record["status"], record["route"], record["model"]) == (200, "/v1/chat/completions", "demo")
    assert record["completion_tokens"] == 3
    assert "mine-1" in fronted.command("logs", "--json").stdout


def test_a_stream_outlives_a_restart_and_a_killed_server(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet:
        url = fleet.ready()["url"]
        plain = StreamingClient(url, recovery="off")
        stream = plain.stream_chat(QUESTION, temperature=0)
        pieces = iter(stream)
        text = next(pieces)
        for victim in fleet.status()["instances"]:
            if victim["in_flight"]:
                os.kill(victim["pid"], signal.SIGKILL)
        assert text + "".join(pieces) == LONG.answer
        assert fleet.command("restart", "--rolling").returncode == 0
        assert plain.chat(QUESTION, temperature=0).text == LONG.answer


def test_sigterm_lets_a_stream_through_the_gateway_finish(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet:
        url = fleet.ready()["url"]
        stream = StreamingClient(url, recovery="off").stream_chat(QUESTION, temperature=0)
        pieces = iter(stream)
        text = next(pieces)
        fleet.process.terminate()
        fleet.expect("stopping")
        wait_for(lambda: refused(url))
        assert text + "".join(pieces) == LONG.answer
        assert fleet.end() == 0


def refused(url: str) -> bool:
    try:
        ask(url, "GET", "/health")
    except OSError:
        return True
    return False


def test_stop_now_cuts_what_runs_through_the_gateway(environ: dict[str, str]) -> None:
    with fleet_of_two(environ) as fleet, busy(fleet.ready()["url"]):
        assert fleet.command("stop", "--now").returncode == 0
        assert fleet.end() == 0


def test_a_taken_port_is_told_before_any_server_is_started(environ: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(environ, "serve", "--port", str(port), "--json")
    assert done.returncode == 1
    assert f"the gateway cannot listen on 127.0.0.1:{port}" in done.stderr + done.stdout
    assert '"event":"state"' not in done.stdout


def test_models_of_the_settings_file_share_the_gateway(environ: dict[str, str]) -> None:
    environ = settings_file(environ, "[models.a]\n[models.b]\nparallel = 2\n")
    with serving(environ, "--port", "0") as fleet:
        url = fleet.ready()["url"]
        for name in ("a", "b"):
            assert ask(url, body={"messages": QUESTION, "model": name, "max_tokens": 2}).json["model"] == name
        assert "there are: a, b" in ask(url, body={"messages": QUESTION, "model": "c"}).json["error"]["message"]


def test_models_at_different_addresses_need_no_gateway(environ: dict[str, str]) -> None:
    environ = settings_file(environ, "[models.a]\n[models.b]\nport = 9000\n")
    done = run(environ, "serve")
    assert done.returncode == 1
    assert "port = 9000 of the model 'b' differs from 8080 of 'a'" in done.stderr
    assert "--no-gateway" in done.stderr


def test_keys_settings_and_bounds_are_read_anew(environ: dict[str, str]) -> None:
    keys = Path(environ["HOME"]) / "keys"
    keys.write_text(f"one:inference:{KEY}\n")
    environ = settings_file(environ, f'[gateway]\nkeys_file = "{keys}"\n')
    with serving(environ, "--port", "0") as fleet:
        url = fleet.ready()["url"]
        client = StreamingClient(url, api_key=KEY)
        stream = client.stream_chat(QUESTION, temperature=0)
        pieces = iter(stream)
        text = next(pieces)
        keys.write_text(f"two:inference:{KEY[::-1]}\n")
        Path(environ["LLAMASTREAM_CONFIG"]).write_text(
            f'[gateway]\nkeys_file = "{keys}"\nstrict_model = true\nmax_head = 2048\n'
        )
        done = fleet.command("reload")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == (
            "taken over: API keys, strict_model; for other values of max_head ([gateway]) start `serve` again"
        )
        again = fleet.command("reload")
        assert "taken over" not in again.stdout
        assert text + "".join(pieces) == LONG.answer  # what runs is not asked again
        with pytest.raises(AuthenticationError):
            client.chat(QUESTION)
        body = {"messages": QUESTION, "model": "other"}
        assert ask(url, body=body, Authorization=f"Bearer {KEY[::-1]}").status == 404
        keys.write_text("nonsense\n")
        assert fleet.command("reload").returncode == 1
        assert ask(url, body=body, Authorization=f"Bearer {KEY[::-1]}").status == 404
        log = "\n".join(str(event) for event in fleet.events)
        assert KEY not in log
        assert KEY[::-1] not in log


def test_the_servers_key_is_the_gateways(environ: dict[str, str]) -> None:
    key = Path(environ["HOME"]) / "key"
    key.write_text(KEY + "\n")
    with serving(environ, "--port", "0", "--api-key-file", str(key)) as fleet:
        url = fleet.ready()["url"]
        assert ask(url, body={"messages": QUESTION}).status == 401
        assert ask(url, "GET", "/slots", Authorization=f"Bearer {KEY}").status == 200
        key.write_text("short\n")
        done = run(environ, "serve", "--port", "0", "--api-key-file", str(key))
        assert done.returncode == 1
        assert "16 to 512" in done.stderr


# -- before servers of somebody else --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def somebodys() -> Iterator[Engine]:
    with launch(EngineOptions(parallel=2, threads=1)) as engine:
        yield engine


def test_before_servers_that_run_already(environ: dict[str, str], somebodys: Engine) -> None:
    with serving(environ, "--port", "0", "--upstream", somebodys.url) as gateway:
        url = gateway.ready()["url"]
        wait_for(lambda: ask(url, "GET", "/health").status == 200)
        stream = StreamingClient(url, recovery="off").stream_chat(QUESTION, temperature=0)
        pieces = iter(stream)
        text = next(pieces)
        gateway.process.terminate()
        gateway.expect("stopping")
        assert text + "".join(pieces) == LONG.answer
        assert gateway.end() == 0
    assert StreamingClient(somebodys.url).health().ok


def test_a_second_signal_ends_it_at_once(environ: dict[str, str], somebodys: Engine) -> None:
    with serving(environ, "--port", "0", "--upstream", somebodys.url) as gateway:
        url = gateway.ready()["url"]
        wait_for(lambda: ask(url, "GET", "/health").status == 200)
        with busy(url):
            gateway.process.send_signal(signal.SIGINT)
            gateway.expect("stopping")
            gateway.process.send_signal(signal.SIGINT)
            assert gateway.process.wait(15) == 0


def test_keys_of_a_lone_gateway_are_read_anew_on_sighup(environ: dict[str, str], somebodys: Engine) -> None:
    keys = Path(environ["HOME"]) / "keys"
    keys.write_text(f"{KEY}\n")
    with serving(environ, "--port", "0", "--upstream", somebodys.url, "--keys-file", str(keys)) as gateway:
        url = gateway.ready()["url"]
        assert ask(url, "GET", "/v1/models", Authorization=f"Bearer {KEY}").status == 200
        keys.write_text(f"{KEY[::-1]}\n")
        gateway.process.send_signal(signal.SIGHUP)
        assert "taken over: API keys" in gateway.expect("reload")["message"]
        assert ask(url, "GET", "/v1/models", Authorization=f"Bearer {KEY}").status == 401


def test_it_is_ready_when_the_first_server_is_and_tells_what_changes(environ: dict[str, str]) -> None:
    port = free_port()
    notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notify.bind(path := str(Path(environ["XDG_RUNTIME_DIR"]) / "notify"))
    notify.setblocking(False)
    there = ("--upstream", f"http://127.0.0.1:{port}", "--upstream", "http://127.0.0.1:1")
    with notify, serving({**environ, "NOTIFY_SOCKET": path}, "--port", "0", *there) as gateway:
        told = gateway.expect("unreachable")
        assert "upstream-0" in told["message"]
        assert "refused" in told["message"]
        assert told["level"] == "warning"
        url = told["url"]
        health = ask(url, "GET", "/health")
        assert (health.status, health.json["states"]) == (503, {"failed": 2})
        assert ask(url, body={"messages": QUESTION}).status == 503
        assert not any(event["event"] == "ready" for event in gateway.events)
        assert not any("READY=1" in each for each in datagrams(notify))
        assert gateway.command("status", "--quiet").returncode == 3
        with launch(EngineOptions(port=port, threads=1)) as engine:
            ready = gateway.ready()
            assert ready["url"] == url
            assert "1 of 2 servers ready" in ready["message"]
            wait_for(lambda: any("READY=1" in each for each in datagrams(notify)))
            assert gateway.expect("state", instance="upstream-0", after="ready")["level"] == "info"
            assert ask(url, body={"messages": QUESTION, "max_tokens": 2}).status == 200
            os.kill(engine.pid, signal.SIGKILL)
            engine.wait(10)
            down = gateway.expect("state", instance="upstream-0", before="ready")
            assert (down["after"], down["level"]) == ("failed", "warning")
            assert f"cannot connect to http://127.0.0.1:{port}" in down["message"] or "refused" in down["message"]
        assert gateway.expect("state", instance="upstream-1", after="failed")["before"] == "starting"


def datagrams(notify: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(notify.recv(4096).decode())
        except BlockingIOError:
            return found


def test_a_lone_gateway_is_controlled_as_a_fleet_is(environ: dict[str, str], somebodys: Engine) -> None:
    keys = Path(environ["HOME"]) / "keys"
    keys.write_text(f"{KEY}\n")
    arguments = ("--port", "0", "--name", "front", "--upstream", somebodys.url, "--keys-file", str(keys))
    with serving(environ, *arguments) as gateway:
        ready = gateway.ready()
        assert ready["name"] == "front"
        shown = gateway.status()
        assert (shown["name"], shown["phase"], shown["url"]) == ("front", "running", ready["url"])
        (upstream,) = shown["instances"]
        assert (upstream["id"], upstream["url"], upstream["state"]) == ("upstream-0", somebodys.url, "ready")
        assert (upstream["slots"], upstream["kind"], upstream["model"]) == (2, "upstream", "demo")
        assert "1 of 1 ready" in gateway.command("status", "--name", "front").stdout
        assert "upstream-0" in gateway.command("logs", "upstream-0").stdout
        for order in (["restart", "--rolling"], ["drain", "upstream-0"], ["undrain", "upstream-0"]):
            refused = gateway.command(*order)
            assert refused.returncode == 1
            assert f"{order[0]} is for servers that `serve` has started" in refused.stderr
        assert gateway.command("reload").stdout.strip() == "nothing has changed"
        keys.write_text(f"{KEY[::-1]}\n")
        assert gateway.command("reload").stdout.strip() == "taken over: API keys"
        keys.write_text("short\n")
        failed = gateway.command("reload")
        assert (failed.returncode, "16 to 512" in failed.stderr) == (1, True)
        twice = run(environ, "serve", *arguments)
        assert "the name 'front' runs already" in twice.stderr
        with busy(somebodys.url):
            assert gateway.command("stop").returncode == 0
        assert gateway.end() == 0
    assert gateway.command("status").returncode == 1


def test_stop_now_cuts_what_runs_through_a_lone_gateway(environ: dict[str, str], somebodys: Engine) -> None:
    with serving(environ, "--port", "0", "--upstream", somebodys.url) as gateway, busy(gateway.ready()["url"]):
        assert gateway.command("stop", "--now").returncode == 0
        assert gateway.end() == 0


def test_memory_of_large_bodies_is_bounded_and_given_back(environ: dict[str, str], somebodys: Engine) -> None:
    settings = ("--max-bodies", str(64 << 20))
    with serving(environ, "--port", "0", "--upstream", somebodys.url, *settings) as gateway, ExitStack() as stack:
        url = gateway.ready()["url"]
        process = psutil.Process(gateway.process.pid)
        before = process.memory_info().rss
        for _ in range(6):
            connection = stack.enter_context(dial(url))
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 33000000\r\n\r\n")
            with suppress(ConnectionError):  # those for which there is no room are told so, and hung up on
                connection.sendall(b" " * (30 << 20))
        assert process.memory_info().rss - before < 90 << 20
        stack.close()
        wait_for(lambda: process.memory_info().rss - before < 16 << 20)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--upstream", "ftp://x"), "ftp"),
        (("--upstream", "http://a:1", "--upstream", "http://a:1/v1"), "is the same server as"),
        (("--upstream", "http://localhost:{port}"), "is the address on which this gateway listens"),
        (("--cors-origin", "notanorigin"), "is no origin"),
        (("--upstream", "http://127.0.0.1:1", "--model", "x.gguf"), "model is about servers that serve starts"),
        (("--upstream", "http://127.0.0.1:1", "--instances", "2"), "instances is about servers"),
        (("--upstream", "http://127.0.0.1:1", "--no-gateway"), "--no-gateway says that there is none"),
        (("--upstream", "http://127.0.0.1:1", "--host", "0.0.0.0"), "everybody who reaches this machine"),
        (("--host", "0.0.0.0"), "everybody who reaches this machine"),
        (("--tls-cert-file", "cert.pem"), "tls_cert_file and tls_key_file are needed both"),
        (("--keys-file", "/no/such"), "/no/such"),
        (("--queue-limit", "-1"), "queue_limit"),
    ],
)
def test_what_cannot_be_served_is_told(environ: dict[str, str], arguments: tuple[str, ...], words: str) -> None:
    port = str(free_port())
    done = run(environ, "serve", "--port", port, *(each.replace("{port}", port) for each in arguments))
    assert done.returncode in (1, 2)
    assert words in done.stderr
