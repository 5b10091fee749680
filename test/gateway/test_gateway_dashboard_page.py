"""The dashboard in a real browser: signing in, buttons, the playground, a gateway that goes and comes, phones, and
values that would like to be HTML."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from chromium import POOR_CONTRAST, Page, browser, chromium, looks_like
from commandline import LONG, STORY
from fleets import Watched, running
from gateways import Running, serving
from llamastream.backends import Backend, StaticBackends
from llamastream.client import StreamingClient
from llamastream.engine import EngineOptions
from llamastream.events import InstanceWarning, RequestServed
from llamastream.gateway import GatewaySettings
from llamastream.observe.dashboard.board import SERIES
from llamastream.observe.dashboard.rings import History
from llamastream.testing import NumberedServer
from polling import wait_for
from ports import free_port

pytestmark = pytest.mark.skipif(chromium() is None, reason="needs Chromium on PATH, or its path in CHROMIUM")

ADMIN, USER = "sk-admin-0123456789", "sk-user-0123456789"
KEYED = GatewaySettings(api_keys=f"ops:admin:{ADMIN} me:inference:{USER}")
LIVE = "document.body.dataset.connection === 'live'"
EVIL = '<img src=x onerror="window.evil=1"><script>window.evil=1</script>'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("chromium")) as page:
        yield page


@pytest.fixture(autouse=True)
def _as_new(page: Page) -> Iterator[None]:
    looks_like(page, 1280, 900, "light")
    yield
    page.value("sessionStorage.clear(); localStorage.clear()")
    page.call("Page.navigate", url="about:blank")


@pytest.fixture(scope="module")
def fleet() -> Iterator[Watched]:
    with running(EngineOptions(parallel=2, threads=1), instances=2) as watched:
        yield watched


def sign_in(page: Page, key: str) -> None:
    page.wait_for("document.querySelector('#login')?.hidden === false")
    page.click("#key")
    page.type(key)
    page.click("#login-form button")


def press(page: Page, key: str, code: int, text: str = "") -> None:
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, text=text)


@contextmanager
def shown(page: Page, gateway: Running) -> Iterator[None]:
    page.open(f"{gateway.url}/dashboard")
    page.wait_for(LIVE)
    yield


def doing(fleet: Watched) -> Any:
    """What the buttons do here."""

    def operate(action: str, instance: str) -> str:
        getattr(fleet.fleet, action)(instance)
        return f"{action} was asked for: {instance}"

    return operate


def test_only_the_right_key_gets_in_and_signing_out_forgets_it(page: Page, fleet: Watched) -> None:
    error = "document.querySelector('#login-error').innerText"
    with serving(fleet.fleet, KEYED) as gateway:
        page.open(f"{gateway.url}/dashboard")
        sign_in(page, "sk-wrong-0123456789")
        page.wait_for(f"{error} === 'the API key is unknown'")
        sign_in(page, USER)
        page.wait_for(f"{error}.includes('lacks the scope admin')")
        sign_in(page, "ключ")
        page.wait_for(f"{error}.includes('printable ASCII')")
        assert page.value("sessionStorage.length") == 0
        sign_in(page, ADMIN)
        page.wait_for(LIVE)
        page.wait_for("document.querySelectorAll('.instance').length === 2")
        assert page.value("document.querySelector('#foot').innerText").endswith("signed in with the key ops")
        assert ADMIN not in page.value("document.documentElement.outerHTML + location.href")
        page.open(f"{gateway.url}/dashboard")  # the same tab still knows it
        page.wait_for(LIVE)
        page.click("#leave")
        page.wait_for("document.querySelector('#login')?.hidden === false")
        assert page.value("sessionStorage.length") == 0


def test_buttons_drain_and_restart_after_a_confirmation(page: Page, fleet: Watched) -> None:
    card = "document.querySelector('[data-instance=demo-1] .pill').innerText"
    drain, restart = "[data-instance=demo-1] [data-action$=drain]", "[data-instance=demo-1] [data-action=restart]"
    with (
        serving(fleet.fleet, GatewaySettings(dashboard_actions=True), operate=doing(fleet)) as gateway,
        shown(page, gateway),
    ):
        page.wait_for(f"{card} === 'ready'")
        page.click(drain)
        page.wait_for("document.querySelector('#confirm').open")
        page.click("#confirm-no")
        page.wait_for("!document.querySelector('#confirm').open")
        page.click(drain)
        press(page, "Escape", 27)
        page.wait_for("!document.querySelector('#confirm').open")
        assert fleet.states("demo-1")[-1] == "ready"
        page.click(drain)
        page.click("#confirm-yes")
        page.wait_for(f"{card} === 'draining'")
        assert fleet.fleet.snapshot()[1].state == "draining"
        page.wait_for("document.querySelector('.toast').innerText === 'drain was asked for: demo-1'")
        assert page.value(f"document.querySelector('{drain}').innerText") == "Undrain"
        page.click(drain)  # which takes nothing away, and so asks nothing
        page.wait_for(f"{card} === 'ready'")
        before = fleet.fleet.snapshot()[1].generation
        page.click(restart)
        page.click("#confirm-yes")
        fleet.wait_state(1, "ready", before + 1)
        page.wait_for(f"{card} === 'ready'")
        page.wait_for("document.querySelector('[data-instance=demo-1] .facts div:last-child dd').innerText === '1'")


def test_without_leave_there_are_no_buttons_but_a_reason(page: Page, fleet: Watched) -> None:
    with serving(fleet.fleet, operate=doing(fleet)) as gateway, shown(page, gateway):
        page.wait_for("document.querySelectorAll('.instance').length === 2")
        assert page.value("document.querySelectorAll('.instance button').length") == 0
        assert "dashboard_actions" in page.value("document.querySelector('#no-actions').innerText")


def test_the_playground_streams_shows_its_figures_and_stops(page: Page) -> None:
    with NumberedServer(tokens=100, gate=True) as server:
        source = StaticBackends((server.url,))
        with serving(source) as gateway, shown(page, gateway):
            page.click("#play-text")
            page.type("count <b>now</b>")
            press(page, "Enter", 13, "\r")
            page.wait_for("document.querySelector('.chat .waiting') !== null")
            assert page.value("document.querySelector('.chat .user').innerText") == "count <b>now</b>"
            for number in range(3):  # on the screen before the next is generated
                server.release(1)
                page.wait_for(f"document.querySelector('.chat .assistant').innerText.trim().endsWith('{number}')")
            assert page.value("document.querySelector('#play-stats').innerText").startswith("first token ")
            page.wait_for("document.querySelector('[data-tile=Slots] .figure').innerText.startsWith('1')")
            page.click("#play-send")
            page.wait_for("document.querySelector('#play-stats').innerText.endsWith('stopped')")
            wait_for(lambda: server.generating == 0)
            assert server.cancelled == 1
            server.release()
            page.click("#play-text")
            page.type("again")
            page.click("#play-send")
            stats = "document.querySelector('#play-stats').innerText"
            page.wait_for(f"{stats}.includes('100 tokens') && {stats}.includes('tok/s')")
            assert (
                page.value("[...document.querySelectorAll('.chat .assistant')].at(-1).innerText").strip().endswith("99")
            )


def test_the_model_itself_answers_in_the_playground(page: Page, fleet: Watched) -> None:
    with serving(fleet.fleet, KEYED) as gateway:
        page.open(f"{gateway.url}/dashboard")
        sign_in(page, ADMIN)
        page.wait_for("document.querySelector('#play-model').value === 'demo'")
        page.value("document.querySelector('#play-temperature').value = '0'")
        page.click("#play-text")
        page.type("Who are you?")
        page.click("#play-send")
        page.wait_for("document.querySelector('#play-stats').innerText.includes('tok/s')")
        page.wait_for("document.querySelector('#play-send').innerText === 'Send'")
        assert "demo" in page.value("document.querySelector('.chat .assistant').innerText")
        page.wait_for("document.querySelector('[data-tile=Requests] .detail').innerText === '200: 1'")


CACHE_TILE = "document.querySelector('[data-tile=\"Response cache\"]')"


def test_the_response_cache_has_a_tile_where_it_is_on(page: Page, fleet: Watched, tmp_path: Path) -> None:
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    port = free_port()
    cached = GatewaySettings(response_cache=True)
    figure, detail = (f"{CACHE_TILE}.querySelector('.{name}').innerText" for name in ("figure", "detail"))
    with serving(fleet.fleet, cached, port=port) as gateway, shown(page, gateway):
        page.wait_for(f"{CACHE_TILE}?.hidden === false")
        assert page.value(figure) == "–"
        assert page.value(detail) == "0 hits, 0 misses · 0 tokens saved · empty"
        with StreamingClient(gateway.url) as client:
            for kept, question in ((0, STORY), (1, LONG), (2, LONG), (2, LONG)):
                wait_for(partial(has_kept, gateway, kept))  # an answer is kept soon after its end
                answer = client.chat([{"role": "user", "content": question.question}], temperature=0)
                assert answer.text == question.answer
        assert answer.usage is not None
        tokens = 2 * answer.usage.completion_tokens
        page.wait_for(f"{detail}.startsWith('2 hits, 2 misses · {tokens:,} tokens saved · ')")
        assert re.search(r" · \d+(\.\d)? KiB in memory$", page.value(detail))
        assert page.value(figure) == "50% answered"
        for width, scheme in ((1280, "light"), (1280, "dark"), (375, "light"), (375, "dark")):
            looks_like(page, width, 900, scheme)
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.value(POOR_CONTRAST) == []
            page.screenshot(pictures / f"dashboard-cache-{width}-{scheme}.png")
    with serving(fleet.fleet, port=port):
        page.wait_for(f"{LIVE} && {CACHE_TILE}.hidden")
        assert page.value("document.querySelectorAll('.tile:not([hidden])').length") == 8


def has_kept(gateway: Running, answers: int) -> bool:
    """Whether so many are in the response cache."""
    figures = gateway.gateway.sharing.cache_figures()
    return figures is not None and figures.entries == answers


def test_a_gateway_that_goes_and_comes_back(page: Page, fleet: Watched) -> None:
    port = free_port()
    with serving(fleet.fleet, port=port) as gateway, shown(page, gateway):
        pass
    page.wait_for("document.body.dataset.connection === 'lost'")
    assert page.value("document.querySelector('#stale').innerText").startswith("No connection")
    assert "What you see is of" in page.value("document.querySelector('#stale').innerText")
    with serving(fleet.fleet, port=port):
        page.wait_for(LIVE)
        assert page.value("document.querySelector('#stale').hidden") is True
        page.wait_for("document.querySelectorAll('.instance').length === 2")


def test_a_connection_that_falls_silent_is_noticed(page: Page, fleet: Watched) -> None:
    with serving(fleet.fleet) as gateway, shown(page, gateway):
        live = gateway.server.app.state.dashboard._live
        gateway.server.app.state.dashboard._running.get_loop().call_soon_threadsafe(
            gateway.server.app.state.dashboard._running.cancel
        )  # from now on nothing comes, and the connection stays
        page.wait_for("document.querySelector('#stale').innerText.includes('nothing was heard')")
        assert live.turn > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [375, 1280])
def test_it_fits_on_phones_and_desks_and_is_readable(
    page: Page, fleet: Watched, width: int, scheme: str, tmp_path: Path
) -> None:
    pictures = Path(os.environ.get("PICTURES", tmp_path))
    alerts = [
        {"rule": "queue_time", "severity": severity, "message": "m" * 90}
        for severity in ("warning", "critical", "info")
    ]
    looks_like(page, width, 900, scheme)
    with serving(
        fleet.fleet, GatewaySettings(dashboard_actions=True), operate=doing(fleet), alerts=lambda: alerts
    ) as gateway:
        board = gateway.server.app.state.dashboard.board
        board.telling = True
        board.log(time.time(), "error", "a-word-without-any-blank-" * 20, instance="demo-0")
        board(InstanceWarning(id="demo-0", topic="memory", message="x" * 300, time=time.time()))
        with shown(page, gateway):
            page.wait_for("document.querySelectorAll('.chart').length === 6")
            assert page.value("document.documentElement.scrollWidth") <= width
            assert page.value(POOR_CONTRAST) == []
            page.screenshot(pictures / f"dashboard-{width}-{scheme}.png")
            before = page.value("getComputedStyle(document.body).backgroundColor")
            page.click("#theme")
            assert page.value("getComputedStyle(document.body).backgroundColor") != before
            assert page.value(POOR_CONTRAST) == []


def test_charts_show_minutes_or_hours(page: Page, fleet: Watched) -> None:
    with serving(fleet.fleet) as gateway:
        history, now = History(SERIES), time.time()
        for second in range(7200):
            history.add(now - 7200 + second, {"tokens_per_second": 100 + second % 7, "slots": 4})
        gateway.server.app.state.dashboard.board.history = history
        ticks = "[...document.querySelectorAll('.chart:first-child text')].map((each) => each.textContent)"
        with shown(page, gateway):
            page.wait_for("document.querySelector('.chart .line') !== null")
            assert "−10 min" in page.value(ticks)
            page.click("[data-span=coarse]")
            assert "−3 h" in page.value(ticks)  # the least that shows all there is
            assert page.value("document.querySelector('[data-span=coarse]').getAttribute('aria-pressed')") == "true"
            pieces = page.value("document.querySelector('.chart .line').getAttribute('d').split('L').length")
            assert 700 < pieces < 740


def test_everything_has_a_name_and_the_keyboard_reaches_it(page: Page, fleet: Watched) -> None:
    with (
        serving(fleet.fleet, GatewaySettings(dashboard_actions=True), operate=doing(fleet)) as gateway,
        shown(page, gateway),
    ):
        page.wait_for("document.querySelectorAll('.instance button').length === 4")
        tree = page.call("Accessibility.getFullAXTree")["nodes"]
        wanting = {
            "button",
            "textbox",
            "combobox",
            "spinbutton",
            "checkbox",
            "searchbox",
            "img",
            "image",
            "log",
            "region",
        }
        nodes = [node for node in tree if not node.get("ignored") and node["role"]["value"] in wanting]
        names = {node["name"]["value"] for node in nodes}
        assert not [node for node in nodes if not node["name"]["value"]]
        assert {"Drain demo-0", "Restart demo-1", "0 of 2 slots busy", "Your message", "Temperature"} <= names
        reached = []
        press(page, "Tab", 9)
        while page.value("document.activeElement !== document.body"):
            reached.append(
                page.value("document.activeElement.getAttribute('aria-label') ?? document.activeElement.innerText")
            )
            assert page.value("getComputedStyle(document.activeElement).outlineStyle") != "none", reached
            press(page, "Tab", 9)
        assert reached[0] == "Skip to the content"
        assert {"Drain demo-0", "Restart demo-1", "6 hours", "Send"} <= set(reached)


def test_the_logs_instances_stand_in_their_order(page: Page, fleet: Watched) -> None:
    with serving(fleet.fleet) as gateway:
        board = gateway.server.app.state.dashboard.board
        board.telling = True
        for instance in ("demo-10", "demo-2", ""):
            board.log(time.time(), "info", "early", instance=instance)
        with shown(page, gateway):
            page.wait_for("document.querySelectorAll('#logs-instance option').length === 4")
            for instance in ("demo-1", "another-0", "demo-20"):
                board.log(time.time(), "info", "late", instance=instance)
            page.wait_for("document.querySelectorAll('#logs-instance option').length === 7")
            there = page.value("[...document.querySelectorAll('#logs-instance option')].map((each) => each.value)")
            assert there == ["*", "", "another-0", "demo-1", "demo-2", "demo-10", "demo-20"]


def test_what_others_wrote_stays_text(page: Page) -> None:
    alerts = [{"rule": EVIL, "instance": EVIL, "severity": EVIL, "message": EVIL}]
    source = Evil()
    with serving(source, alerts=lambda: alerts) as gateway:
        board = gateway.server.app.state.dashboard.board
        board.telling = True
        board.log(1.0, "info", EVIL, instance=EVIL, event="server_log")
        board(InstanceWarning(id=EVIL, topic=EVIL, message=EVIL, time=1.0))
        board(RequestServed(time=1.0, request_id=EVIL, method="GET", route=EVIL, status=500, duration=1.0, error=EVIL))
        with shown(page, gateway):
            page.wait_for("document.querySelector('.instance h3') !== null")
            for place in (
                ".instance h3",
                ".instance .why",
                "#alerts",
                "#logs",
                "#errors",
                "#play-model",
                "#logs-instance",
            ):
                assert EVIL in page.value(f"document.querySelector('{place}').textContent"), place
            assert page.value("document.querySelectorAll('main img, #alerts img, main script').length") == 0
            assert page.value("window.evil") is None
            # and where a mistake of ours made HTML of it, the browser would not take it
            refused = "(() => { try { document.body.innerHTML = '<b>'; return false } catch { return true } })()"
            assert page.value(refused) is True


class Evil(StaticBackends):
    """A server whose names are not to be trusted."""

    def __init__(self) -> None:
        super().__init__(())

    def snapshot(self) -> tuple[Backend, ...]:
        return (Backend(id=EVIL, url="http://127.0.0.1:1", models=(EVIL,), slots=1, state="failed"),)
