"""What the endpoints do beside streams: names, lists of models, headers and keys that stay where they belong."""

from __future__ import annotations

import asyncio
import base64
import re
import struct
import threading
import zlib
from typing import Any

import pytest
from wires import Heard, ask, chat, dial, hear, request_bytes

from fleets import running
from gateways import Running, serving
from llamastream.backends import StaticBackends
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.client.holdings import flush
from llamastream.engine import Engine, EngineOptions, launch
from llamastream.errors import AuthenticationError
from llamastream.fleet import Pool
from llamastream.gateway import GatewaySettings, Upstreams
from llamastream.gateway.refusals import in_form, public
from llamastream.testing import ChaosProxy, Reset, Script, ServerDouble
from polling import wait_for

STORY = [{"role": "user", "content": "Tell me a story."}]
OURS = "sk-upstream-0123456789"
THEIRS = "sk-client-0123456789"


def answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: application/json", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def ready(running: Running) -> None:
    wait_for(lambda: all(each.models for each in running.gateway.source.snapshot()))


# -- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/chat/completions", {"messages": STORY, "max_tokens": 5, "stream": True}),
        ("/completions", {"prompt": "Once", "n_predict": 5}),
        ("/responses", {"input": "Who are you?", "max_output_tokens": 5}),
        ("/v1/chat/completions/input_tokens", {"messages": STORY}),
        ("/responses/input_tokens", {"input": "Who are you?"}),
        ("/v1/messages/count_tokens", {"messages": STORY}),
        ("/apply-template", {"messages": STORY}),
    ],
)
def test_every_name_of_llama_server_is_known(engine: Engine, path: str, body: dict[str, Any]) -> None:
    with serving(Upstreams([engine.url])) as gateway:
        through, direct = (ask(url, path=path, body=body) for url in (gateway.url, engine.url))
        assert through.status == direct.status == 200
        assert set(_last(through)) == set(_last(direct))
        wait_for(lambda: len(gateway.served) == 1)
        assert gateway.served[0].route != "other"


def _last(heard: Heard) -> dict[str, Any]:
    found = heard.events[-2] if b"event-stream" in heard.head else heard.json
    assert isinstance(found, dict)
    return found


# -- models, props, health --------------------------------------------------------------------------------------


def test_models_are_described_by_their_servers() -> None:
    pools = [
        Pool(name="a", options=EngineOptions(threads=1, alias="a")),
        Pool(name="b/b", options=EngineOptions(threads=1, alias="b/b", ctx_size=512)),
    ]
    pools = [Pool(name=pool.name.replace("/", "-"), options=pool.options) for pool in pools]
    with running(pools, instances=1) as watched, serving(watched.fleet) as gateway:
        watched.wait_all_ready()
        for path in ("/v1/models", "/models"):
            found = ask(gateway.url, "GET", path).json
            assert found["object"] == "list"
            assert [each["id"] for each in found["data"]] == ["a", "b/b"]
            assert [each["model"] for each in found["models"]] == ["a", "b/b"]
            for each in found["data"]:
                assert (each["object"], each["owned_by"]) == ("model", "llamacpp")
                assert each["created"] > 1_700_000_000
                assert each["meta"]["n_params"] > 0
            assert found["data"][1]["meta"]["n_ctx"] == 512
        assert ask(gateway.url, "GET", "/v1/models/b/b").json["id"] == "b/b"
        missing = ask(gateway.url, "GET", "/v1/models/c")
        assert (missing.status, missing.json["error"]["type"]) == (404, "not_found_error")
        contexts = {
            name: ask(gateway.url, "GET", f"/props?model={name}").json["default_generation_settings"]["n_ctx"]
            for name in ("a", "b%2Fb")
        }
        assert contexts["b%2Fb"] == 512 < contexts["a"]
        assert ask(gateway.url, "GET", "/props?model=c").status == 404
        # a server that is down stays in the list, by its name
        watched.fleet.drain("b-b-0").done.result(10)
        assert ask(gateway.url, "GET", "/v1/models").json["data"][1] == {
            "id": "b/b", "object": "model", "created": 0, "owned_by": "llamacpp",
        }  # fmt: skip
        assert ask(gateway.url, "GET", "/health").json == {"status": "ok", "ready": 1, "instances": 2}


def test_health_answers_heads_too(engine: Engine) -> None:
    with serving(Upstreams([engine.url])) as gateway:
        for path in ("/health", "/v1/health", "/v1/models", "/props"):
            heard = ask(gateway.url, "HEAD", path)
            assert (heard.status, heard.framed) == (200, b"")


# -- what stays where it belongs --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": STORY, "stream": True}),
        ("/v1/chat/completions", {"messages": STORY}),
        ("/v1/messages", {"messages": STORY, "stream": True}),
        ("/tokenize", {"content": "a"}),
    ],
)
def test_headers_of_a_client_stay_with_the_gateway(path: str, body: dict[str, Any]) -> None:
    script = Script(answer("200 OK", b"{}", "Set-Cookie: a=b", "X-Inner: c", f"X-Key: {OURS}", "Server: d"))
    source_key = GatewaySettings(api_keys=THEIRS)
    with ServerDouble(script) as double, serving(StaticBackends((double.url,), OURS), source_key) as gateway:
        theirs = {"Authorization": f"Bearer {THEIRS}", "Cookie": "secret=1", "Proxy_Authorization": "Basic abc"}
        hops = {
            "X_Forwarded_For": "10.0.0.1",
            "Connection": "close, X-Hop",
            "X_Hop": "1",
            "TE": "trailers",
            "Via": "1.1 theirs",
        }
        ids = {"X_Request_Id": "mine-1", "X_Conversation_Id": "theirs"}
        heard = ask(gateway.url, path=path, body=body, **theirs, **hops, **ids)  # type: ignore[arg-type]  # all headers
        request = double.requests[0].partition(b"\r\n\r\n")[0].decode().lower().splitlines()
    sent = {line.partition(":")[0]: line.partition(": ")[2] for line in request[1:]}
    sent.pop("x-conversation-id", None)  # the gateway's own, under which it would take the stream up again
    assert re.fullmatch(r"1\.1 llamastream-[0-9a-f]{16}", sent.pop("via")), "a mark of its own, and nothing else"
    assert set(sent) <= {"host", "authorization", "accept", "content-type", "content-length", "user-agent"}
    assert sent["authorization"] == f"bearer {OURS}"
    assert sent["user-agent"].startswith("llamastream")
    assert "theirs" not in "".join(request)
    head = heard.head.lower()
    for name in (b"set-cookie", b"x-inner", b"x-key", b"server", OURS.encode()):
        assert name not in head
    assert b"x-request-id: mine-1" in head


def test_that_the_gateway_is_not_let_in_is_no_fault_of_the_client() -> None:
    refused = f'{{"error":{{"message":"Invalid API Key: {OURS}","type":"authentication_error","code":401}}}}'.encode()
    script = Script(answer("401 Unauthorized", refused))
    with ServerDouble(script) as double, serving(StaticBackends((double.url,), OURS)) as gateway:
        for path, body in (
            ("/v1/chat/completions", {"messages": STORY, "stream": True}),
            ("/v1/chat/completions", {"messages": STORY}),
            ("/v1/messages", {"messages": STORY, "stream": True}),
            ("/tokenize", {"content": "a"}),
        ):
            heard = ask(gateway.url, path=path, body=body)
            assert (heard.status, heard.json["error"]["message"]) == (
                502, "the server does not accept the gateway's API key",
            )  # fmt: skip
            assert OURS.encode() not in heard.raw


def test_where_the_servers_are_is_not_told() -> None:
    for text, told in (
        ("http://127.0.0.1:81/v1/x broke off", "the server broke off"),
        ("http://127.0.0.1:81: no connection", "the server: no connection"),
        ("see (unix:///run/a.sock), then wait", "see (the server), then wait"),
        ("no address", "no address"),
    ):
        assert public(AuthenticationError(text)) == told


def test_an_error_that_is_no_error_passes_untouched() -> None:
    for body in (b"", b"no json", b"[]", b'{"type":"error","error":{}}', b'{"message":"a"}'):
        assert in_form("/v1/messages", body) == body
    assert in_form("/v1/messages", b'{"error":{"code":400}}') == b'{"type":"error","error":{"code":400}}'


# -- pictures ---------------------------------------------------------------------------------------------------


def picture() -> str:
    """A PNG of one pixel as a data URI."""

    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = part(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + head + part(b"IDAT", zlib.compress(b"\0\xff\0\0")) + part(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(png).decode()


def with_picture(uri: str) -> list[dict[str, Any]]:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": uri}}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("stream", [True, False])
def test_a_picture_for_a_model_that_sees_none_is_refused_by_the_server(engine: Engine, stream: bool) -> None:
    body = {"messages": with_picture(picture()), "stream": stream}
    with serving(Upstreams([engine.url])) as gateway:
        through, direct = (ask(url, body=body) for url in (gateway.url, engine.url))
        assert (through.status, through.body) == (direct.status, direct.body)
        assert "image input is not supported" in through.json["error"]["message"]
        large = {"messages": with_picture("data:image/png;base64," + "A" * 10_000_000), "stream": stream}
        assert ask(gateway.url, body=large).body == direct.body  # 10 MB pass
        larger = {"messages": with_picture("data:image/png;base64," + "A" * 34_000_000), "stream": stream}
        heard = ask(gateway.url, body=larger)
        assert (heard.status, heard.json["error"]["code"]) == (413, 413)


def test_parts_of_text_pass_and_are_mended(engine: Engine) -> None:
    parts = [{"type": "text", "text": "Tell me"}, {"type": "text", "text": " a story."}]
    body = {"messages": [{"role": "user", "content": parts}], "temperature": 0}
    with running(EngineOptions(threads=1), instances=2) as watched, serving(watched.fleet) as gateway:
        whole = ask(engine.url, body=body).json["choices"][0]["message"]["content"]
        with dial(gateway.url) as connection:
            connection.sendall(
                request_bytes("POST", "/v1/chat/completions", {**body, "stream": True}, Connection="close")
            )
            begun = hear(connection, lambda raw: raw.count(b"data:") > 3)
            watched.kill(0)
            rest = hear(connection)
        assert Heard(begun.raw + rest.raw, rest.ended).joined() == whole


# -- our own clients --------------------------------------------------------------------------------------------


def test_our_client_through_the_gateway_needs_nothing_that_is_not_there(engine: Engine) -> None:
    """No /slots: nothing of that is asked for over and over, and no stream fails for it."""
    with serving(Upstreams([engine.url])) as gateway:
        ready(gateway)
        with StreamingClient(gateway.url, temperature=0) as client:
            texts = ["".join(client.stream_chat(STORY, max_tokens=40))]
            assert flush()
            texts += ["".join(client.stream_chat(STORY, max_tokens=40)) for _ in range(4)]
            stream = client.stream_chat(STORY, max_tokens=4000, ignore_eos=True)
            next(iter(stream))
            stream.close()
        assert len(set(texts)) == 1
        wait_for(lambda: gateway.gateway.lanes.active == 0)
        wait_for(lambda: len(gateway.served) >= 6)
        routes = [event.route for event in gateway.served]
        assert routes.count("/v1/chat/completions") == 6
        assert routes.count("other") == 0


async def _talk(url: str) -> str:
    async with AsyncStreamingClient(url, temperature=0) as client:
        pieces = [text async for text in client.stream_chat(STORY)]
        assert (await client.health()).ok
        assert await client.models() == ["demo"]
        assert (await client.props())["total_slots"] == 4
        tokens = await client.tokenize("a stream")
        assert await client.detokenize(tokens) == "a stream"
        return "".join(pieces)


def test_our_asynchronous_client(engine: Engine) -> None:
    with serving(Upstreams([engine.url])) as gateway:
        assert asyncio.run(_talk(gateway.url)) == chat(engine.url, STORY, temperature=0).joined()


def test_a_break_before_the_gateway_is_mended_by_our_client(engine: Engine) -> None:
    """The client's own recovery: the gateway holds the stream, and the client takes it up again."""
    with (
        serving(Upstreams([engine.url])) as gateway,
        ChaosProxy(gateway.url, Reset(after_events=10)) as proxy,
        StreamingClient(proxy.url, temperature=0) as client,
    ):
        ready(gateway)
        stream = client.stream_chat(STORY, max_tokens=200)
        text = "".join(stream)
        assert text == chat(engine.url, STORY, temperature=0, max_tokens=200).joined()
        assert [recovery.kind for recovery in stream.result().stats.recoveries] == ["reattach"]


def test_a_client_with_a_wrong_key_is_told_so(engine: Engine) -> None:
    with (
        serving(Upstreams([engine.url]), GatewaySettings(api_keys=THEIRS)) as gateway,
        StreamingClient(gateway.url, api_key="sk-wrong-0123456789") as client,
        pytest.raises(AuthenticationError, match="unknown"),
    ):
        client.chat(STORY)


# -- hanging up -------------------------------------------------------------------------------------------------


def test_a_client_that_leaves_while_a_whole_answer_is_made_frees_its_place() -> None:
    """Its place in the gateway at once. The server looks once a second whether somebody still waits for a whole answer,
    and only if no other request was answered meanwhile: so it is asked less often than that."""
    with launch(EngineOptions(threads=1, parallel=1)) as slow, serving(Upstreams([slow.url])) as gateway:
        ready(gateway)
        body = {"prompt": "a", "max_tokens": 8000, "ignore_eos": True, "logprobs": 600}  # takes many seconds
        with StreamingClient(slow.url) as watcher, dial(gateway.url) as connection:
            connection.sendall(request_bytes("POST", "/v1/completions", body))
            wait_for(lambda: bool(watcher.slots()[0]["is_processing"]))
            connection.close()
            wait_for(lambda: gateway.gateway.lanes.active == 0)
            assert gateway.served[-1].finish_reason == "cancelled"
            threading.Event().wait(1.5)  # what the server notices, it does not tell
            decoded = [watcher.slots()[0]["is_processing"] for _ in range(2)]
        assert decoded == [False, False]
