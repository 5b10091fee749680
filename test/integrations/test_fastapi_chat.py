"""The example of a chat in the browser: its HTTP side, and its page in a real browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="needs the extra fastapi")
pytest.importorskip("uvicorn", reason="needs uvicorn")

from chromium import Page, browser, chromium
from commandline import LONG, ROOT, STORY
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


def example(*words: str, without: str | None = None) -> tuple[int, str]:
    """The script to its end, where a module is missing perhaps: exit code and stderr."""
    script = ROOT / "examples" / SCRIPT
    code = "import runpy, sys; sys.modules.update({name: None for name in json.loads(sys.argv.pop(1))})"
    code = f"import json; {code}; runpy.run_path(sys.argv[0], run_name='__main__')"
    code = code.replace("runpy.run_path(sys.argv[0]", f"runpy.run_path({str(script)!r}")
    missing = json.dumps([without] if without else [])
    done = subprocess.run(
        [sys.executable, "-c", code, missing, *words], capture_output=True, text=True, check=False, timeout=60
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("port", ["99999", "-1"])
def test_a_port_that_is_none_is_refused(port: str) -> None:
    code, err = example("--url", "http://127.0.0.1:1", "--port", port)
    assert code == 2
    assert err.endswith(f"error: --port must be a number from 0 (any free one) to 65535, not {port}\n")


def test_an_address_that_is_none_is_one_line() -> None:
    code, err = example("--url", "ftp://127.0.0.1")
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith("error: ")
    assert "ftp" in err


@pytest.mark.parametrize("module", ["fastapi", "starlette", "uvicorn"])
def test_what_is_not_installed_is_one_line_with_the_command(module: str) -> None:
    code, err = example("--url", "http://127.0.0.1:1", without=module)
    assert (code, err.count("\n")) == (1, 1)
    assert module in err
    assert err.endswith('pip install "llamastream[server,fastapi]" uvicorn\n')


IN_A_BROWSER = pytest.mark.skipif(chromium() is None, reason="needs Chromium on PATH, or its path in CHROMIUM")


@IN_A_BROWSER
def test_the_page_sends_what_the_service_takes_and_shows_why_it_does_not(tmp_path: Path) -> None:
    with (
        NumberedServer(tokens=2) as server,
        service(SCRIPT, server.url) as port,
        browser(tmp_path / "profile") as page,
    ):
        page.open(f"http://127.0.0.1:{port}/")
        page.value("for (let i = 0; i < 120; i++) messages.push({role: i % 2 ? 'assistant' : 'user', content: 'x'})")
        page.value("messages[119].content = '\\u{1F600}'.repeat(20001)")
        ask(page, "the last question")
        page.wait_for("document.querySelector('.note')?.innerText.startsWith('2 tokens')")
        page.value("messages.unshift(messages.pop()); messages.at(-1).role = 'nobody'")
        ask(page, "refused by FastAPI itself")
        page.wait_for("document.querySelector('.note.error')?.innerText.includes(\"Input should be 'user'\")")
        page.value("window.fetch = async () => new Response('<h1>Bad Gateway</h1>', {status: 502})")
        ask(page, "refused by a proxy")
        page.wait_for("[...document.querySelectorAll('.note.error')].at(-1).innerText === 'status 502'")
    assert server.generations == 1


def ask(page: Page, text: str) -> None:
    page.click("#question")
    page.type(text)
    page.click("#button")


@IN_A_BROWSER
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
