"""A generation that the server holds for a stream is dropped when the stream is left, in whatever way."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llamastream.client import AsyncStreamingClient, StreamingClient
from llamastream.engine import Engine
from llamastream.testing import ChaosProxy, Stall
from llamastream.types import Timeouts

MESSAGES = [{"role": "user", "content": "hi"}]
# Nine seconds of work: whoever finds the slot free sooner finds a generation that was dropped.
HELD: dict[str, Any] = {"ignore_eos": True, "max_tokens": 7500}
SOON = 2.0
SyncLeave = Callable[[StreamingClient], None]


def _read(client: StreamingClient) -> object:
    stream = client.stream_chat(MESSAGES, **HELD)
    texts = iter(stream)
    for _ in range(5):
        next(texts)
    return stream, texts


def _break(client: StreamingClient) -> None:
    for number, _ in enumerate(client.stream_chat(MESSAGES, **HELD)):
        if number == 5:
            break


def _close(client: StreamingClient) -> None:
    stream = client.stream_chat(MESSAGES, **HELD)
    next(stream)
    stream.close()


def _with(client: StreamingClient) -> None:
    with client.stream_chat(MESSAGES, **HELD) as stream:
        next(stream)


def _cancel(client: StreamingClient) -> None:
    stream = client.stream_chat(MESSAGES, **HELD)
    next(stream)
    thread = threading.Thread(target=stream.cancel)
    thread.start()
    assert len(list(stream)) < 7000
    thread.join()


def _collect(client: StreamingClient) -> None:
    held = _read(client)
    del held
    gc.collect()


def _end_client(client: StreamingClient) -> None:
    held = _read(client)
    client.close()
    del held


def _time_out(client: StreamingClient) -> None:
    with pytest.raises(Exception, match="total"):
        client.chat(MESSAGES, timeouts=Timeouts(total=0.3), **HELD)


@pytest.mark.parametrize("leave", [_break, _close, _with, _cancel, _collect, _end_client, _time_out])
def test_the_slot_is_free_soon(engine: Engine, slots_free: Callable[[], float], leave: SyncLeave) -> None:
    with StreamingClient(engine.url) as client:
        leave(client)
        assert slots_free() < SOON


async def _abreak(client: AsyncStreamingClient) -> None:
    async for _ in client.stream_chat(MESSAGES, **HELD):
        break


async def _aclose(client: AsyncStreamingClient) -> None:
    stream = client.stream_chat(MESSAGES, **HELD)
    await anext(stream)
    await stream.close()


async def _awith(client: AsyncStreamingClient) -> None:
    async with client.stream_chat(MESSAGES, **HELD) as stream:
        await anext(stream)


async def _acancel(client: AsyncStreamingClient) -> None:
    stream = client.stream_chat(MESSAGES, **HELD)
    await anext(stream)
    stream.cancel()
    assert len([text async for text in stream]) < 7000


async def _atask(client: AsyncStreamingClient) -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in client.stream_chat(MESSAGES, **HELD):
            begun.set()

    task = asyncio.create_task(read())
    await begun.wait()
    task.cancel()
    assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)


async def _acollect(client: AsyncStreamingClient) -> None:
    stream = client.stream_chat(MESSAGES, **HELD)
    await anext(stream)
    del stream
    gc.collect()


ASYNC = [_abreak, _aclose, _awith, _acancel, _atask, _acollect]


@pytest.mark.parametrize("leave", ASYNC)
def test_the_slot_is_free_soon_in_a_loop(
    engine: Engine, slots_free: Callable[[], float], leave: Callable[[AsyncStreamingClient], object]
) -> None:
    async def work() -> float:
        async with AsyncStreamingClient(engine.url) as client:
            await leave(client)  # type: ignore[misc]
            return await asyncio.to_thread(slots_free)

    assert asyncio.run(work()) < SOON


@pytest.mark.parametrize("leave", ASYNC)
def test_the_slot_is_free_soon_after_a_loop(
    engine: Engine, slots_free: Callable[[], float], leave: Callable[[AsyncStreamingClient], object]
) -> None:
    async def work() -> None:
        await leave(AsyncStreamingClient(engine.url))  # type: ignore[misc]

    asyncio.run(work())  # which ends at once
    assert slots_free() < SOON


def test_a_stream_that_broke_and_is_left_while_it_waits(engine: Engine, slots_free: Callable[[], float]) -> None:
    with ChaosProxy(engine.url, Stall(after_events=5)) as proxy, StreamingClient(proxy.url) as client:
        stream = client.stream_chat(MESSAGES, **HELD)
        for _ in range(4):
            next(stream)
        stream.close()
        assert slots_free() < SOON


# -- processes --------------------------------------------------------------------------------------------

PROGRAM = """
    import asyncio, os, signal, sys, time
    from llamastream import AsyncStreamingClient, StreamingClient

    URL, HELD = {url!r}, {held!r}
    MESSAGES = [{{"role": "user", "content": "hi"}}]

    def begin():
        stream = StreamingClient(URL).stream_chat(MESSAGES, **HELD)
        next(stream)
        print("begun", flush=True)
        return stream

    async def abegin(client):
        stream = client.stream_chat(MESSAGES, **HELD)
        await anext(stream)
        print("begun", flush=True)
        return stream
"""


def _program(engine: Engine, state: Path, text: str) -> subprocess.Popen[str]:
    program = PROGRAM.format(url=engine.url, held=HELD) + textwrap.indent(text, "    ")
    environ = {**os.environ, "XDG_STATE_HOME": str(state), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip


ENDS = {
    "the module ends": "stream = begin()",
    "sys.exit": "stream = begin()\nsys.exit(3)",
    "an error": "stream = begin()\nraise ValueError('x')",
    "Ctrl-C": "stream = begin()\nos.kill(os.getpid(), signal.SIGINT)\nfor _ in stream: pass",
    "asyncio.run ends": "asyncio.run(abegin(AsyncStreamingClient(URL)))",
    "a task is left": (
        "async def work():\n"
        "    client = AsyncStreamingClient(URL)\n"
        "    global stream\n"
        "    stream = await abegin(client)\n"
        "    asyncio.create_task(stream.result())\n"
        "    await asyncio.sleep(0)\n"
        "asyncio.run(work())"
    ),
}


@pytest.mark.parametrize("text", ENDS.values(), ids=ENDS)
def test_the_slot_is_free_when_the_process_has_ended(
    engine: Engine, slots_free: Callable[[], float], tmp_path: Path, text: str
) -> None:
    with _program(engine, tmp_path, text) as process:
        output, errors = process.communicate(timeout=30)
    assert output == "begun\n", errors
    assert slots_free() < SOON
    assert "Exception ignored" not in errors
    assert "never awaited" not in errors
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_what_a_killed_process_left_the_next_one_drops(
    engine: Engine, slots_free: Callable[[], float], tmp_path: Path
) -> None:
    with _program(engine, tmp_path, "stream = begin()\nfor _ in stream: pass") as process:
        assert process.stdout is not None
        begun = process.stdout.readline()
        assert begun == "begun\n", process.stderr and process.stderr.read()
        process.kill()
    (left,) = tmp_path.rglob("*.jsonl")
    (line,) = [json.loads(line) for line in left.read_text().splitlines()]
    assert line["url"] == engine.url
    with StreamingClient(engine.url) as watcher:
        assert any(slot["is_processing"] for slot in watcher.slots())
    small = "StreamingClient(URL).chat(MESSAGES, max_tokens=3)"
    with _program(engine, tmp_path, small) as process:
        assert process.wait(30) == 0
    assert slots_free() < SOON
    assert list(tmp_path.rglob("*.jsonl")) == []


def test_what_a_living_process_holds_is_left_alone(engine: Engine, tmp_path: Path) -> None:
    with _program(engine, tmp_path, "stream = begin()\ntime.sleep(60)") as process:
        assert process.stdout is not None
        begun = process.stdout.readline()
        assert begun == "begun\n", process.stderr and process.stderr.read()
        with _program(engine, tmp_path, "StreamingClient(URL).chat(MESSAGES, max_tokens=3)") as other:
            assert other.wait(30) == 0
        (left,) = tmp_path.rglob("*.jsonl")
        assert engine.url in left.read_text()
        process.kill()
    (left,) = tmp_path.rglob("*.jsonl")
    with _program(engine, tmp_path, "StreamingClient(URL).chat(MESSAGES, max_tokens=3)") as other:
        assert other.wait(30) == 0
    assert list(tmp_path.rglob("*.jsonl")) == []
