"""TLS, Unix sockets, keys, and settings from the environment."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from drivers import Driver
from faults import MESSAGES, TEXTS, each_driver
from llamastream.client import StreamingClient
from llamastream.engine import EngineOptions, launch
from llamastream.errors import (
    ConnectError,
    LlamaStreamError,
    SettingError,
)
from llamastream.testing import Script, ServerDouble, sse_answer

pytestmark = pytest.mark.usefixtures("no_descriptor_is_left", "no_recovery")


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@each_driver
def test_https_with_an_own_authority_and_a_client_certificate(
    driver: Driver, authority: trustme.CA, tmp_path: Path
) -> None:
    ca_file, own = tmp_path / "ca.pem", tmp_path / "own.pem"
    authority.cert_pem.write_to_path(ca_file)
    authority.issue_cert("client@example.org").private_key_and_cert_chain_pem.write_to_path(own)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    with ServerDouble(Script(sse_answer(TEXTS)), tls=context) as server:
        options = {"ca_file": str(ca_file), "cert_file": str(own)}
        assert driver.texts(server.url, MESSAGES, options) == TEXTS
        with pytest.raises(LlamaStreamError):  # TLS 1.3 tells the client of the missing certificate when it reads
            driver.texts(server.url, MESSAGES, {"ca_file": str(ca_file)})
        with pytest.raises(ConnectError, match="not trusted"):
            driver.texts(server.url, MESSAGES)


@each_driver
def test_plain_and_tls_mixed_up(driver: Driver, authority: trustme.CA) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    with ServerDouble(Script(sse_answer(TEXTS)), tls=context) as server, pytest.raises(LlamaStreamError):
        driver.texts(server.url.replace("https", "http"), MESSAGES)
    plain = ServerDouble(Script(sse_answer(TEXTS), read_request=False))
    with plain as server, pytest.raises(ConnectError, match="does the server speak https"):
        driver.texts(server.url.replace("http", "https"), MESSAGES)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"ca_file": "/no/such.pem"}, "ca_file = '/no/such.pem' does not exist"),
        ({"key_file": __file__}, "cert_file is not"),
        ({"cert_file": __file__}, "must be PEM"),
    ],
)
def test_wrong_tls_files_are_named(options: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        StreamingClient("https://localhost", **options)


@each_driver
def test_unix_sockets(driver: Driver, tmp_path: Path) -> None:
    path = str(tmp_path / "server.sock")
    with launch(EngineOptions(kind="embedded", socket=path, parallel=1, ctx_size=512)) as engine:
        assert engine.url == f"unix://{path}"
        assert driver.call(engine.url, "check_server_health") is True
        assert driver.texts(engine.url, MESSAGES, max_tokens=5)


def test_settings_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with ServerDouble(Script(sse_answer(TEXTS))) as server:
        monkeypatch.setenv("LLAMASTREAM_BASE_URL", server.url + "/v1")
        monkeypatch.setenv("LLAMASTREAM_API_KEY", "sesame")
        monkeypatch.setenv("LLAMASTREAM_TEMPERATURE", "0")
        monkeypatch.setenv("LLAMASTREAM_MODEL", "m")
        client = StreamingClient()
        assert client.chat(MESSAGES).text == "".join(TEXTS)
        assert client.chat(MESSAGES, temperature=1).text == "".join(TEXTS)
        first, second = server.requests
    assert b"Authorization: Bearer sesame\r\n" in first
    assert b'"temperature":0.0' in first
    assert b'"model":"m"' in first
    assert b'"temperature":1' in second
    assert "sesame" not in repr(client)


@pytest.mark.parametrize("key", ["a\r\nX: y", "schlüssel"])
def test_keys_that_cannot_be_a_header(key: str) -> None:
    with pytest.raises(SettingError, match="api_key") as caught:
        StreamingClient("http://x", api_key=key)
    assert key not in str(caught.value)
