"""One generation over HTTP: bad ends, and bodies of unknown kind."""

from __future__ import annotations

import msgspec
import pytest
from exchanges import delta, event, result, run, stream

from llamastream.errors import (
    AuthenticationError,
    BadRequestError,
    ConnectionLostError,
    ContextSizeError,
    EventTooLargeError,
    InternalServerError,
    LlamaStreamError,
    MidStreamError,
    ModelLoadingError,
    NotFoundError,
    NotSupportedError,
    ProtocolError,
    RateLimitedError,
    StreamTruncatedError,
    UnavailableError,
    UnexpectedResponseError,
)
from llamastream.protocol.exchange import GenerationExchange
from llamastream.testing import chunked, http_answer, sse_answer, sse_events
from llamastream.types import (
    StreamEvent,
    StreamStart,
    TextDelta,
)

# -- bad ends -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("done", [True, False])
def test_an_end_without_finish_reason_is_never_success(done: bool) -> None:
    exchange, _ = run(chunked(sse_events(["half"], finish_reason=None, done=done)))
    assert isinstance(exchange.error, StreamTruncatedError)
    assert "without a finish reason" in str(exchange.error)
    assert result(exchange).text == "half"


@pytest.mark.parametrize(
    ("raw", "status", "says"),
    [
        ('{"code": 500, "message": "context shift is disabled", "type": "server_error"}', 500, "context shift"),
        ('"something broke"', None, "something broke"),
    ],
)
@pytest.mark.parametrize("line", ['data: {{"error": {0}}}', "error: {0}", "event: error\ndata: {0}"])
def test_an_error_in_mid_stream_comes_after_the_text_before_it(
    raw: str, status: int | None, says: str, line: str
) -> None:
    body = [*sse_events(["before"], finish_reason=None, done=False), line.format(raw).encode() + b"\n\n"]
    exchange, events = run(chunked([b"".join(body)]))  # all in one read
    assert isinstance(exchange.error, MidStreamError)
    assert says in str(exchange.error)
    assert exchange.error.status == status
    assert [e.text for e in events if isinstance(e, TextDelta)] == ["before"]


@pytest.mark.parametrize(
    "data", [b"not json", b"[1]", b'{"choices": 7}', b"", b'{"choices":[{"delta":{"content":7}}]}']
)
def test_data_that_is_no_chunk_is_a_protocol_error_that_quotes_it(data: bytes) -> None:
    exchange, _ = run(stream(b"data: " + data + b"\n\n"))
    assert type(exchange.error) is ProtocolError
    assert repr(data.decode()) in str(exchange.error)


def test_an_event_over_the_limit_ends_the_stream() -> None:
    exchange, _ = run(sse_answer(["x" * 5000]), limit=4096)
    assert isinstance(exchange.error, EventTooLargeError)


def test_more_choices_or_tool_calls_than_anybody_asks_for_end_the_stream() -> None:
    exchange, _ = run(stream(*(event(choices=[delta(i, content="x")]) for i in range(200))))
    assert "index 128; possible are 0 to 127" in str(exchange.error)
    calls = [{"index": i, "function": {"name": "f"}} for i in range(2000)]
    exchange, _ = run(stream(event(choices=[delta(tool_calls=calls)])))
    assert "more than 1024 tool calls" in str(exchange.error)


def error_body(code: int, message: str, type_: str, **more: int) -> bytes:
    return msgspec.json.encode({"error": {"code": code, "message": message, "type": type_, **more}})


@pytest.mark.parametrize(
    ("status", "body", "kind", "says", "retryable"),
    [
        ("400 Bad Request", error_body(400, "no prompt", "invalid_request_error"), BadRequestError, "no prompt", False),
        (
            "400 Bad Request",
            error_body(400, "too long", "exceed_context_size_error", n_prompt_tokens=9, n_ctx=8),
            ContextSizeError,
            "prompt: 9 tokens, context of a slot: 8",
            False,
        ),
        (
            "401 Unauthorized",
            error_body(401, "Invalid API Key", "authentication_error"),
            AuthenticationError,
            "api_key",
            False,
        ),
        ("404 Not Found", error_body(404, "File Not Found", "not_found_error"), NotFoundError, "path", False),
        ("429 Too Many Requests", b"{}", RateLimitedError, "429", True),
        (
            "500 Internal Server Error",
            error_body(500, "parse error", "server_error"),
            InternalServerError,
            "parse",
            False,
        ),
        (
            "501 Not Implemented",
            error_body(501, "start with --metrics", "not_supported_error"),
            NotSupportedError,
            "--metrics",
            False,
        ),
        (
            "503 Service Unavailable",
            error_body(503, "Loading model", "unavailable_error"),
            ModelLoadingError,
            "Loading",
            True,
        ),
        ("502 Bad Gateway", b"<html>nginx</html>", UnavailableError, "nginx", True),
        ("418 I'm a teapot", b"short and stout", BadRequestError, "short and stout", False),
    ],
)
def test_error_answers(status: str, body: bytes, kind: type[LlamaStreamError], says: str, retryable: bool) -> None:
    answer = http_answer(status, body)
    for pieces in ([answer], [answer[i : i + 1] for i in range(len(answer))]):
        exchange, events = run(*pieces)
        error = exchange.error
        assert type(error) is kind
        assert says in str(error)
        assert (error.status, error.retryable, events) == (int(status[:3]), retryable, [])


def test_retry_after_is_kept() -> None:
    exchange, _ = run(http_answer("503 Service Unavailable", b"", "text/plain", "Retry-After: 7"))
    assert isinstance(exchange.error, UnavailableError)
    assert exchange.error.retry_after == 7.0


@pytest.mark.parametrize(
    ("headers", "after", "at"),
    [
        (["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT"], None, 784111777.0),
        (["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT", "Date: Sun, 06 Nov 1994 08:49:30 GMT"], 7.0, 784111777.0),
        (["Retry-After: Sun, 06 Nov 1994 08:49:37 GMT", "Date: Sun, 06 Nov 1994 08:50:30 GMT"], 0.0, 784111777.0),
        (["Retry-After: soon", "Date: Sun, 06 Nov 1994 08:49:30 GMT"], None, None),
        (["Retry-After: -5"], None, None),
    ],
)
def test_retry_after_may_be_a_date(headers: list[str], after: float | None, at: float | None) -> None:
    exchange, _ = run(http_answer("429 Too Many Requests", b"", "text/plain", *headers))
    assert isinstance(exchange.error, RateLimitedError)
    assert (exchange.error.retry_after, exchange.error.retry_at) == (after, at)


@pytest.mark.parametrize(
    ("server", "says"),
    [
        ("Server: nginx/1.25", "nginx: set `gzip off;`"),
        ("Server: cloudflare\r\nCF-Ray: 1", "Cloudflare: send `Cache-Control: no-transform`"),
        ("Server: uvicorn", "remove GZipMiddleware"),
        ("Via: 1.1 openresty", "nginx: set `gzip off;`"),
        ("X: y", "in the proxy or the middleware"),
    ],
)
def test_a_compressed_answer_names_the_setting(server: str, says: str) -> None:
    for type_ in ("text/event-stream", "application/json"):
        exchange, _ = run(http_answer("200 OK", b"x", type_, "Content-Encoding: gzip", *server.split("\r\n")))
        assert says in str(exchange.error)
        assert "(gzip)" in str(exchange.error)
        assert ("event-stream" in str(exchange.error)) <= (type_ == "text/event-stream")


WHOLE = msgspec.json.encode(
    {"choices": [{"index": 0, "message": {"role": "assistant", "content": "all"}, "finish_reason": "stop"}]}
)


def untyped(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def unnamed(body: bytes, *, bytewise: bool = False) -> tuple[GenerationExchange, list[StreamEvent]]:
    exchange = GenerationExchange("http://x/v1/chat/completions", accept_whole=True)
    answer = untyped(body)
    pieces = [answer[i : i + 1] for i in range(len(answer))] if bytewise else [answer]
    return exchange, [event for piece in pieces for event in exchange.feed(piece)]


@pytest.mark.parametrize("bytewise", [False, True])
def test_json_without_a_content_type_is_a_whole_answer(bytewise: bool) -> None:
    exchange, events = unnamed(b"\r\n " + WHOLE, bytewise=bytewise)
    assert exchange.error is None
    assert exchange.whole
    assert isinstance(events[0], StreamStart)
    assert result(exchange).text == "all"


@pytest.mark.parametrize("bytewise", [False, True])
@pytest.mark.parametrize("body", [b"", b"  ", b"hello", b"<html>", b"data: {}\n\n", b"[1]"])
def test_other_things_without_a_content_type_are_refused(body: bytes, bytewise: bool) -> None:
    exchange, events = unnamed(body, bytewise=bytewise)
    assert isinstance(exchange.error, UnexpectedResponseError)
    assert events == []


def test_an_error_in_place_of_an_answer_is_not_called_one_in_mid_stream() -> None:
    raw = b'{"error":{"message":"boom","code":500}}'
    exchange = GenerationExchange("http://x/v1/chat/completions", accept_whole=True)
    exchange.feed(http_answer("200 OK", raw))
    assert "reported an error in place of an answer: boom" in str(exchange.error)
    for error in (b"data: " + raw, b"error: " + raw, b"event: error\ndata: " + raw):
        exchange, _ = run(chunked([sse_events(["a"])[0], error + b"\n\n"]))
        assert "reported an error before any content: boom" in str(exchange.error)
        exchange, _ = run(chunked([*sse_events(["a"])[:2], error + b"\n\n"]))
        assert "reported an error in mid-stream: boom" in str(exchange.error)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (http_answer("200 OK", b"<!doctype html><title>Router</title>", "text/html"), "web page titled 'Router'"),
        (http_answer("301 Moved", b"", "text/plain", "Location: https://y/"), "redirects to 'https://y/'"),
        (http_answer("200 OK", b"\x1f\x8b", "text/event-stream", "Content-Encoding: gzip"), "compressed body (gzip)"),
        (http_answer("200 OK", b'{"a":1}'), "application/json instead of an event stream"),
        (http_answer("204 No Content", b""), "204"),
    ],
)
def test_answers_of_the_wrong_kind_say_what_they_are(answer: bytes, says: str) -> None:
    exchange, _ = run(answer)
    assert isinstance(exchange.error, UnexpectedResponseError)
    assert says in str(exchange.error)


def test_an_endless_error_body_is_cut_off() -> None:
    head = b"HTTP/1.1 500 Oops\r\nTransfer-Encoding: chunked\r\n\r\n"
    piece = b"1000\r\n" + b"x" * 4096 + b"\r\n"
    exchange, _ = run(head, *([piece] * 40), eof=False)
    assert isinstance(exchange.error, InternalServerError)
    assert len(exchange.error.body) == 64 * 1024


def test_nothing_at_all() -> None:
    exchange, events = run(b"")
    assert isinstance(exchange.error, ConnectionLostError)
    assert "without an answer" in str(exchange.error)
    assert events == []
