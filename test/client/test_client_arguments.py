"""What a client is made with: mistakes are told where they are made, and headers are sent once."""

from __future__ import annotations

import asyncio
import re
from math import inf, nan
from typing import Any

import pytest

from drivers import DRIVERS, Driver
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.client.stream import Stream
from llamastream.errors import InvalidRequestError, SettingError, StreamConsumedError
from llamastream.settings import ClientSettings
from llamastream.testing import Script, ServerDouble, sse_answer
from llamastream.types import RetryPolicy, Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]
URL = "http://127.0.0.1:1"

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


async def listens(event: Any) -> None:
    """A listener of the kind that nobody would await."""


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"retry": 3}, r"RetryPolicy, not 3 \(int\); as in RetryPolicy\(max_retries=3\)"),
    ({"retry": RetryPolicy(max_retries=-1)}, "RetryPolicy.max_retries must be a whole number from 0 upwards, not -1"),
    ({"retry": RetryPolicy(max_retries=1.5)}, "RetryPolicy.max_retries"),  # type: ignore[arg-type]
    ({"retry": RetryPolicy(base_delay="a")}, "RetryPolicy.base_delay must be a number"),  # type: ignore[arg-type]
    ({"retry": RetryPolicy(max_delay=inf)}, "RetryPolicy.max_delay"),
    ({"retry": RetryPolicy(max_retry_after=nan)}, "RetryPolicy.max_retry_after"),
    ({"retry": RetryPolicy(loading_interval=0)}, "RetryPolicy.loading_interval .* above 0, not 0"),
    ({"timeouts": 3}, r"Timeouts, not 3 \(int\)"),
    ({"timeouts": Timeouts(connect="5")}, "Timeouts.connect must be a number of seconds above 0, not '5'"),  # type: ignore[arg-type]
    ({"timeouts": Timeouts(total=nan)}, "Timeouts.total .* not nan .*; None switches it off"),
    ({"timeouts": Timeouts(first_byte=-1)}, "Timeouts.first_byte"),
    ({"timeouts": Timeouts(content_idle=0)}, "Timeouts.content_idle"),
    ({"settings": {"a": 1}}, "ClientSettings, not dict; .* from_settings"),
    ({"settings": ClientSettings(), "fallback": "maybe"}, "fallback = 'maybe' from the argument .* auto, always"),
    ({"settings": ClientSettings(), "max_connections": -1}, "max_connections = -1 from the argument"),
    ({"settings": ClientSettings(max_connections=0)}, "max_connections = 0 from settings="),
    ({"settings": ClientSettings(base_url="foo"), "base_url": None}, "base_url 'foo' from settings= has no scheme"),
    ({"temperature": True}, "temperature = True from the argument"),
    ({"base_url": 5}, r"base_url must be a str or a list of str, not 5 \(int\)"),
    ({"base_url": [None]}, r"base_url\[0\] must be a str"),
    ({"base_url": [" "]}, r"base_url\[0\] is empty"),
    ({"base_url": []}, "base_url is an empty list"),
    ({"base_url": f"http://{'a' * 70}.example"}, "a part of 70 characters; allowed: 63"),
    ({"base_url": f"http://{'ü' * 70}.example"}, "a host name that cannot be"),
    ({"base_url": "http://a..b"}, "two dots in a row"),
    ({"listeners": print}, r"a list of functions, .*; for one: listeners=\[print\]"),
    ({"listeners": ["a"]}, r"listeners\[0\] must be a function of one event, not 'a'"),
    ({"listeners": "a"}, "a list of functions"),
    ({"listeners": [listens]}, r"listeners\[0\] is an async function"),
    ({"headers": [("X", "a")]}, "headers must be a dict of str to str"),
    ({"headers": {"X": 3}}, r"headers\['X'\] must be a str, not int"),
    ({"headers": {"X y": "a"}}, "headers has the name 'X y'"),
    ({"headers": {"": "a"}}, "headers has the name ''"),
    ({"headers": {"X": "a\r\nY: b"}}, r"headers\['X'\] contains '.r'"),
    ({"headers": {"X": "☃"}}, r"headers\['X'\] contains '☃'"),
    ({"headers": {"X-a": "a", "x-A": "b"}}, "both 'X-a' and 'x-A'"),
    ({"headers": {"content-length": "3"}}, "may not set content-length: it follows from the request"),
    ({"headers": {"Host": "a"}}, "may not set Host: it follows from base_url"),
    ({"headers": {"Transfer-Encoding": "chunked"}}, "may not set Transfer-Encoding"),
    ({"headers": {"Connection": "close"}}, "may not set Connection: the client manages"),
    ({"headers": {"X-Conversation-Id": "a"}}, "may not set X-Conversation-Id: the client gives each request"),
    ({"headers": {"Accept-Encoding": "gzip"}}, "Accept-Encoding to 'identity' only"),
]


@pytest.mark.parametrize("kind", [StreamingClient, AsyncStreamingClient])
@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[says for _, says in WRONG])
def test_a_wrong_argument_is_told_at_once(kind: type, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingError, match=says):
        kind(**{"base_url": URL, **arguments})


def test_what_is_unusual_but_right_is_taken() -> None:
    retry = RetryPolicy(max_retries=10**6, base_delay=0, max_delay=0, loading_patience=inf, recovery_patience=inf)
    client = StreamingClient(
        ("http://a", "http://b."), retry=retry, timeouts=Timeouts.all(1e300), listeners=(print,), headers={"X": "é"}
    )
    assert client.base_urls == ("http://a", "http://b.")
    assert StreamingClient("http://bücher.example").base_url == "http://bücher.example"


def test_the_key_in_wrong_settings_is_not_shown() -> None:
    with pytest.raises(SettingError) as caught:
        StreamingClient(settings={"api_key": "sesame"})
    assert "sesame" not in str(caught.value)


def test_the_clocks_of_one_request_are_checked_before_it_is_sent() -> None:
    for kind in (StreamingClient, AsyncStreamingClient):
        with pytest.raises(InvalidRequestError, match=re.escape("Timeouts.total must be a number of seconds above 0")):
            kind(URL).stream_chat(MESSAGES, timeouts=Timeouts(total=-1))


@each_driver
@pytest.mark.parametrize("timeout", [0, -1, nan, "3", True])
def test_a_wrong_timeout_of_health_is_told(driver: Driver, timeout: Any) -> None:
    with pytest.raises(InvalidRequestError, match="timeout must be a number of seconds above 0, or None"):
        driver.call(URL, "health", timeout=timeout)


@each_driver
def test_prewarm_decides_how_much_is_generated(driver: Driver) -> None:
    with pytest.raises(InvalidRequestError, match="prewarm has no max_tokens"):
        driver.call(URL, "prewarm", MESSAGES, max_tokens=3)


@each_driver
def test_headers_of_the_caller_are_sent_once_and_win(driver: Driver) -> None:
    headers = {"authorization": "Basic x", "ACCEPT": "text/event-stream", "User-agent": "me", "X-Team": "a"}
    headers["content-type"] = "application/json; charset=utf-8"
    with ServerDouble(Script(sse_answer(["a"]))) as server:
        driver.result(server.url, MESSAGES, {"headers": headers, "api_key": "k"})
        head = server.requests[0].partition(b"\r\n\r\n")[0].decode()
    sent = [line.partition(": ") for line in head.split("\r\n")[1:]]
    names = [name.lower() for name, _, _ in sent]
    assert len(names) == len(set(names))
    assert {name: value for name, _, value in sent if name in headers} == headers


@each_driver
def test_without_headers_of_the_caller_ours_are_sent(driver: Driver) -> None:
    with ServerDouble(Script(sse_answer(["a"]))) as server:
        driver.result(server.url, MESSAGES, {"api_key": "k"})
        head = server.requests[0].partition(b"\r\n\r\n")[0]
    for line in (b"Authorization: Bearer k", b"Content-Type: application/json", b"User-Agent: llamastream"):
        assert head.count(line) == 1


# -- one consumer, one way --------------------------------------------------------------------------------------


def test_a_stream_is_read_as_text_or_as_events() -> None:
    with ServerDouble(Script(sse_answer(["a", "b"]))) as server, StreamingClient(server.url) as client:
        stream = client.stream_chat(MESSAGES)
        assert next(stream) == "a"
        with pytest.raises(StreamConsumedError, match="already being read as text; .* by events"):
            stream.events()
        assert list(stream) == ["b"], "and goes on"
        stream = client.stream_chat(MESSAGES)
        events = stream.events()
        next(events)
        with pytest.raises(StreamConsumedError, match="already being read by events.* as text"):
            next(stream)
        assert stream.result().text == "ab"


def test_a_stream_that_was_closed_before_it_began() -> None:
    client = StreamingClient(URL)
    stream = client.stream_chat(MESSAGES)
    assert stream.finish_reason is None
    stream.close()
    assert stream.finish_reason == stream.result().finish_reason == "cancelled"
    for read in (iter, next, Stream.events):
        with pytest.raises(StreamConsumedError, match="this stream was closed"):
            read(stream)


def test_the_same_in_asyncio() -> None:
    async def main(url: str) -> None:
        async with AsyncStreamingClient(url) as client:
            stream = client.stream_chat(MESSAGES)
            assert await anext(stream) == "a"
            with pytest.raises(StreamConsumedError, match="already being read as text"):
                stream.events()
            assert [text async for text in stream] == ["b"]
            stream = client.stream_chat(MESSAGES)
            await anext(stream.events())
            with pytest.raises(StreamConsumedError, match="already being read by events"):
                await anext(stream)
            closed = client.stream_chat(MESSAGES)
            await closed.close()
            assert closed.finish_reason == (await closed.result()).finish_reason == "cancelled"
            with pytest.raises(StreamConsumedError, match="this stream was closed"):
                aiter(closed)
            with pytest.raises(StreamConsumedError, match="this stream was closed"):
                closed.events()
            with pytest.raises(StreamConsumedError, match="this stream was closed"):
                await anext(closed)

    with ServerDouble(Script(sse_answer(["a", "b"]))) as server:
        asyncio.run(main(server.url))


@pytest.mark.parametrize("client", [StreamingClient, AsyncStreamingClient])
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("timeout", 3, r"^timeout = 3 is no argument of \w+: .*timeouts=Timeouts\(connect=.*Timeouts\.all\("),
        ("max_retries", 5, r"^max_retries = 5 is no argument of \w+: use retry=RetryPolicy\(max_retries="),
        ("default_headers", {"X-Key": "topsecret"}, r"^default_headers is no argument of \w+: use headers$"),
    ],
)
def test_what_other_clients_call_their_arguments_is_told(client: Any, name: str, value: Any, says: str) -> None:
    with pytest.raises(SettingError, match=says):
        client("http://x", **{name: value})


def test_what_no_client_has_is_the_usual_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        StreamingClient("http://x", colour="red")


def test_the_key_is_in_no_representation() -> None:
    client = StreamingClient("http://x", api_key="topsecret", model="demo")
    assert repr(client.settings) == "ClientSettings(base_url='http://x', api_key='***', model='demo')"
    assert "topsecret" not in f"{client!r} {client.settings} {list(client.settings.__rich_repr__())}"
    assert client.settings.api_key == "topsecret"
