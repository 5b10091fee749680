"""Structured logging: the right level, the figures in the record, nothing per chunk, no secrets."""

from __future__ import annotations

import contextlib
import json
import logging

import pytest

from llamastream.client import StreamingClient
from llamastream.errors import UnavailableError
from llamastream.observe import JsonFormatter, LoggingListener
from llamastream.testing import ChaosProxy, NumberedServer, Reset, Script, ServerDouble, http_answer, sse_answer
from llamastream.types import RetryPolicy

MESSAGES = [{"role": "user", "content": "a private question"}]
UNAVAILABLE = Script(http_answer("503 Service Unavailable", b"{}"))
QUICK = RetryPolicy(max_retries=1, base_delay=0.0)


def records(caplog: pytest.LogCaptureFixture, *scripts: Script, level: int) -> list[logging.LogRecord]:
    with ServerDouble(*scripts) as server, caplog.at_level(level, "llamastream.requests"):
        client = StreamingClient(server.url, api_key="sesame", retry=QUICK, listeners=[LoggingListener()])
        with contextlib.suppress(UnavailableError):
            client.chat(MESSAGES)
        client.close()
    return [record for record in caplog.records if record.name == "llamastream.requests"]


def test_each_request_has_one_line_and_each_retry_another(caplog: pytest.LogCaptureFixture) -> None:
    got = records(caplog, UNAVAILABLE, Script(sse_answer(["x"] * 50)), level=logging.INFO)
    assert [record.levelname for record in got] == ["WARNING", "INFO"]
    fields = got[1].__dict__["llamastream"]
    assert (fields["event"], fields["finish_reason"], fields["failed_attempts"]) == ("RequestEnded", "stop", 1)
    assert fields["duration"] > 0


@pytest.mark.parametrize("listens", [True, False])
def test_a_break_that_was_mended_is_one_line(caplog: pytest.LogCaptureFixture, listens: bool) -> None:
    listeners = [LoggingListener()] if listens else []
    with (
        NumberedServer(tokens=12) as server,
        ChaosProxy(server.url, [Reset(after_events=4)]) as proxy,
        caplog.at_level(logging.INFO, "llamastream"),
        StreamingClient(proxy.url, max_tokens=12, listeners=listeners) as client,
    ):
        assert len(client.chat(MESSAGES).stats.recoveries) == 1
    told = [record for record in caplog.records if "recovered by reattach" in record.getMessage()]
    assert [record.levelname for record in told] == ["WARNING"]
    assert [record.name for record in caplog.records if record.levelno == logging.WARNING] == [told[0].name]
    assert told[0].name == ("llamastream.requests" if listens else "llamastream.recovery")


def test_debug_tells_the_whole_story_but_never_of_chunks(caplog: pytest.LogCaptureFixture) -> None:
    got = records(caplog, Script(sse_answer(["x"] * 50)), level=logging.DEBUG)
    assert [record.__dict__["llamastream"]["event"] for record in got] == [
        "RequestStarted",
        "AttemptStarted",
        "FirstToken",
        "RequestEnded",
    ]


def test_a_failure_is_a_warning_with_its_error(caplog: pytest.LogCaptureFixture) -> None:
    got = records(caplog, UNAVAILABLE, level=logging.INFO)
    assert [record.levelname for record in got] == ["WARNING", "WARNING"]
    assert got[1].__dict__["llamastream"]["error"] == "UnavailableError"


def test_json_lines_hold_the_fields_and_neither_key_nor_question(caplog: pytest.LogCaptureFixture) -> None:
    got = records(caplog, UNAVAILABLE, Script(sse_answer(["x"])), level=logging.DEBUG)
    lines = [JsonFormatter().format(record) for record in got]
    parsed = [json.loads(line) for line in lines]
    assert all({"time", "level", "logger", "message", "event", "request_id"} <= line.keys() for line in parsed)
    assert parsed[0]["time"].endswith("+00:00")
    assert not any("sesame" in line or "private" in line for line in lines)
