"""The dashboard of `llamastream serve`: its buttons are the commands, its log is what `logs` shows, without secrets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from dashboards import asked, events, told, until

from commandline import LONG
from llamastream.client import StreamingClient
from llamastream.engine import Engine, EngineOptions, launch
from serving import Serving, fleet_of_two, serving

EVENTS, ACTIONS = "/dashboard/events", "/dashboard/actions"
KEY = "sk-0123456789abcdef"


@pytest.fixture
def fleet(environ: dict[str, str]) -> Iterator[Serving]:
    with fleet_of_two({**environ, "LLAMASTREAM_GATEWAY_DASHBOARD_ACTIONS": "true"}) as started:
        yield started


def test_buttons_are_the_commands(fleet: Serving) -> None:
    url = fleet.ready()["url"]
    with asked(url, EVENTS) as response:
        stream = events(response)
        hello = until(stream, "hello")
        assert (hello["actions"], hello["logs_here"]) == (True, True)
        assert any(line["event"] == "server_log" and line["instance"] == "demo-0" for line in hello["logs"])
        assert told(url, ACTIONS, {"action": "drain", "instance": "demo-1"})[0] == 200
        until(stream, "state", lambda state: state["instances"][1]["state"] == "draining")
        assert fleet.status()["instances"][1]["state"] == "draining"
        assert told(url, ACTIONS, {"action": "undrain", "instance": "demo-1"})[0] == 200
        until(stream, "state", lambda state: state["instances"][1]["state"] == "ready")
        pid = fleet.status()["instances"][0]["pid"]
        assert told(url, ACTIONS, {"action": "restart", "instance": "demo-0"})[0] == 200
        until(stream, "state", lambda state: state["instances"][0]["restarts"] == 1)
        fleet.wait_status(lambda status: status["instances"][0]["state"] == "ready")
        assert fleet.status()["instances"][0]["pid"] != pid
        status, message = told(url, ACTIONS, {"action": "drain", "instance": "demo-9"})
        assert (status, message) == (409, "there is no instance 'demo-9'; there are: demo-0, demo-1")
    assert fleet.command("stop").returncode == 0
    assert fleet.end() == 0


def test_a_gateway_alone_has_logs_and_no_buttons(environ: dict[str, str]) -> None:
    with launch(EngineOptions(kind="embedded", threads=1)) as somebodys:
        lone(environ, somebodys)


def lone(environ: dict[str, str], somebodys: Engine) -> None:
    with serving(
        {**environ, "LLAMASTREAM_GATEWAY_API_KEYS": f"ops:admin:{KEY}"}, "--port", "0", "--upstream", somebodys.url
    ) as gateway:
        url = gateway.ready()["url"]
        with asked(url, EVENTS, key=KEY) as response:
            stream = events(response)
            hello = until(stream, "hello")
            assert (hello["actions"], hello["key"]) == (False, "ops")
            assert any(line["event"] == "ready" for line in hello["logs"])
            for path, key in (("/dashboard", ""), ("/health", ""), (EVENTS, "wrong")):
                with asked(url, path, key=key) as other:
                    other.read()
            with StreamingClient(url, api_key=KEY) as client:
                client.wait_until_ready(30)
                client.chat([{"role": "user", "content": LONG.question}], max_tokens=5)
            lines: list[str] = []

            def chatted(data: Any) -> bool:
                lines.extend(line["message"] for line in data["lines"] if line["event"] == "request")
                return any("/v1/chat" in line for line in lines)

            until(stream, "logs", chatted)
            assert KEY not in str(lines)
            # who watches is no news, but whoever is refused is
            shown = [line.partition(" in ")[0] for line in lines if "/dashboard" in line or "/health" in line]
            assert shown == [f"GET {EVENTS} 401"]
