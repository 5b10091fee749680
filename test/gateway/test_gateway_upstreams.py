"""A gateway before servers that somebody else runs."""

from __future__ import annotations

import os
import signal

import pytest
from wires import ask, chat

from gateways import serving
from llamastream.engine import EngineOptions, launch
from llamastream.errors import SettingError
from llamastream.gateway import Upstreams
from llamastream.testing import ServerDouble
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]


def test_servers_are_found_with_their_slots_and_models() -> None:
    with launch(EngineOptions(parallel=3)) as first, launch(EngineOptions(parallel=2, alias="other")) as second:
        source = Upstreams([first.url, second.url + "/v1"])
        with serving(source) as gateway:
            wait_for(lambda: [backend.slots for backend in source.snapshot()] == [3, 2])
            assert [model["id"] for model in ask(gateway.url, "GET", "/v1/models").json["data"]] == ["demo", "other"]
            for model in ("demo", "other"):
                assert chat(gateway.url, STORY, temperature=0, model=model).finish_reason == "stop"


def test_one_that_is_gone_is_left_alone_until_it_is_back() -> None:
    with launch(EngineOptions()) as first:
        second = launch(EngineOptions()).start()
        source = Upstreams([first.url, second.url])
        with serving(source) as gateway:
            wait_for(lambda: all(backend.models for backend in source.snapshot()))
            os.kill(second.pid, signal.SIGKILL)
            second.wait(10)
            wait_for(lambda: source.snapshot()[1].state == "failed")
            for _ in range(4):
                assert chat(gateway.url, STORY, temperature=0).finish_reason == "stop"
            with launch(EngineOptions(port=second.options.port)):
                wait_for(lambda: source.snapshot()[1].state == "ready")
                assert source.snapshot()[1].generation == 2
        second.stop()


def test_no_server_at_all_is_said() -> None:
    with ServerDouble() as double:
        url = double.url
    with serving(Upstreams([url])) as gateway:
        wait_for(lambda: ask(gateway.url, "GET", "/health").status == 503)


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(SettingError, match="ftp"):
        Upstreams(["ftp://x"])
