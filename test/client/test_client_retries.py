"""Retries, patience, fallback, hints and listeners, over real sockets."""

from __future__ import annotations

import asyncio
import email.utils
import logging
import re
import socket
import threading
import time
from typing import Any

import pytest

from drivers import DRIVERS, AsyncDriver, Driver, UvloopDriver
from llamastream.address import parse_address
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.client.servers import Servers
from llamastream.client.whole import REMEMBERED, WholeOnly
from llamastream.errors import (
    BadRequestError,
    ConnectError,
    ConnectionLostError,
    InternalServerError,
    LlamaStreamError,
    ModelLoadingError,
    PrefillTimeoutError,
    UnavailableError,
    UnexpectedResponseError,
)
from llamastream.events import (
    AttemptStarted,
    ClientEvent,
    FirstToken,
    Hint,
    RequestEnded,
    RequestStarted,
    RetryScheduled,
)
from llamastream.protocol.requests import chat_request
from llamastream.testing import Script, ServerDouble, chunked, http_answer, sse_answer, sse_events
from llamastream.types import RetryPolicy, Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]
TEXTS = ["Once ", "upon ", "a ", "time"]
GOOD = Script(sse_answer(TEXTS))
QUICK = RetryPolicy(base_delay=0.01, loading_interval=0.01)

each_driver = pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)


def failing(status: str, body: bytes = b"{}", *headers: str) -> Script:
    return Script(http_answer(status, body, "application/json", *headers))


UNAVAILABLE = failing("503 Service Unavailable")
LOADING = failing("503 Service Unavailable", b'{"error":{"message":"Loading model"}}')


# -- retries ------------------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize(
    "failure",
    [UNAVAILABLE, failing("429 Too Many Requests"), Script(b""), Script(sse_answer(TEXTS), cut_at=120)],
    ids=["503", "429", "closed at once", "cut before the first content"],
)
def test_a_failure_before_the_first_content_is_mended_by_another_attempt(driver: Driver, failure: Script) -> None:
    with ServerDouble(failure, failure, GOOD) as server:
        result = driver.result(server.url, MESSAGES, {"retry": QUICK})
        assert result.text == "".join(TEXTS)
        assert len(result.stats.failed_attempts) == 2
        assert len(server.requests) == 3
        assert len(set(server.requests)) == 1, "each attempt sends the same"


@each_driver
def test_the_caller_hears_of_one_start(driver: Driver) -> None:
    with ServerDouble(Script(sse_answer(TEXTS), cut_at=120), GOOD) as server:
        events = driver.events(server.url, MESSAGES, {"retry": QUICK})
        assert [type(event).__name__ for event in events].count("StreamStart") == 1


@each_driver
@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        (failing("400 Bad Request"), BadRequestError),
        (failing("500 Internal Server Error", b'{"error":{"message":"parse error"}}'), InternalServerError),
    ],
    ids=["400", "500"],
)
def test_what_a_repetition_cannot_mend_is_raised_at_once(
    driver: Driver, failure: Script, kind: type[LlamaStreamError]
) -> None:
    with ServerDouble(failure, GOOD) as server:
        with pytest.raises(kind):
            driver.texts(server.url, MESSAGES, {"retry": QUICK})
        assert len(server.requests) == 1


@each_driver
def test_after_the_first_content_nothing_is_repeated_without_recovery(driver: Driver) -> None:
    answer = sse_answer(TEXTS)
    with ServerDouble(Script(answer, cut_at=answer.index(b'"time"')), GOOD) as server:
        with pytest.raises(ConnectionLostError) as caught:
            driver.texts(server.url, MESSAGES, {"retry": QUICK, "recovery": "off"})
        assert caught.value.partial is not None
        assert caught.value.partial.text == "Once upon a "
        assert len(server.requests) == 1


@each_driver
def test_retries_are_bounded_and_can_be_switched_off(driver: Driver) -> None:
    for retries in (0, 2):
        with ServerDouble(UNAVAILABLE) as server:
            with pytest.raises(UnavailableError) as caught:
                driver.texts(server.url, MESSAGES, {"retry": RetryPolicy(max_retries=retries, base_delay=0.01)})
            assert len(server.requests) == retries + 1
            assert caught.value.partial is not None
            assert len(caught.value.partial.stats.failed_attempts) == retries


@each_driver
def test_retry_after_is_waited_for(driver: Driver) -> None:
    with ServerDouble(failing("503 Service Unavailable", b"{}", "Retry-After: 1"), GOOD) as server:
        started = time.monotonic()
        result = driver.result(server.url, MESSAGES, {"retry": QUICK})
        assert time.monotonic() - started >= 1.0
        assert result.stats.failed_attempts[0].delay == 1.0


@each_driver
def test_a_date_to_retry_after_is_waited_for(driver: Driver) -> None:
    # Dates have no fractions of a second.
    date = email.utils.formatdate(int(time.time()) + 2, usegmt=True)
    with ServerDouble(failing("429 Too Many Requests", b"{}", f"Retry-After: {date}"), GOOD) as server:
        result = driver.result(server.url, MESSAGES, {"retry": QUICK})
        assert 0.5 < result.stats.failed_attempts[0].delay <= 2.0


@each_driver
def test_a_wait_that_is_too_long_says_what_was_asked_and_what_forbids_it(driver: Driver) -> None:
    with ServerDouble(failing("503 Service Unavailable", b"{}", "Retry-After: 100")) as server:
        with pytest.raises(UnavailableError, match=r"asks to wait 100 s .*max_retry_after allows \(60 s\)$"):
            driver.result(server.url, MESSAGES)
        patient = {"retry": RetryPolicy(max_retry_after=1e6), "timeouts": Timeouts(total=5)}
        with pytest.raises(UnavailableError, match=r"asks to wait 100 s \(Retry-After\), but Timeouts.total leaves"):
            driver.result(server.url, MESSAGES, patient)
        assert len(server.requests) == 2


@each_driver
def test_a_loading_model_is_waited_for_beyond_the_number_of_retries(driver: Driver) -> None:
    with ServerDouble(*[LOADING] * 12, GOOD) as server:
        assert driver.texts(server.url, MESSAGES, {"retry": QUICK}) == TEXTS
        assert len(server.requests) == 13
    impatient = RetryPolicy(loading_patience=0.05, loading_interval=0.02)
    with ServerDouble(LOADING) as server, pytest.raises(ModelLoadingError):
        driver.texts(server.url, MESSAGES, {"retry": impatient})


@each_driver
def test_a_server_that_starts_meanwhile_is_found(driver: Driver) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    double = ServerDouble(GOOD, port=port, listen=False)
    refused = threading.Event()

    def heard(event: ClientEvent) -> None:
        if isinstance(event, RetryScheduled):
            assert isinstance(event.error, ConnectError)
            refused.set()

    starter = threading.Thread(target=lambda: refused.wait(10) and double.__enter__())
    starter.start()
    try:
        options = {"retry": RetryPolicy(max_retries=50, base_delay=0.05, max_delay=0.05), "listeners": [heard]}
        assert driver.texts(f"http://127.0.0.1:{port}", MESSAGES, options) == TEXTS
    finally:
        starter.join()
        double.close()


def test_the_budget_is_shared_by_all_requests_of_a_client() -> None:
    with ServerDouble(UNAVAILABLE) as server, StreamingClient(server.url, retry=QUICK) as client:
        for _ in range(30):
            with pytest.raises(UnavailableError):
                client.chat(MESSAGES)
        assert 30 + 19 <= len(server.requests) <= 30 + 21, "20 retries for all of them, not 90"


def test_a_cancelled_stream_does_not_sit_out_its_delay() -> None:
    with ServerDouble(failing("503 Service Unavailable", b"{}", "Retry-After: 50")) as server:
        scheduled = threading.Event()

        def heard(event: ClientEvent) -> None:
            if isinstance(event, RetryScheduled):
                scheduled.set()

        stream = StreamingClient(server.url, listeners=[heard]).stream_chat(MESSAGES)

        def cancel_when_scheduled() -> None:
            assert scheduled.wait(10)
            stream.cancel()

        thread = threading.Thread(target=cancel_when_scheduled)
        started = time.monotonic()
        thread.start()
        assert list(stream) == []
        thread.join()
        assert time.monotonic() - started < 10
        assert stream.finish_reason == "cancelled"

        async def work() -> None:
            scheduled.clear()
            astream = AsyncStreamingClient(server.url, listeners=[heard]).stream_chat(MESSAGES)

            def cancel_from_a_thread() -> None:
                assert scheduled.wait(10)
                astream.cancel()

            task = asyncio.create_task(asyncio.to_thread(cancel_from_a_thread))
            assert [text async for text in astream] == []
            await task
            assert astream.finish_reason == "cancelled"

        asyncio.run(asyncio.wait_for(work(), 10))


@each_driver
def test_the_clocks_of_a_second_attempt_are_those_of_the_first(driver: Driver) -> None:
    stalled = Script(chunked([], end=False), stall=True)
    with ServerDouble(UNAVAILABLE, stalled) as server, pytest.raises(PrefillTimeoutError):
        driver.texts(server.url, MESSAGES, {"retry": QUICK}, timeouts=Timeouts(first_byte=60, prefill=0.2))


# -- the non-streaming fallback -------------------------------------------------------------------------------


WHOLE = http_answer(
    "200 OK",
    b'{"choices":[{"index":0,"message":{"role":"assistant","content":"all at once","reasoning_content":"hm"},'
    b'"finish_reason":"stop"}],"id":"x","usage":{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8}}',
)
UNSUPPORTED = failing("501 Not Implemented", b'{"error":{"message":"streaming is not supported with this template"}}')


@each_driver
def test_a_server_that_answers_with_json_gives_the_answer_as_one_piece(driver: Driver) -> None:
    with ServerDouble(Script(WHOLE)) as server:
        result = driver.result(server.url, MESSAGES)
        assert (result.text, result.reasoning, result.finish_reason) == ("all at once", "hm", "stop")
        assert result.stats.streamed is False
        assert result.usage is not None
        assert result.usage.completion_tokens == 3
        assert driver.texts(server.url, MESSAGES) == ["all at once"]


@each_driver
def test_where_streaming_is_not_supported_the_same_call_asks_again_without(driver: Driver) -> None:
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server:
        result = driver.result(server.url, MESSAGES)
        assert (result.text, result.stats.streamed) == ("all at once", False)
        assert b'"stream":true' in server.requests[0]
        assert b'"stream":false' in server.requests[1]


def test_a_client_remembers_which_server_cannot_stream() -> None:
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server, StreamingClient(server.url) as client:
        for _ in range(3):
            assert client.chat(MESSAGES).text == "all at once"
        client.chat(MESSAGES, model="other")
        asked = [b'"stream":true' in request for request in server.requests]
        assert asked == [True, False, False, False, True], "once; another model may have another template"
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server, StreamingClient(server.url) as client:
        client.chat(MESSAGES)
        with pytest.raises(LlamaStreamError):
            StreamingClient(server.url, fallback="never").chat(MESSAGES)
        assert b'"stream":true' in server.requests[-1]


def test_what_is_remembered_ends_after_a_time_and_holds_for_one_kind_of_request() -> None:
    first, other = Servers([parse_address("http://a"), parse_address("http://b")], None).all
    chat, tools = chat_request(MESSAGES), chat_request(MESSAGES, extra={"tools": [{"type": "function"}]})
    memory = WholeOnly()
    assert not memory.applies(first, tools, 0.0)
    memory.refused(first, tools, 0.0)
    assert memory.applies(first, tools, REMEMBERED - 1)
    assert not memory.applies(first, tools, REMEMBERED)
    assert not memory.applies(first, chat, 1.0)
    assert not memory.applies(other, tools, 1.0)
    for number in range(1000):
        memory.refused(first, chat_request(MESSAGES, model=str(number)), 0.0)
    assert len(memory._until) <= 256


@each_driver
def test_the_fallback_can_be_forced_and_forbidden(driver: Driver) -> None:
    with ServerDouble(Script(WHOLE)) as server:
        assert driver.result(server.url, MESSAGES, {"fallback": "always"}).text == "all at once"
        assert b'"stream":false' in server.requests[0]
        with pytest.raises(UnexpectedResponseError, match="application/json"):
            driver.result(server.url, MESSAGES, {"fallback": "never"})
    with ServerDouble(UNSUPPORTED, Script(WHOLE)) as server, pytest.raises(LlamaStreamError, match="not supported"):
        driver.result(server.url, MESSAGES, {"fallback": "never"})


@each_driver
def test_the_fallback_works_on_the_real_server(driver: Driver, engine: Any) -> None:
    options = {"fallback": "always", "temperature": 0.0}
    whole = driver.result(engine.url, MESSAGES, options, max_tokens=20)
    streamed = driver.result(engine.url, MESSAGES, {"temperature": 0.0}, max_tokens=20)
    assert (whole.text, whole.finish_reason) == (streamed.text, streamed.finish_reason)
    assert (whole.stats.streamed, streamed.stats.streamed) == (False, True)
    assert whole.stats.completion_tokens == streamed.stats.completion_tokens


@each_driver
def test_a_json_body_that_is_no_answer(driver: Driver) -> None:
    with ServerDouble(failing("200 OK", b'{"hello":"world"}')) as server:
        with pytest.raises(UnexpectedResponseError, match='instead of an answer: \'{"hello":"world"}\''):
            driver.result(server.url, MESSAGES)
        assert len(server.requests) == 1


# -- buffering where the server gives no times ---------------------------------------------------------------


PLENTY = sse_answer(["a "] * 60)


def release_later(server: ServerDouble, seconds: float) -> None:
    threading.Timer(seconds, server.release, [1]).start()


@each_driver
def test_an_answer_that_comes_at_once_after_a_silence_was_buffered(driver: Driver) -> None:
    heard: list[ClientEvent] = []
    with ServerDouble(Script(PLENTY, hold=True)) as server:
        release_later(server, 2.2)
        result = driver.result(server.url, MESSAGES, {"listeners": [heard.append]})
    assert result.stats.buffered
    assert [event.topic for event in heard if isinstance(event, Hint)] == ["buffering"]


def test_a_late_reader_is_no_buffering() -> None:
    with ServerDouble(Script(PLENTY)) as server, StreamingClient(server.url) as client:
        with client.stream_chat(MESSAGES) as stream:
            time.sleep(2.2)
            assert len(list(stream)) == 60
        with client.stream_chat(MESSAGES) as other:
            time.sleep(2.2)
            assert not other.result().stats.buffered
    assert not stream.stats.buffered


def test_a_retry_that_took_its_time_is_no_buffering() -> None:
    busy = failing("503 Service Unavailable", b"{}", "Retry-After: 2")
    with ServerDouble(busy, Script(PLENTY)) as server:
        result = StreamingClient(server.url).chat(MESSAGES)
    assert len(result.stats.failed_attempts) == 1
    assert not result.stats.buffered


@pytest.mark.parametrize("late_at", [0.0, 1.0])
@pytest.mark.parametrize("loop", [AsyncDriver(), UvloopDriver()], ids=lambda driver: driver.name)
def test_a_late_event_loop_is_no_buffering(loop: AsyncDriver, late_at: float) -> None:
    async def main(url: str) -> bool:
        async with AsyncStreamingClient(url) as client, client.stream_chat(MESSAGES) as stream:
            await asyncio.sleep(late_at)
            server.release(1)
            time.sleep(2.2)  # noqa: ASYNC251  # late, as a loop is in which something blocks
            return (await stream.result()).stats.buffered

    with ServerDouble(Script(PLENTY, hold=True)) as server:
        assert not loop.run(main(server.url))


# -- hints and listeners --------------------------------------------------------------------------------------


@each_driver
def test_a_buffering_proxy_is_named_with_its_setting(driver: Driver, caplog: pytest.LogCaptureFixture) -> None:
    events = sse_events(TEXTS, done=False)
    events.insert(-1, b'data: {"choices":[],"timings":{"predicted_n":4,"predicted_ms":9000.0}}\n\n')
    answer = chunked([*events, b"data: [DONE]\n\n"]).replace(b"\r\n", b"\r\nServer: nginx/1.22\r\n", 1)
    heard: list[ClientEvent] = []
    with ServerDouble(Script(answer)) as server, caplog.at_level(logging.WARNING, "llamastream"):
        result = driver.result(server.url, MESSAGES, {"listeners": [heard.append]})
    assert result.stats.buffered
    hints = [event for event in heard if isinstance(event, Hint)]
    assert [hint.topic for hint in hints] == ["buffering"]
    assert "proxy_buffering off" in hints[0].message
    assert "proxy_buffering off" in caplog.text


def test_a_changing_system_prompt_is_hinted_at_on_the_real_server(engine: Any) -> None:
    heard: list[ClientEvent] = []
    rules = "Answer in one short sentence and be friendly to everybody who asks. " * 6
    with StreamingClient(engine.url, listeners=[heard.append]) as client:
        for number in range(6):
            system = {"role": "system", "content": f"Request {number * 7919} begins. {rules}"}
            client.chat([system, *MESSAGES], max_tokens=1)
    hints = [event for event in heard if isinstance(event, Hint)]
    assert [hint.topic for hint in hints] == ["prompt_cache"]


@each_driver
def test_listeners_hear_of_everything_and_cannot_break_anything(
    driver: Driver, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[ClientEvent] = []

    def broken(event: ClientEvent) -> None:
        raise ValueError("a bad listener")

    with ServerDouble(UNAVAILABLE, GOOD) as server:
        options = {"retry": QUICK, "listeners": [broken, heard.append]}
        assert driver.texts(server.url, MESSAGES, options) == TEXTS
    kinds = [type(event) for event in heard]
    assert kinds == [RequestStarted, AttemptStarted, RetryScheduled, AttemptStarted, FirstToken, RequestEnded]
    assert len({event.request_id for event in heard}) == 1
    end = heard[-1]
    assert isinstance(end, RequestEnded)
    assert (end.finish_reason, end.error) == ("stop", None)
    assert "a bad listener" in caplog.text


# -- a long prefill and a stall -------------------------------------------------------------------------------


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


class Prefilling(ServerDouble):
    """Accepts a chat, stays silent for `looks` looks at `/slots`, and then answers; the slots move on if `progress`."""

    def __init__(self, looks: int, progress: bool) -> None:
        super().__init__(Script())
        self.looks = looks
        self.progress = progress
        self.seen = 0
        self.enough = threading.Event()

    def answer(self, connection: socket.socket, script: Script) -> None:
        request = self.take_request(connection)
        if re.match(rb"GET /slots ", request):
            self.seen += 1
            done = self.seen * 100 if self.progress else 100
            slot = f'[{{"id":0,"id_task":1,"is_processing":true,"n_prompt_tokens_processed":{done}}}]'
            connection.sendall(http_answer("200 OK", slot.encode()))
            if self.seen >= self.looks:
                self.enough.set()
            return
        connection.sendall(HEAD)
        if self.enough.wait(10):
            connection.sendall(sse_answer(TEXTS)[len(HEAD) :])


@each_driver
def test_a_long_prefill_is_told_apart_from_a_stall_by_the_slots(driver: Driver) -> None:
    timeouts = Timeouts(prefill=0.3)
    with Prefilling(looks=4, progress=True) as server:
        assert driver.texts(server.url, MESSAGES, timeouts=timeouts) == TEXTS
        assert server.seen >= 4
    with Prefilling(looks=100, progress=False) as server:
        with pytest.raises(PrefillTimeoutError):
            driver.texts(server.url, MESSAGES, timeouts=timeouts)
        assert server.seen == 2
        server.enough.set()
