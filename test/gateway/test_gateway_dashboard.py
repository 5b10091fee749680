"""The dashboard's endpoints: who may see what, what a page gets and when, and what its buttons do."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from dashboards import asked, events, told, until
from msgspec.structs import replace

from fleets import Watched, running
from gateways import serving
from llamastream.engine import Engine, EngineOptions
from llamastream.errors import LlamaStreamError
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.dashboard.guarding import Asked, why_refused
from llamastream.gateway.dashboard.pages import INDEX, all_files
from polling import wait_for

ADMIN, USER = "sk-admin-0123456789", "sk-user-0123456789"
KEYED = GatewaySettings(api_keys=f"ops:admin:{ADMIN} me:inference:{USER}")
OPEN = GatewaySettings()


@pytest.fixture(scope="module")
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=2, threads=1), instances=2) as watched:
        yield watched


# -- who may see what -------------------------------------------------------------------------------------------------

HERE = Asked(client="127.0.0.1", host="localhost:8080", marked=True)


@pytest.mark.parametrize(
    ("request_", "keyed", "says"),
    [
        (HERE, False, None),
        (replace(HERE, client="::1", host="[::1]:8080"), False, None),
        (replace(HERE, client="::ffff:127.0.0.1", host="127.0.0.1"), False, None),
        (replace(HERE, client="", host="anything"), False, None),  # over a Unix socket
        (replace(HERE, origin="http://localhost:8080", site="same-origin"), False, None),
        (replace(HERE, marked=False), False, "the header"),
        (replace(HERE, marked=False), True, "the header"),
        (replace(HERE, site="cross-site"), False, "other origins"),
        (replace(HERE, site="same-site"), True, "other origins"),
        (replace(HERE, origin="http://localhost:9090"), False, "localhost:9090"),
        (replace(HERE, origin="https://evil.example"), True, "evil.example"),
        (replace(HERE, origin="null"), False, "null"),
        (replace(HERE, client="192.0.2.7"), False, "this machine only"),
        (replace(HERE, host="rebound.example:8080"), False, "rebound.example"),
        (replace(HERE, host="127.0.0.1.evil.example"), False, "evil.example"),
        (replace(HERE, host="[::1"), False, "'[::1'"),
        (replace(HERE, host=""), False, "localhost or 127.0.0.1"),
        (Asked(client="192.0.2.7", host="gateway.example", marked=True), True, None),
    ],
)
def test_whose_requests_are_answered(request_: Asked, keyed: bool, says: str | None) -> None:
    why = why_refused(request_, keyed=keyed)
    assert (why is None) if says is None else (why is not None and says in why)


@pytest.mark.parametrize("path", ["/dashboard/events", "/dashboard/actions"])
def test_with_keys_it_takes_one_with_the_scope_admin(fleet: Watched, path: str) -> None:
    body = {"action": "drain", "instance": "demo-0"} if path.endswith("actions") else None
    with serving(fleet.fleet, KEYED) as gateway:
        assert told(gateway.url, path, body)[0] == 401
        assert told(gateway.url, path, body, key="sk-wrong-0123456789") == (401, "the API key is unknown")
        assert told(gateway.url, path, body, key=USER) == (403, "the API key 'me' lacks the scope admin")
        status, message = told(gateway.url, path, body, key=ADMIN, mark=False)
        assert (status, "x-llamastream-dashboard" in message) == (403, True)


def test_without_keys_it_is_for_pages_of_this_machine(fleet: Watched) -> None:
    path = "/dashboard/events"
    with serving(fleet.fleet, OPEN) as gateway:
        assert told(gateway.url, path, mark=False)[0] == 403
        assert told(gateway.url, path, Host="rebound.example")[0] == 403
        assert told(gateway.url, path, Origin="https://evil.example")[0] == 403
        assert told(gateway.url, path, Sec_Fetch_Site="cross-site")[0] == 403
        with asked(gateway.url, path) as response:
            assert until(events(response), "hello")["actions"] is False
        with asked(gateway.url, path, key="sk-of-another-gateway") as response:  # which a page still had
            stream = events(response)
            assert until(stream, "state")["time"] < until(stream, "state")["time"]


def test_the_page_is_for_everybody_and_lets_nothing_else_in(fleet: Watched) -> None:
    with serving(fleet.fleet, KEYED) as gateway:
        for name in ("/dashboard", *(f"/dashboard/{name}" for name in all_files() if name != INDEX)):
            with asked(gateway.url, name, mark=False) as response:
                content = response.read()
                assert (response.status, bool(content)) == (200, True), name
                policy = response.headers["content-security-policy"]
                assert policy.startswith("default-src 'self'")
                assert "unsafe" not in policy
                assert "frame-ancestors 'none'" in policy
                assert response.headers["x-frame-options"] == "DENY"
                assert response.headers["x-content-type-options"] == "nosniff"
                tag = response.headers["etag"]
            with asked(gateway.url, name, mark=False, If_None_Match=tag) as response:
                assert (response.status, response.read()) == (304, b"")
        with asked(gateway.url, "/dashboard/", mark=False) as response:
            assert (response.status, response.headers["location"]) == (308, "../dashboard")
        with asked(gateway.url, "/dashboard/..%2fpages.py", key=ADMIN) as response:
            assert response.status == 404


def test_its_files_need_no_other_machine_and_insert_no_html() -> None:
    page = all_files()[INDEX].content.decode()
    assert not re.search(r"<script(?![^>]*\bsrc=\"dashboard/)|<style|\son\w+=|\sstyle=", page)
    for name, file in all_files().items():
        text = file.content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
    assert sum(len(file.content) for file in all_files().values()) < 100_000


def test_off_means_off(fleet: Watched) -> None:
    with serving(fleet.fleet, GatewaySettings(dashboard=False)) as gateway:
        for path in ("/dashboard", "/dashboard/events", "/dashboard/app.js"):
            with asked(gateway.url, path) as response:
                assert response.status == 404
        assert gateway.server.app.state.dashboard is None


# -- what a page gets -------------------------------------------------------------------------------------------------


def test_everything_at_first_and_a_state_each_second(fleet: Watched) -> None:
    with serving(fleet.fleet, KEYED) as gateway:
        board = gateway.server.app.state.dashboard.board
        board.telling = True
        board.log(1.0, "info", "said before", instance="demo-0")
        wait_for(lambda: len(board.history.fine) > 0)
        with asked(gateway.url, "/dashboard/events", key=ADMIN) as response:
            stream = events(response)
            hello = until(stream, "hello")
            assert (hello["key"], hello["logs_here"], hello["logs"][0]["message"]) == ("ops", True, "said before")
            assert hello["history"]["fine"]["slots"][0] == 4
            first = until(stream, "state", lambda state: "point" in state)
            began = time.monotonic()
            second = until(stream, "state", lambda state: "point" in state)
            assert 0.5 < time.monotonic() - began < 3
            assert 0.5 < second["time"] - first["time"] < 3
        (one, two) = second["instances"]
        assert (one["id"], two["id"], one["slots"]) == ("demo-0", "demo-1", 2)
        assert one["rss_bytes"] > 1 << 20
        assert "url" not in one


def test_a_request_counts_when_it_is_over(fleet: Watched) -> None:
    with serving(fleet.fleet, OPEN) as gateway, asked(gateway.url, "/dashboard/events") as response:
        stream = events(response)
        body = {"messages": [{"role": "user", "content": "Who are you?"}], "stream": True, "max_tokens": 5}
        with asked(gateway.url, "/v1/chat/completions", body, mark=False) as answer:
            answer.read()
        state = until(stream, "state", lambda state: state["totals"]["requests"] == 1)
        assert state["recent"]["statuses"] == {"200": 1}
        assert state["totals"]["completion_tokens"] == 5
        assert 0 < state["recent"]["ttft_p50"] == state["recent"]["ttft_p95"] < 20


def test_the_end_of_a_server_and_a_line_are_shown_within_a_second() -> None:
    with running(EngineOptions(parallel=1, threads=1), instances=2) as fleet, serving(fleet.fleet, OPEN) as gateway:
        board = gateway.server.app.state.dashboard.board
        with asked(gateway.url, "/dashboard/events") as response:
            stream = events(response)
            until(stream, "state")
            began = time.monotonic()
            board.log(time.time(), "info", "a line")
            assert until(stream, "logs")["lines"][0]["message"] == "a line"
            assert time.monotonic() - began < 1
            heard = len(fleet.events)
            os.kill(fleet.fleet.snapshot()[0].pid, signal.SIGKILL)
            fleet.wait_for(lambda: len(fleet.events) > heard)
            began = time.monotonic()
            until(stream, "state", lambda state: ended(state["instances"][0]))
            assert time.monotonic() - began < 1


def ended(instance: dict[str, Any]) -> bool:
    """Whether its server has ended, even if there is another already."""
    return instance["restarts"] > 0 or instance["state"] not in ("ready", "busy")


def test_servers_of_others_are_shown_with_what_is_known_of_them(engine: Engine) -> None:
    with serving(Upstreams([engine.url]), OPEN) as gateway, asked(gateway.url, "/dashboard/events") as response:
        stream = events(response)
        hello = until(stream, "hello")
        assert hello["no_actions"].startswith("Whoever started these servers")
        state = until(stream, "state", lambda state: state["instances"][0]["state"] == "ready")
        (instance,) = state["instances"]
        assert (instance["model"], instance["reason"]) == ("demo", engine.url)
        assert instance["since"] <= state["time"]
        assert told(gateway.url, "/dashboard/actions", {"action": "drain", "instance": "x"})[0] == 403


def test_alerts_that_cannot_be_read_take_nothing_else_along(fleet: Watched) -> None:
    alerts: list[Any] = [{"rule": "down", "message": "<b>demo-0</b>"}]

    def active() -> list[Any]:
        if not alerts:
            raise RuntimeError("broken")
        return alerts

    with serving(fleet.fleet, OPEN, alerts=active) as gateway, asked(gateway.url, "/dashboard/events") as response:
        stream = events(response)
        assert until(stream, "state")["alerts"] == alerts
        alerts.clear()
        assert until(stream, "state", lambda state: not state["alerts"])["instances"]


def test_a_key_that_is_taken_back_ends_the_page(fleet: Watched) -> None:
    with serving(fleet.fleet, KEYED) as gateway, asked(gateway.url, "/dashboard/events", key=ADMIN) as response:
        stream = events(response)
        until(stream, "state")
        gateway.server.reload(replace(KEYED, api_keys=f"me:inference:{USER}"))
        began = time.monotonic()
        assert all(name for name, _ in stream)  # to its end
        assert time.monotonic() - began < 3


def test_pages_do_not_hold_up_the_end(fleet: Watched) -> None:
    with ExitStack() as pages:
        with serving(fleet.fleet, GatewaySettings(drain_timeout=60)) as gateway:
            stream = events(pages.enter_context(asked(gateway.url, "/dashboard/events")))
            until(stream, "state")
            began = time.monotonic()
        assert time.monotonic() - began < 10
        assert all(name for name, _ in stream)  # to its end


def test_who_leaves_is_forgotten(fleet: Watched) -> None:
    with serving(fleet.fleet, OPEN) as gateway:
        live = gateway.server.app.state.dashboard._live
        with asked(gateway.url, "/dashboard/events") as response:
            until(events(response), "state")
            assert len(live.viewers) == 1
        wait_for(lambda: not live.viewers)


# -- buttons ----------------------------------------------------------------------------------------------------------


def test_a_button_does_it_and_says_so(fleet: Watched) -> None:
    done: list[tuple[str, str]] = []

    def operate(action: str, instance: str) -> str:
        if instance == "none":
            raise LlamaStreamError("there is no instance 'none'")
        done.append((action, instance))
        return f"{action} was asked for"

    path = "/dashboard/actions"
    with serving(fleet.fleet, KEYED, operate=operate) as gateway:
        order = {"action": "drain", "instance": "demo-0"}
        assert told(gateway.url, path, order, key=ADMIN) == (200, "drain was asked for")
        assert told(gateway.url, path, {**order, "instance": "none"}, key=ADMIN) == (409, "there is no instance 'none'")
        wrong: Any
        for wrong in ({"action": "stop", "instance": "demo-0"}, {"action": "drain"}, [], {**order, "more": 1}):
            assert told(gateway.url, path, wrong, key=ADMIN)[0] == 400
        assert told(gateway.url, path, order, key=ADMIN, Origin="https://evil.example")[0] == 403
    assert done == [("drain", "demo-0")]


def test_without_keys_buttons_work_only_where_that_was_said(fleet: Watched) -> None:
    order = {"action": "drain", "instance": "demo-0"}
    done: list[str] = []

    def operate(action: str, instance: str) -> str:
        done.append(action)
        return "done"

    with serving(fleet.fleet, OPEN, operate=operate) as gateway:
        status, message = told(gateway.url, "/dashboard/actions", order)
        assert (status, "dashboard_actions" in message, done) == (403, True, [])
    with serving(fleet.fleet, GatewaySettings(dashboard_actions=True), operate=operate) as gateway:
        assert told(gateway.url, "/dashboard/actions", order, mark=False)[0] == 403
        assert told(gateway.url, "/dashboard/actions", order, Host="rebound.example")[0] == 403
        assert done == []
        assert told(gateway.url, "/dashboard/actions", order) == (200, "done")
