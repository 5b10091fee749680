"""curl through the gateway, in the ways that people use it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wires import chat

from gateways import Running, serving
from llamastream.engine import Engine
from llamastream.gateway import Upstreams
from polling import wait_for

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")

STORY = [{"role": "user", "content": "Tell me a story."}]


@pytest.fixture
def gateway(engine: Engine) -> Iterator[Running]:
    with serving(Upstreams([engine.url])) as there:
        wait_for(lambda: all(each.models for each in there.gateway.source.snapshot()))
        yield there


def body(**fields: Any) -> str:
    return json.dumps({"messages": STORY, "temperature": 0, "stream": True, **fields})


def curl(*arguments: str, code: int = 0) -> bytes:
    done = subprocess.run(["curl", "-sS", "--max-time", "30", *arguments], capture_output=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


def text_of(stream: bytes) -> str:
    lines = [line.removeprefix(b"data: ") for line in stream.splitlines() if line.startswith(b"data: {")]
    choices = [choice for line in lines for choice in json.loads(line)["choices"]]
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("options", [(), ("-N",), ("--http1.0",), ("-H", "Expect: 100-continue"), ("--http2",)])
def test_a_stream_arrives_whole(gateway: Running, engine: Engine, options: tuple[str, ...]) -> None:
    heard = curl(*options, "-i", f"{gateway.url}/v1/chat/completions", "-d", body())
    head, _, stream = heard.partition(b"\r\n\r\n")
    if "Expect: 100-continue" in options:
        assert head.startswith(b"HTTP/1.1 100")
        head, _, stream = stream.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200")
    assert b"content-type: text/event-stream" in head.lower()
    assert (b"transfer-encoding" in head.lower()) == ("--http1.0" not in options)
    assert stream.endswith(b"data: [DONE]\n\n")
    assert text_of(stream) == chat(engine.url, STORY, temperature=0).joined()


def test_a_whole_answer_to_http_1_0(gateway: Running) -> None:
    heard = curl("--http1.0", f"{gateway.url}/v1/chat/completions", "-d", body(stream=False))
    assert json.loads(heard)["choices"][0]["finish_reason"] == "stop"


def test_pieces_come_one_by_one(gateway: Running) -> None:
    process = subprocess.Popen(
        ["curl", "-sSN", f"{gateway.url}/v1/chat/completions", "-d", body(max_tokens=8000, ignore_eos=True)],
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    first = process.stdout.readline()
    assert first.startswith(b"data: {")
    assert gateway.gateway.lanes.active == 1  # it still runs: what came was not held back
    process.kill()  # the early hang-up
    process.communicate()
    wait_for(lambda: gateway.gateway.lanes.active == 0)
    wait_for(lambda: gateway.served[-1:] != [] and gateway.served[-1].finish_reason == "cancelled")


def test_a_large_request_with_what_curl_announces_for_it(gateway: Running, tmp_path: Path) -> None:
    large = tmp_path / "request.json"
    large.write_text(body(messages=[*STORY, {"role": "user", "content": "x" * 2_000_000}]))
    heard = curl("-i", "-H", "Expect: 100-continue", f"{gateway.url}/v1/chat/completions", "-d", f"@{large}")
    assert heard.startswith(b"HTTP/1.1 100")
    assert json.loads(heard.rpartition(b"\r\n\r\n")[2])["error"]["type"] == "exceed_context_size_error"


def test_chunked_requests(gateway: Running) -> None:
    heard = curl(
        "-H", "Transfer-Encoding: chunked", "-H", "Content-Type: application/json",
        f"{gateway.url}/v1/chat/completions", "-d", body(max_tokens=5),
    )  # fmt: skip
    assert heard.endswith(b"data: [DONE]\n\n")


def test_heads(gateway: Running) -> None:
    for path in ("/health", "/v1/models", "/props"):
        assert curl("-I", f"{gateway.url}{path}").startswith(b"HTTP/1.1 200")
    assert curl("-I", f"{gateway.url}/v1/chat/completions").startswith(b"HTTP/1.1 405")


def test_two_requests_on_one_connection(gateway: Running) -> None:
    url = f"{gateway.url}/health"
    count = curl(url, url, "-w", "%{num_connects}\n", "-o", "/dev/null", "-o", "/dev/null")
    assert count.split() == [b"1", b"0"]


def test_what_fails_is_a_status_for_scripts(gateway: Running) -> None:
    curl("-f", f"{gateway.url}/v1/chat/completions", "-d", "{no json", code=22)
