"""Receivers of alerts, over real sockets and processes; dead, slow and refusing ones among them."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from llamastream.alerts.delivery import QUEUED, Delivery, backoff
from llamastream.alerts.measures import Look
from llamastream.alerts.messages import Message
from llamastream.alerts.receivers import Apprise, Command, ReceiverError, Webhook, receivers_of
from llamastream.alerts.settings import AlertSettings, known_rule, revealed
from llamastream.alerts.watchman import Watchman
from llamastream.errors import SettingError
from llamastream.events import RequestServed
from llamastream.settings import load
from polling import wait_for

apprise_there = pytest.mark.filterwarnings("ignore:'imghdr' is deprecated:DeprecationWarning")  # which it imports

MESSAGE = Message(
    id="1-2", time=5.0, kind="firing", rule="disk", severity="critical", title="disk (/x)", text="/x: there is\nlittle"
)


class Hook(ThreadingHTTPServer):
    """Takes posts: `got` has their paths, headers and bodies. `statuses` are answered in turn, 200 after them."""

    def __init__(self, *statuses: int) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses = list(statuses)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/hook?a=b"


class Handler(BaseHTTPRequestHandler):
    server: Hook

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002  # the library's name
        pass


@contextmanager
def hook(*statuses: int) -> Iterator[Hook]:
    with Hook(*statuses) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


# -- the webhook ----------------------------------------------------------------------------------------------------


def test_a_webhook_gets_json_with_its_header_and_signature() -> None:
    with hook() as server:
        Webhook(server.url, header="X-Token: abc def", key="secret").tell(MESSAGE)
    ((path, headers, body),) = server.got
    assert path == "/hook?a=b"
    assert json.loads(body)["title"] == "disk (/x)"
    assert (headers["X-Token"], headers["X-Llamastream-Alert"]) == ("abc def", "1-2")
    moment, _, digest = headers["X-Llamastream-Signature"].partition(",sha256=")
    signed = f"{moment.removeprefix('t=')}.".encode() + body
    assert hmac.compare_digest(hmac.new(b"secret", signed, hashlib.sha256).hexdigest(), digest)


@pytest.mark.parametrize(("status", "final"), [(500, False), (429, False), (404, True), (302, False)])
def test_a_status_that_is_no_success_is_told(status: int, final: bool) -> None:
    with hook(status) as server, pytest.raises(ReceiverError, match=f"it answered {status}") as caught:
        Webhook(server.url).tell(MESSAGE)
    assert caught.value.final is final
    assert len(server.got) == 1  # a redirect is not followed


def test_a_webhook_that_says_nothing_is_left_after_its_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/SECRET"
        began = time.monotonic()
        with pytest.raises(ReceiverError) as caught:
            Webhook(url, timeout=0.2).tell(MESSAGE)
    assert time.monotonic() - began < 5
    assert "SECRET" not in str(caught.value)


# -- the command ----------------------------------------------------------------------------------------------------


def test_a_command_gets_json_on_stdin_and_fields_but_no_secret_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMASTREAM_API_KEY", "sk-secret")
    out = tmp_path / "out"
    code = (
        "import json, os, sys; json.dump({'stdin': json.load(sys.stdin), 'argument': sys.argv[2], 'environ': "
        "{k: v for k, v in os.environ.items() if k.startswith('LLAMASTREAM_')}}, open(sys.argv[1], 'w'))"
    )
    Command((sys.executable, "-c", code, str(out), "$(id); *")).tell(MESSAGE)
    found = json.loads(out.read_text())
    assert found["stdin"]["rule"] == "disk"
    assert found["argument"] == "$(id); *"
    assert found["environ"]["LLAMASTREAM_ALERT_RULE"] == "disk"
    assert found["environ"]["LLAMASTREAM_ALERT_TEXT"] == "/x: there is\nlittle"
    assert "sk-secret" not in json.dumps(found)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(ReceiverError, match="it ended with 3: no such room"):
        Command((sys.executable, "-c", "import sys; print('no such room', file=sys.stderr); sys.exit(3)")).tell(MESSAGE)


def test_a_command_that_is_not_there_is_not_tried_again() -> None:
    with pytest.raises(ReceiverError, match="it cannot be started") as caught:
        Command(("/nowhere/at/all",)).tell(MESSAGE)
    assert caught.value.final


def test_a_command_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    code = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '600']); "
        f"open({str(note)!r} + '.new', 'w').write(str(child.pid)); "
        f"import os; os.rename({str(note)!r} + '.new', {str(note)!r}); time.sleep(600)"
    )
    with pytest.raises(ReceiverError, match="was killed"):
        Command((sys.executable, "-c", code), timeout=2.0).tell(MESSAGE)
    child = int(note.read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)


# -- mail and chat --------------------------------------------------------------------------------------------------


@apprise_there
def test_apprise_posts_to_a_service_of_its_own() -> None:
    pytest.importorskip("apprise", reason="the extra alerts is not installed")
    with hook() as server:
        Apprise(f"json://127.0.0.1:{server.server_port}/path").tell(MESSAGE)
    sent = json.loads(server.got[0][2])
    assert (sent["title"], sent["message"], sent["type"]) == ("disk (/x)", MESSAGE.text, "failure")


@apprise_there
def test_apprise_that_is_refused_is_an_error_without_the_address() -> None:
    pytest.importorskip("apprise", reason="the extra alerts is not installed")
    with hook(500) as server, pytest.raises(ReceiverError) as caught:
        Apprise(f"json://user:SECRET@127.0.0.1:{server.server_port}/").tell(MESSAGE)
    assert "SECRET" not in str(caught.value)


@apprise_there
def test_an_address_that_apprise_does_not_know_is_a_setting_that_is_not_allowed() -> None:
    pytest.importorskip("apprise", reason="the extra alerts is not installed")
    with pytest.raises(SettingError, match="the form of address 2") as caught:
        Apprise("json://127.0.0.1/ SECRET")
    assert "SECRET" not in caught.value.message


@pytest.mark.skipif(find_spec("apprise") is not None, reason="the extra alerts is installed")
def test_without_apprise_the_message_names_what_installs_it() -> None:
    with pytest.raises(SettingError, match=r"pip install 'llamastream\[alerts\]'"):
        receivers_of(AlertSettings(apprise="json://127.0.0.1/"))


# -- delivery -------------------------------------------------------------------------------------------------------


class Stuck:
    """A receiver that takes nothing until it is let go."""

    name = "stuck"

    def __init__(self) -> None:
        self.entered = threading.Event()
        self.let_go = threading.Event()

    def tell(self, message: Message) -> None:
        self.entered.set()
        self.let_go.wait(30)


def test_a_receiver_that_hangs_costs_drops_that_are_counted_and_no_time() -> None:
    receiver = Stuck()
    delivery = Delivery(receiver)
    delivery.put(MESSAGE)
    assert receiver.entered.wait(10)
    began = time.monotonic()
    taken = [delivery.put(MESSAGE) for _ in range(QUEUED + 7)]
    assert time.monotonic() - began < 1
    assert (sum(taken), delivery.report().dropped, delivery.report().waiting) == (QUEUED, 7, QUEUED + 1)
    receiver.let_go.set()
    delivery.close()
    assert delivery.join(10)
    assert delivery.report().sent == QUEUED + 1


def test_a_failure_that_passes_is_tried_again() -> None:
    pauses: list[int] = []
    with hook(500, 503) as server:
        delivery = Delivery(Webhook(server.url), pause=lambda attempt: pauses.append(attempt) or 0.0)  # type: ignore[func-returns-value]
        delivery.put(MESSAGE)
        wait_for(lambda: delivery.report().sent == 1)
        delivery.close()
        assert delivery.join(10)
    assert len(server.got) == 3
    assert pauses == [1, 2]


def test_what_is_given_up_is_told_with_its_reason() -> None:
    lost: list[tuple[str, str, str]] = []
    with hook(*[500] * 9) as server:
        delivery = Delivery(
            Webhook(server.url), attempts=3, pause=lambda _: 0.0,
            on_failed=lambda name, message, why: lost.append((name, message.id, why)),
        )  # fmt: skip
        delivery.put(MESSAGE)
        wait_for(lambda: bool(lost))
        delivery.close()
        assert delivery.join(10)
    assert lost == [("webhook", "1-2", "it answered 500")]
    assert len(server.got) == 3
    assert (delivery.report().failed, delivery.report().last_error) == (1, "it answered 500")


def test_pauses_grow_and_are_bounded() -> None:
    for attempt in range(1, 12):
        most = min(60.0, 2.0 ** (attempt - 1))
        assert all(most / 2 <= backoff(attempt) <= most for _ in range(50))


# -- settings -------------------------------------------------------------------------------------------------------


def test_secrets_come_from_files_and_are_not_shown(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("Authorization: Bearer abc-secret\n")
    settings = AlertSettings(webhook_header=f"@{tmp_path / 'token'}", apprise="json://a/ json://b/")
    assert revealed(settings.webhook_header, "webhook_header") == "Authorization: Bearer abc-secret"
    assert {"abc-secret", "json://a/", "json://b/"} <= settings.secrets
    assert not {"Bearer", "Authorization:"} & settings.secrets
    with pytest.raises(SettingError, match="webhook_key: the file '/nowhere' cannot be read"):
        revealed("@/nowhere", "webhook_key")


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("webhook", "SECRET", r"webhook = \(hidden\) from .* is not allowed"),
        ("webhook_header", "SECRET", r"webhook_header = \(hidden\) from .* allowed: Name: value"),
        ("silenced", "disk sleep", "there is no rule 'sleep'; there are: instance_down, crash_loop"),
        ("disk_free", "5%", "disk_free = '5%' from .* allowed: a size"),
        ("error_rate", "2", "error_rate = '2' from .* allowed: a number above 0 up to 1"),
    ],
)
def test_a_wrong_value_is_named_unless_it_is_secret(name: str, value: str, message: str) -> None:
    with pytest.raises(SettingError, match=message) as caught:
        load(AlertSettings, environ={f"LLAMASTREAM_ALERTS_{name.upper()}": value, "HOME": os.devnull})
    assert "SECRET" not in caught.value.message


def test_the_rules_have_names() -> None:
    assert known_rule("disk") == "disk"
    with pytest.raises(SettingError, match="there is no rule 'dsik'"):
        known_rule("dsik")


# -- the watch ------------------------------------------------------------------------------------------------------


def test_a_hanging_look_or_receiver_does_not_hold_up_who_tells_of_requests() -> None:
    event = RequestServed(time=0.0, request_id="r", method="POST", route="/", status=200, duration=0.1)
    blocked = threading.Event()

    def look() -> Look:
        blocked.wait(30)
        return Look()

    watchman = Watchman(AlertSettings(), look, lambda message: None)
    watchman.start()
    try:
        began = time.perf_counter()
        for _ in range(10_000):
            watchman.hear(event)
        assert (time.perf_counter() - began) / 10_000 < 50e-6  # it takes 0.3 µs; the bound is for busy machines
    finally:
        blocked.set()
        watchman.close()


def test_a_reload_changes_thresholds_and_receivers_and_a_wrong_one_nothing() -> None:
    said: list[Message] = []
    waiting = 5
    watchman = Watchman(
        AlertSettings(queue_length=10, queue_length_for=0, group_seconds=0), lambda: Look(waiting=waiting), said.append
    )
    try:
        watchman.tick()
        assert said == []
        with hook() as server:
            with pytest.raises(SettingError):
                watchman.reload(AlertSettings(queue_length=1, webhook="@/nowhere"))
            watchman.tick()
            assert said == []
            watchman.reload(AlertSettings(queue_length=5, queue_length_for=0, group_seconds=0, webhook=server.url))
            watchman.tick()
            wait_for(lambda: len(server.got) == 1)
        assert [message.rule for message in said] == ["queue_length"]
    finally:
        watchman.close()


def test_a_test_message_goes_everywhere_and_says_what_came_of_it() -> None:
    said: list[Message] = []
    with hook(500) as server:
        settings = AlertSettings(webhook=server.url, command=(sys.executable, "-c", "import sys; sys.stdin.read()"))
        watchman = Watchman(settings, Look, said.append)
        outcomes = watchman.test("disk")
        watchman.close()
    assert [(each.receiver, each.error) for each in outcomes] == [
        ("log", ""), ("webhook", "it answered 500"), ("command", ""),
    ]  # fmt: skip
    assert (said[0].kind, said[0].rule) == ("test", "disk")
    assert json.loads(server.got[0][2])["kind"] == "test"


def test_a_program_that_is_not_there_is_told_of_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    receivers_of(AlertSettings(command=(sys.executable, "-V")))
    assert not caplog.records
    assert [each.name for each in receivers_of(AlertSettings(command=("/nowhere/at/all", "--now")))] == ["command"]
    assert [each.message for each in caplog.records] == [
        "alerts: there is no program '/nowhere/at/all' to run now (command)"
    ]
