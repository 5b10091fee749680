"""Base URLs in every spelling, and the wrong ones with an error that helps."""

from __future__ import annotations

import pytest

from llamastream.address import parse_address
from llamastream.errors import SettingError


@pytest.mark.parametrize(
    ("url", "canonical", "target", "host"),
    [
        ("http://localhost:8080", "http://localhost:8080", "/health", "localhost:8080"),
        ("http://localhost:8080/v1", "http://localhost:8080", "/health", "localhost:8080"),
        ("http://localhost:8080/v1/", "http://localhost:8080", "/health", "localhost:8080"),
        ("https://example.org", "https://example.org", "/health", "example.org"),
        ("https://example.org/llm/v1", "https://example.org/llm", "/llm/health", "example.org"),
        ("http://[::1]:8080", "http://[::1]:8080", "/health", "[::1]:8080"),
        ("HTTP://Host", "http://host", "/health", "host"),
        ("unix:///run/x.sock", "unix:///run/x.sock", "/health", "localhost"),
        ("http+unix://%2Frun%2Fx.sock/v1", "unix:///run/x.sock", "/health", "localhost"),
    ],
)
def test_spellings(url: str, canonical: str, target: str, host: str) -> None:
    address = parse_address(url)
    assert (address.url, address.target("/health"), address.host_header) == (canonical, target, host)
    assert parse_address(address.url) == address or address.socket


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("localhost:8080", "did you mean http://localhost:8080"),
        ("", "empty"),
        ("ftp://x", "scheme 'ftp'"),
        ("http://", "no host"),
        ("http://x:99999", "cannot be read"),
        ("http://x:0", "port 0"),
        ("http://x?a=1", "query"),
        ("http://x y", "spaces"),
        ("http://x\r\nHost: evil", "control"),
        ("unix://relative.sock", "absolute"),
        ("http://[::1", "cannot be read"),
        ("http://x/v1/chat/completions", "names an endpoint"),
    ],
)
def test_wrong_ones_say_what_is_allowed(url: str, says: str) -> None:
    with pytest.raises(SettingError) as caught:
        parse_address(url)
    assert says in str(caught.value)


def test_a_key_in_the_url_is_refused_without_repeating_it() -> None:
    with pytest.raises(SettingError) as caught:
        parse_address("http://user:sesame@host")
    assert "sesame" not in str(caught.value)
    assert "api_key" in str(caught.value)


def test_the_source_of_an_address_is_named() -> None:
    for url in ("foo", "http://user:sesame@host", "ftp://x", "unix://x"):
        with pytest.raises(SettingError, match=r"^base_url .* from --url "):
            parse_address(url, "--url")
