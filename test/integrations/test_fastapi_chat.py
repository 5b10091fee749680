"""The example of a chat in the browser: its HTTP side, and its page in a real browser."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")

from chromium import browser, chromium
from commandline import LONG, STORY
from llamastream import Engine
from llamastream.testing import NumberedServer
from polling import wait_for
from service import assert_one_by_one, chat, events, service

SCRIPT = "fastapi_chat/app.py"


def test_each_piece_arrives_before_the_next_is_generated() -> None:
    assert_one_by_one(SCRIPT)


def test_a_conversation_is_answered_and_a_hang_up_frees_the_slot(
    engine: Engine, slots_free: Callable[[], float]
) -> None:
    with service(SCRIPT, engine.url) as port:
        with chat(port, "Hello!", "Hello! How are you?", STORY.question) as response:
            answer = list(events(response))
        assert "".join(event["text"] for event in answer if event["type"] == "text") == STORY.answer
        assert answer[-1]["type"] == "end"
        with chat(port, LONG.question) as response:
            next(events(response))
        slots_free()


def test_a_wrong_conversation_is_refused() -> None:
    with service(SCRIPT, "http://127.0.0.1:1") as port, chat(port) as response:
        assert response.status == 422


@pytest.mark.skipif(chromium() is None, reason="needs Chromium on PATH, or its path in CHROMIUM")
def test_the_page_streams_and_stops_in_a_browser(tmp_path: Path) -> None:
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    with (
        NumberedServer(tokens=100, gate=True) as server,
        service(SCRIPT, server.url) as port,
        browser(tmp_path / "profile") as page,
    ):
        page.open(f"http://127.0.0.1:{port}/")
        page.click("#question")
        page.type("count <b>now</b>")
        page.click("#button")
        page.wait_for("document.querySelector('.assistant.waiting') !== null")
        assert page.value("document.querySelector('.user').innerText") == "count <b>now</b>"
        for number in range(3):  # on the screen before the next is generated
            server.release(1)
            page.wait_for(f"document.querySelector('.assistant').innerText.trim().endsWith('{number}')")
        page.screenshot(pictures / "streaming.png")
        assert page.value("document.querySelector('#button').innerText") == "Stop"
        page.click("#button")
        page.wait_for("document.querySelector('.note')?.innerText === 'stopped'")
        wait_for(lambda: server.generating == 0)
        assert server.cancelled == 1
        server.release()
        page.click("#question")
        page.type("again")
        page.click("#button")
        page.wait_for("document.querySelectorAll('.note')[1]?.innerText.startsWith('100 tokens')")
        assert page.value("document.querySelectorAll('.assistant')[1].innerText").strip().endswith("98 99")
        page.screenshot(pictures / "ended.png")
        server.close()
        page.click("#question")
        page.type("anybody there?")
        page.click("#button")
        page.wait_for("document.querySelector('.note.error') !== null")
        page.screenshot(pictures / "failed.png")
