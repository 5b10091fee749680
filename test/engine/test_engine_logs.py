"""Log lines of every age become records; nothing is unbounded, nothing secret gets through."""

from __future__ import annotations

import threading
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llamastream.engine.logs import MAX_LINE, RING_SIZE, LineBuffer, LogRing, parse_line
from llamastream.types import LogRecord


@pytest.mark.parametrize(
    ("line", "level", "source", "message"),
    [
        (
            '{"type":"log","time":5056,"level":"info","msg":"srv    load_model: loading model \'t.gguf\'\\n"}',
            "info", "srv load_model", "loading model 't.gguf'",
        ),
        ('{"type":"log","time":1,"level":"warn","msg":"plain\\n"}', "warning", "", "plain"),
        (
            '{"tid":"1","timestamp":1715000000,"level":"INFO","function":"main","line":1,"msg":"listening","port":"8080"}',
            "info", "main", "listening port=8080",
        ),
        (
            "0.00.004.379 E gguf_init_from_file: failed to open GGUF file 'nope.gguf'",
            "error", "gguf_init_from_file", "failed to open GGUF file 'nope.gguf'",
        ),
        ("0.00.136.018 I slot get_availabl: id  3 | task -1 | x", "info", "slot get_availabl", "id  3 | task -1 | x"),
        ("W srv          init: security: no API key", "warning", "srv init", "security: no API key"),
        (
            "INFO [                    main] model loaded | tid=\"1\" timestamp=1715000000",
            "info", "main", 'model loaded | tid="1" timestamp=1715000000',
        ),
        ("error: invalid argument: --x", "error", "", "error: invalid argument: --x"),
        ("llama_model_load: error loading model: x", "error", "llama_model_load", "error loading model: x"),
        ("warning: no usable GPU found", "warning", "", "warning: no usable GPU found"),
        ("main: server is listening on http://127.0.0.1:1", "info", "main", "server is listening on http://127.0.0.1:1"),
        ("\x1b[34m0.00.000.464\x1b[0m \x1b[32mI \x1b[0msrv init: hello", "info", "srv init", "hello"),
        ("{not json", "info", "", "{not json"),
        ('{"type":"fit","data":{}}', "debug", "fit", '{"type":"fit","data":{}}'),
    ],
)  # fmt: skip
def test_lines_of_every_age(line: str, level: str, source: str, message: str) -> None:
    assert parse_line(line, 1.0) == LogRecord(time=1.0, level=level, message=message, source=source)  # type: ignore[arg-type]


@given(st.text(max_size=300))
def test_any_line_becomes_a_record(line: str) -> None:
    record = parse_line(line, 2.0)
    assert record.level in ("debug", "info", "warning", "error")
    assert record.time == 2.0


@given(st.binary(max_size=400), st.lists(st.integers(0, 400), max_size=6))
def test_lines_do_not_depend_on_how_the_bytes_came(data: bytes, cuts: list[int]) -> None:
    def lines(pieces: list[bytes]) -> list[str]:
        buffer = LineBuffer()
        found = [line for piece in pieces for line in buffer.feed(piece)]
        last = buffer.flush()
        return found if last is None else [*found, last]

    points = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    assert lines([data[a:b] for a, b in pairwise(points)]) == lines([data])


def test_a_line_without_end_stays_bounded() -> None:
    buffer = LineBuffer()
    for _ in range(100):
        assert buffer.feed(b"x" * 10_000) == []
    (line,) = buffer.feed(b"\nnext")
    assert line == "x" * MAX_LINE + "…"
    assert buffer.flush() == "next"


def test_the_ring_keeps_the_newest() -> None:
    ring = LogRing()
    for number in range(RING_SIZE + 10):
        ring.add_line(f"line {number}")
    records = ring.records()
    assert len(records) == RING_SIZE
    assert records[-1].message == f"line {RING_SIZE + 9}"
    new, count = ring.since(RING_SIZE + 8)
    assert [record.message for record in new] == [f"line {RING_SIZE + 8}", f"line {RING_SIZE + 9}"]
    assert ring.since(count) == ([], count)


def test_secrets_are_redacted() -> None:
    ring = LogRing(secrets=["topsecret"])
    assert ring.add_line("key topsecret used").message == "key *** used"
    assert ring.add_line("srv init: api_keys: ****cret").message == "api_keys: ***"


def test_on_log_gets_every_record_and_may_fail(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []
    done = threading.Event()

    def on_log(record: LogRecord) -> None:
        seen.append(record.message)
        if record.message == "last":
            done.set()
        if record.message == "bad":
            raise RuntimeError("observer broke")

    ring = LogRing(on_log)
    for line in ("first", "bad", "last"):
        ring.add_line(line)
    assert done.wait(10)
    ring.close()
    assert seen == ["first", "bad", "last"]
    assert "on_log raised" in caplog.text


def test_a_waiter_is_woken_by_a_line() -> None:
    ring = LogRing()
    version = ring.wait(0, 0.0)
    threading.Timer(0.05, ring.add_line, ["hello"]).start()
    assert ring.wait(version, 30.0) > version
