"""Retries and patience, over real sockets."""

from __future__ import annotations

import asyncio
import email.utils
import socket
import threading
import time

import pytest

from drivers import Driver
from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.errors import (
    BadRequestError,
    ConnectError,
    ConnectionLostError,
    InternalServerError,
    LlamaStreamError,
    ModelLoadingError,
    PrefillTimeoutError,
    UnavailableError,
)
from llamastream.events import (
    ClientEvent,
    RetryScheduled,
)
from llamastream.testing import Script, ServerDouble, chunked, sse_answer
from llamastream.types import RetryPolicy, Timeouts
from scripts import GOOD, LOADING, MESSAGES, QUICK, TEXTS, UNAVAILABLE, each_driver, failing

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
