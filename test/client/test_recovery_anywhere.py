"""The machine of a stream without any I/O: broken anywhere, in any way, any number of times."""

from __future__ import annotations

import random
from typing import Any

import pytest
from paper import CALL, FREE, HELD, TOOLS, Paper, Stage, chat
from wires import numbers

from llamastream.errors import (
    ConnectError,
)
from llamastream.protocol.requests import GenerationRequest, completion_request
from llamastream.types import (
    ReasoningDelta,
    RetryPolicy,
    ToolCallDelta,
)

# -- anything at any byte -------------------------------------------------------------------------------------


REASONED = {"reasoning_tokens": 3}
WALKS: dict[str, tuple[GenerationRequest, dict[str, Any], tuple[str, str, str]]] = {
    "chat": (FREE, {}, (numbers(0, 8), "", "")),
    "chat, held": (HELD, {}, (numbers(0, 8), "", "")),
    "chat, limited": (chat(max_tokens=5), {"reattach": False}, (numbers(0, 5), "", "")),
    "chat, limited, held": (chat(max_tokens=5), {}, (numbers(0, 5), "", "")),
    "completion": (completion_request("Count: "), {}, (numbers(0, 8), "", "")),
    "completion, held": (completion_request("Count: ", max_tokens=5), {}, (numbers(0, 5), "", "")),
    "reasoning": (FREE, REASONED, (numbers(0, 8), "r0 r1 r2 ", "")),
    "reasoning, held": (HELD, REASONED, (numbers(0, 8), "r0 r1 r2 ", "")),
    "a tool call": (chat(tools=TOOLS), {"tool_call": True}, ("", "", CALL)),
    "a tool call, held": (chat(tools=TOOLS, max_tokens=99), {"tool_call": True}, ("", "", CALL)),
    "structured": (chat(json_schema={"type": "object"}), {}, (numbers(0, 8), "", "")),
    "cannot continue": (FREE, {"continues": False}, (numbers(0, 8), "", "")),
    "cannot continue, reasoning": (HELD, {"continues": False, **REASONED}, (numbers(0, 8), "r0 r1 r2 ", "")),
}


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("servers", [1, 3])
def test_cut_at_any_byte_in_any_way_any_number_of_times(name: str, servers: int) -> None:
    request, paper, expected = WALKS[name]
    for seed in range(120):
        rng = random.Random(f"{name} {seed}")
        retry = RetryPolicy(recovery_patience=1e6, max_retries=20)
        stage = Stage(request, *(Paper(**paper) for _ in range(servers)), retry=retry)
        for _ in range(rng.randint(1, 8)):
            walk(stage, rng)
            if stage.session.ended:
                break
        leaves = rng.random() < 0.1 and not stage.session.ended
        if leaves:
            stage.session.cancel(stage.now)
        stage.silent = False
        stage.finish()
        stage.check()
        got = (
            stage.text,
            "".join(event.text for event in stage.events if isinstance(event, ReasoningDelta)),
            "".join(event.arguments for event in stage.events if isinstance(event, ToolCallDelta)),
        )
        if leaves or stage.session.error is not None:
            assert leaves or got == ("", "", ""), (seed, stage.session.error, stage.kinds)
            for part, whole in zip(got, expected, strict=True):
                assert whole.startswith(part), seed
        else:
            assert got == expected, (seed, stage.kinds)


def walk(stage: Stage, rng: random.Random) -> None:
    """One attempt that breaks somewhere, somehow."""
    session = stage.session
    stage.silent = rng.random() < 0.2
    if rng.random() < 0.2:
        for paper in stage.papers:
            paper.bodies.clear()
    if not stage.settle():
        return
    if rng.random() < 0.1:
        session.fail(ConnectError("no connection is free"), stage.now)
        return
    session.begin(stage.now, reused_connection=rng.random() < 0.2)
    stage.sent.append(session.attempt)
    if rng.random() < 0.1:
        session.fail(ConnectError("refused"), stage.now)
        return
    session.connected(stage.now)
    pieces = stage.papers[session.server.index].answer(session.attempt)
    if rng.random() < 0.5:
        whole = b"".join(pieces)
        pieces = [whole[at : at + 37] for at in range(0, len(whole), 37)]
    whole_pieces = rng.randrange(len(pieces))
    stage.feed(*pieces[:whole_pieces])
    stage.feed(pieces[whole_pieces][: rng.randrange(len(pieces[whole_pieces]) + 1)])
    stage.now += rng.random()
    how = rng.choice(["reset", "eof", "stall", "garbage"])
    if session.ended or session.next_attempt_at is not None:
        return
    if how == "eof":
        stage.events += session.feed_eof(stage.now)
    elif how == "garbage" and session.result().text:
        stage.feed(b"\x16\x03\x01 this is no chunk\r\n")
        if not session.ended and session.next_attempt_at is None:
            stage.cut()
    elif how == "stall" and session.result().text:
        while not session.ended and session.next_attempt_at is None:
            stage.stall()
            if session.wants_slots(stage.now):
                session.slots_seen(None, stage.now)
    else:
        stage.cut()
