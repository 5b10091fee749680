"""Two real servers, one of which is killed or stopped; and one that comes back on its port."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from typing import Any

import pytest

from llamastream.client import StreamingClient
from llamastream.types import Recovery, RetryPolicy, StreamEnd, TextDelta, Timeouts
from recovering import Start
from tools.faults.asking import Answer, Ask, chat, losses, stream, undisturbed
from tools.faults.storm import storm

STREAMS = 10
# So long that the server is far from through when the client has read a little; the model knows it by heart.
LONG = chat("Tell me a long story.", name="limited chat", max_tokens=2000)
# Without a limit: the demo model ends by itself.
UNLIMITED = chat("Tell me a long story.", name="chat")
SHORT = Timeouts(connect=1, first_byte=5, prefill=5, content_idle=0.5)


@pytest.mark.parametrize(
    ("ask", "number"),
    [(LONG, signal.SIGKILL), (UNLIMITED, signal.SIGKILL), (LONG, signal.SIGSTOP)],
    ids=["limited, killed", "killed", "limited, stopped"],
)
def test_all_streams_survive_the_end_of_a_server(start: Start, ask: Ask, number: signal.Signals) -> None:
    first, second = start(parallel=5), start(parallel=STREAMS)
    expected = undisturbed(second.url, ask)
    undisturbed(first.url, ask)
    options: dict[str, Any] = {"timeouts": SHORT} if number is signal.SIGSTOP else {}
    answers = asyncio.run(storm([first.url, second.url], ask, STREAMS, first.pid, number, **options))
    assert len(answers) == STREAMS
    broken: list[Recovery] = []
    for answer in answers:
        assert isinstance(answer, Answer), answer
        assert losses(answer, expected) == []
        broken += answer.recoveries
    assert broken
    assert all(recovery.server == second.url and recovery.from_server == first.url for recovery in broken)
    assert max(recovery.gap for recovery in broken) < 5


@pytest.mark.alone
@pytest.mark.parametrize("ask", [LONG, UNLIMITED], ids=lambda ask: ask.name)
def test_a_server_that_comes_back_on_its_port(start: Start, ask: Ask) -> None:
    first = start()
    expected = undisturbed(first.url, ask)
    port = int(first.url.rpartition(":")[2])
    with StreamingClient(first.url, retry=RetryPolicy(recovery_patience=60)) as client:
        answer = stream(client, ask)
        events = []
        for event in answer.events():
            events.append(event)
            if len(events) == 100:
                first.stop(0)
                threading.Thread(target=start, kwargs={"port": port}).start()
        result = answer.result()
    assert losses(Answer(events, result), expected) == []
    assert [recovery.kind for recovery in result.stats.recoveries] == ["continue"]
    assert isinstance(events[-1], StreamEnd)
    assert sum(isinstance(event, TextDelta) for event in events) == result.stats.chunks


def test_a_single_server_that_is_stopped_and_goes_on(start: Start) -> None:
    server = start()
    expected = undisturbed(server.url, LONG)
    with StreamingClient(server.url, timeouts=SHORT) as client:
        answer = stream(client, LONG)
        events = []
        for event in answer.events():
            events.append(event)
            if len(events) == 100:
                os.kill(server.pid, signal.SIGSTOP)
                threading.Timer(1.0, os.kill, (server.pid, signal.SIGCONT)).start()
        result = answer.result()
    assert losses(Answer(events, result), expected) == []
    assert {recovery.kind for recovery in result.stats.recoveries} == {"reattach"}
