"""An example service as a process of its own."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from commandline import ROOT
from llamastream.testing import NumberedServer
from ports import free_port


@contextmanager
def service(script: str, url: str) -> Iterator[int]:
    """Run `examples/{script}` against a llama-server; the port on which it listens."""
    port = free_port()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LLAMASTREAM_")}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / script), "--url", url, "--port", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stderr is not None
    try:
        said = ""
        for line in process.stderr:
            said += line
            if "Uvicorn running" in line:
                break
        else:
            raise AssertionError(said)
        yield port
    finally:
        process.terminate()
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
        process.wait(20)


@contextmanager
def chat(port: int, *messages: str) -> Iterator[http.client.HTTPResponse]:
    """Post a conversation to `/chat`; leaving the block hangs up."""
    roles = ["user", "assistant"]
    body = {"messages": [{"role": roles[number % 2], "content": text} for number, text in enumerate(messages)]}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    headers = {"Content-Type": "application/json", "Accept-Encoding": "gzip"}
    try:
        connection.request("POST", "/chat", body=json.dumps(body), headers=headers)
        response = connection.getresponse()
        yield response
    finally:
        response.close()
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """The server-sent events of a response, as they arrive."""
    while line := response.readline():
        if line.startswith(b"data: "):
            yield json.loads(line.removeprefix(b"data: "))


def assert_one_by_one(script: str) -> None:
    """Each piece of an answer arrives before the model is allowed to generate the next."""
    with NumberedServer(tokens=5, gate=True) as server, service(script, server.url) as port:
        server.release(1)
        texts = []
        with chat(port, "count") as response:
            for event in events(response):
                if event["type"] == "text":
                    texts.append(event["text"])
                    server.release(1)
    assert texts == ["0 ", "1 ", "2 ", "3 ", "4 "]
