"""What a request asks of the slots, and how it gets one and gives it back."""

from __future__ import annotations

from collections.abc import Coroutine, Iterable
from time import monotonic
from typing import Any

from msgspec import Struct

from llamastream.gateway import relay
from llamastream.gateway.admission import Admission
from llamastream.gateway.passage import Passage
from llamastream.gateway.prompts import prompt_of
from llamastream.gateway.relay import Relay
from llamastream.gateway.seating import placeable
from llamastream.gateway.served import Served
from llamastream.policy.allowance import Allowance
from llamastream.policy.fairness import PRIORITIES, Priority
from llamastream.policy.prefixes import Prompt
from llamastream.policy.routing import Report

CONVERSATION, PRIORITY, EXPLAIN = b"x-conversation-id", b"x-priority", b"x-llamastream-explain"


class Demand(Struct, frozen=True):
    """What a request asks of the slots.

    Attributes:
        prompt: what it asks, for routing. allowance: of its key. priority: its own. stream: it wants events.
        explain: it wants to know why it went where it went. placeable: a slot can be chosen for it.
    """

    prompt: Prompt
    allowance: Allowance
    priority: Priority
    stream: bool
    explain: bool
    placeable: bool = False


def demand_of(headers: Iterable[tuple[bytes, bytes]], path: str, body: dict[str, Any], allowance: Allowance) -> Demand:
    """What a request with these headers and this body asks of this route.

    Raises:
        ValueError: it asks for a priority that there is not. A higher one than its key's is no error, but the key's.
    """
    given = {name: value for name, value in headers if name in (CONVERSATION, PRIORITY, EXPLAIN)}
    priority = allowance.priority
    if (wanted := given.get(PRIORITY)) is not None:
        word = wanted.decode("latin-1").strip().lower()
        if word not in PRIORITIES:
            raise ValueError(f"X-Priority: {word[:50]!r} is not allowed; allowed: {', '.join(PRIORITIES)}")
        level = max(PRIORITIES.index(priority), [str(each) for each in PRIORITIES].index(word))
        priority = PRIORITIES[level]
    conversation = given.get(CONVERSATION)
    return Demand(
        prompt_of(body, conversation.decode("latin-1") if conversation else None),
        allowance,
        priority,
        body.get("stream") is True,
        given.get(EXPLAIN, b"").strip().lower() in (b"1", b"true", b"yes"),
        placeable(path, body),
    )


async def admitted(
    admission: Admission, demand: Demand, runner: Relay | Passage, work: Coroutine[Any, Any, object], served: Served
) -> None:
    """Do the work of a request, which `runner` does, once a slot is there for it.

    Raises:
        LlamaStreamError: there is none, or the work failed.
    """
    try:
        lease = await admission.enter(
            demand.prompt,
            served.key,
            demand.allowance.weight,
            demand.priority,
            placeable=demand.placeable,
            sign=runner.sign if demand.stream else None,
            sign_every=relay.SIGN_OF_LIFE,
        )
    except BaseException:
        work.close()
        raise
    runner.lease = served.lease = lease
    try:
        await work
    finally:
        served.report = report_of(runner, served, monotonic() - lease.admitted_at)
        admission.leave(lease, served.report)


def report_of(runner: Relay | Passage, served: Served, seconds: float) -> Report:
    """What a request that is over has taken."""
    if isinstance(runner, Passage):
        seen = None if served.glimpse is None or not served.ended else served.glimpse.figures()
        if seen is None or served.status != 200:
            return Report(seconds)
        return Report(seconds, seen.prompt_tokens, seen.cached_tokens, seen.completion_tokens, seen.prompt_ms)
    session = runner.session
    if session is None or session.error is not None or not session.ended:
        return Report(seconds)
    stats = session.stats()
    if stats.recoveries or stats.failed_attempts:
        return Report(seconds)  # its times and counts are of several servers
    timings = session.exchange.assembler.timings
    if timings is None:
        return Report(seconds, stats.prompt_tokens, stats.cached_tokens, stats.completion_tokens)
    return Report(seconds, timings.cache_n + timings.prompt_n, timings.cache_n, timings.predicted_n, timings.prompt_ms)
