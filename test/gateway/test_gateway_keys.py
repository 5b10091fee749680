"""API keys: forms, scopes, what is refused and how, and that no key is shown anywhere."""

from __future__ import annotations

import hashlib
import hmac
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wires import Heard, ask

from commandline import run
from gateways import Running, serving
from llamastream import StreamingClient
from llamastream.engine import Engine
from llamastream.errors import AuthenticationError, SettingError
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.exposure import check_exposure, is_loopback
from llamastream.gateway.keys import Key, KeyRing, key_texts, load_keys, new_key, parse_keys, presented_key
from llamastream.gateway.server import GatewayServer
from polling import wait_for

USER, WATCHER, ADMIN = "sk-user-0123456789", "sk-watcher-0123456789", "sk-admin-0123456789"


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


# -- forms ------------------------------------------------------------------------------------------------------


def test_every_form_of_a_line() -> None:
    lines = ["# of the house", "", USER, f"ops:metrics,admin:{ADMIN}", digest("x" * 20), f"w:metrics:{digest(WATCHER)}"]
    ring = KeyRing(parse_keys(lines, "the test"))
    found = [ring.find(key) for key in (USER, ADMIN, "x" * 20, WATCHER)]
    assert [(key.name, sorted(key.scopes)) for key in found if key] == [
        ("key-3", ["inference"]),
        ("ops", ["admin", "metrics"]),
        ("key-5", ["inference"]),
        ("w", ["metrics"]),
    ]
    for wrong in ("", USER[:-1], USER + "x", digest(USER), "ops", f"ops:metrics,admin:{ADMIN}", "\udcff"):
        assert ring.find(wrong) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("short", "16 to 512"),
        ("x" * 513, "16 to 512"),
        ("with blanks in the middle", "without blanks"),
        ("a:b", "NAME:SCOPE"),
        ("a b:inference:0123456789abcdef", "a name has letters"),
        ("a:inferenc:0123456789abcdef", "'inferenc' is unknown; allowed: inference, metrics, admin"),
        ("a::0123456789abcdef", "'' is unknown"),
        ("sha256:12", "64 hexadecimal digits"),
        ("a:metrics:sha256:" + "g" * 64, "64 hexadecimal digits"),
    ],
)
def test_a_line_that_is_no_key_is_refused_without_being_shown(line: str, says: str) -> None:
    with pytest.raises(SettingError, match=says) as raised:
        parse_keys([USER, line], "keys.txt")
    assert "line 2 of keys.txt" in raised.value.message
    assert line.rpartition(":")[2][:12] not in raised.value.message or len(line) < 12


@pytest.mark.parametrize("lines", [[USER, USER], [f"a:metrics:{USER}", f"a:metrics:{ADMIN}"], [USER, digest(USER)]])
def test_keys_that_are_there_twice_are_refused(lines: list[str]) -> None:
    with pytest.raises(SettingError, match="one before it"):
        KeyRing(parse_keys(lines, "the test"))


def test_keys_of_file_and_environment_together(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{USER}\nops:metrics:{digest(WATCHER)}\n")
    file.chmod(0o600)
    ring, notes = load_keys(str(file), f"{ADMIN} root:admin:{digest('r' * 20)}")
    assert [getattr(ring.find(key), "name", None) for key in (USER, WATCHER, ADMIN, "r" * 20)] == [
        "key-1", "ops", "env-key-1", "root",
    ]  # fmt: skip
    assert notes == []
    file.chmod(0o644)
    assert "others may read it" in load_keys(str(file), None)[1][0]
    file.write_text(f"ops:metrics:{digest(WATCHER)}\n")
    assert load_keys(str(file), None)[1] == []
    file.write_text("# none\n")
    with pytest.raises(SettingError, match="holds no key"):
        load_keys(str(file), None)
    with pytest.raises(SettingError, match="cannot be read"):
        load_keys(str(tmp_path / "nothing"), None)
    assert len(load_keys(None, None)[0]) == 0


def test_every_key_is_compared_and_none_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []
    original = hmac.compare_digest

    def compare(one: bytes, other: bytes) -> bool:
        compared.append(one)
        return original(one, other)

    ring = KeyRing(parse_keys([USER, WATCHER, ADMIN], "the test"))
    monkeypatch.setattr(hmac, "compare_digest", compare)
    for presented in (USER, ADMIN, "nonsense"):
        compared.clear()
        ring.find(presented)
        assert len(compared) == 3
    shown = repr(ring) + repr(ring.find(USER)) + repr(vars(ring))
    assert USER not in shown
    assert hashlib.sha256(USER.encode()).hexdigest() not in shown


def test_admin_may_do_everything() -> None:
    admin = Key("a", frozenset({"admin"}), b"")
    assert admin.may("inference")
    assert admin.may("metrics")
    assert not Key("i", frozenset({"inference"}), b"").may("metrics")


@pytest.mark.parametrize(
    ("headers", "key"),
    [
        ([], None),
        ([(b"authorization", b"Bearer abc")], "abc"),
        ([(b"authorization", b"bearer  abc ")], "abc"),
        ([(b"authorization", b"Basic abc")], None),
        ([(b"x-api-key", b"abc")], "abc"),
        ([(b"x-api-key", b"one"), (b"authorization", b"Bearer two")], "two"),
    ],
)
def test_how_a_key_is_shown(headers: list[tuple[bytes, bytes]], key: str | None) -> None:
    assert presented_key(headers) == key


# -- the gateway ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def gateway(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"user:inference:{digest(USER)}\nwatcher:metrics:{digest(WATCHER)}\nroot:admin:{digest(ADMIN)}\n")
    with serving(Upstreams([engine.url]), GatewaySettings(keys_file=str(file))) as running:
        wait_for(lambda: running.gateway.source.snapshot()[0].models != ())
        yield running


def get(gateway: Running, path: str, key: str | None, method: str = "GET", body: Any = None) -> Heard:
    headers: dict[str, Any] = {} if key is None else {"Authorization": f"Bearer {key}"}
    return ask(gateway.url, method, path, body, **headers)


@pytest.mark.parametrize(
    ("path", "statuses"),
    [  # without a key, a wrong one, inference, metrics, admin
        ("/health", (200, 200, 200, 200, 200)),
        ("/v1/models", (401, 401, 200, 403, 200)),
        ("/props", (401, 401, 200, 403, 200)),
        ("/metrics", (401, 401, 403, 200, 200)),
        ("/fleet", (401, 401, 403, 200, 200)),
        ("/slots", (401, 401, 403, 403, 200)),
        ("/lora-adapters", (401, 401, 403, 403, 200)),
        ("/nothing", (401, 401, 404, 403, 404)),
        ("/slots/../metrics", (401, 401, 404, 403, 404)),
        ("//metrics", (401, 401, 404, 403, 404)),
    ],
)
def test_who_may_do_what(gateway: Running, path: str, statuses: tuple[int, ...]) -> None:
    keys = (None, "sk-wrong-0123456789", USER, WATCHER, ADMIN)
    assert tuple(get(gateway, path, key).status for key in keys) == statuses


def test_a_refusal_has_the_form_of_its_api(gateway: Running) -> None:
    refused = get(gateway, "/v1/chat/completions", None, "POST", {})
    assert refused.json["error"]["type"] == "authentication_error"
    assert refused.json["error"]["code"] == 401
    assert b"www-authenticate: Bearer" in refused.head
    anthropic = get(gateway, "/v1/messages", None, "POST", {})
    assert anthropic.json["type"] == "error"
    assert anthropic.json["error"]["type"] == "authentication_error"
    denied = get(gateway, "/v1/messages", WATCHER, "POST", {})
    assert (denied.status, denied.json["error"]["type"]) == (403, "permission_error")
    assert "inference" in denied.json["error"]["message"]


def test_a_client_with_a_key_streams_and_one_without_does_not(gateway: Running) -> None:
    question = [{"role": "user", "content": "Who are you?"}]
    with StreamingClient(gateway.url, api_key=USER, temperature=0) as client:
        assert "".join(client.stream_chat(question))
    with StreamingClient(gateway.url, temperature=0) as client, pytest.raises(AuthenticationError):
        client.chat(question)
    assert ask(gateway.url, body={"messages": question, "max_tokens": 1}, x_api_key=USER).status == 200


def test_keys_are_replaced_while_the_gateway_runs(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(digest(USER))
    settings = GatewaySettings(keys_file=str(file))
    with serving(Upstreams([engine.url]), settings) as gateway:
        assert get(gateway, "/v1/models", USER).status == 200
        file.write_text(digest(WATCHER))
        gateway.server.reload(settings)
        assert get(gateway, "/v1/models", USER).status == 401
        assert get(gateway, "/v1/models", WATCHER).status == 200
        file.write_text("nonsense")
        with pytest.raises(SettingError):
            gateway.server.reload(settings)
        assert get(gateway, "/v1/models", WATCHER).status == 200


def test_neither_keys_nor_prompts_are_in_the_logs(gateway: Running, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        body = {"messages": [{"role": "user", "content": "the secret of the prompt"}], "max_tokens": 2}
        get(gateway, "/v1/chat/completions", USER, "POST", body)
        get(gateway, "/v1/chat/completions?key=" + USER, "sk-wrong-0123456789", "POST", body)
        get(gateway, "/slots/" + USER, ADMIN)
        wait_for(lambda: '"/slots/{id}"' in caplog.text)
    assert '"key": "user"' in caplog.text
    for secret in (USER, ADMIN, "sk-wrong", "secret of the prompt"):
        assert secret not in caplog.text


def test_the_servers_key_is_not_given_away(engine: Engine) -> None:
    key = "sk-upstream-0123456789"
    with serving(Upstreams([engine.url], key)) as gateway:
        wait_for(lambda: gateway.gateway.source.snapshot()[0].models != ())
        heard = b"".join(
            ask(gateway.url, "GET", path).raw for path in ("/fleet", "/metrics", "/v1/models", "/props", "/health")
        )
        assert key.encode() not in heard
        assert b"upstream-0" in heard


# -- exposure ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("", False), ("192.168.1.2", False), ("example", False)],
)  # fmt: skip
def test_addresses_that_others_reach_need_keys(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback
    check_exposure(host, keys=1, allow_open=False)
    check_exposure(host, keys=0, allow_open=True)
    if loopback:
        check_exposure(host, keys=0, allow_open=False)
    else:
        with pytest.raises(SettingError, match="--allow-open"):
            check_exposure(host, keys=0, allow_open=False)


def test_a_server_on_all_addresses_without_keys_is_refused(gateway: Running) -> None:
    app = gateway.server.app
    with serving(gateway.gateway.source) as open_to_all, pytest.raises(SettingError, match="llamastream keys new"):
        GatewayServer(open_to_all.server.app, host="0.0.0.0", port=0)
    GatewayServer(app, host="0.0.0.0", port=0)  # this one has keys


# -- the command ------------------------------------------------------------------------------------------------


def test_a_new_key_works_and_is_another_each_time() -> None:
    made = [new_key("ops", ["metrics", "inference"]) for _ in range(2)]
    assert made[0][0] != made[1][0]
    for key, line in made:
        found = KeyRing(parse_keys([line], "the test")).find(key)
        assert found is not None
        assert found.scopes == {"metrics", "inference"}
        assert key not in line


def test_the_command_prints_key_and_line_apart(tmp_path: Path) -> None:
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHONPATH": "src"}
    done: subprocess.CompletedProcess[str] = run(environ, "keys", "new", "ops", "--scope", "metrics")
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    line = done.stderr.strip().splitlines()[-1]
    assert KeyRing(parse_keys([line], "the test")).find(key) is not None
    assert key not in done.stderr
    wrong = run(environ, "keys", "new", "ops", "--scope", "everything")
    assert wrong.returncode == 1
    assert "allowed: inference, metrics, admin" in wrong.stderr


def test_every_key_of_the_setting_is_known_to_be_kept_out_of_logs() -> None:
    plain, colons, digested = "sk-0123456789abcdef", "a-key:with-colons:in-it", "sha256:" + "0" * 64
    setting = f"{plain} ops:admin:{colons} weight=2 priority=low team:inference:{digested} {digested}"
    assert key_texts(setting) == {plain, colons}
    assert key_texts(None) == key_texts("name:inference:") == frozenset()
