"""Broken streams over real sockets, on a server whose tokens are numbers: no gap, no repetition, whatever breaks."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from wires import numbers

from drivers import DRIVERS, Driver
from faults import each_driver
from llamastream.errors import LlamaStreamError, StreamDivergedError
from llamastream.events import FirstToken, StreamBroke
from llamastream.testing import (
    ChaosProxy,
    Fault,
    Garbage,
    HalfClose,
    HtmlError,
    NumberedServer,
    Refuse,
    Reset,
    Stall,
    Trickle,
    TruncatedChunk,
    Unavailable,
    WrongChunkSize,
)
from llamastream.types import (
    ReasoningDelta,
    Result,
    RetryPolicy,
    StreamEnd,
    StreamEvent,
    TextDelta,
    Timeouts,
    ToolCallDelta,
)

MESSAGES = [{"role": "user", "content": "count"}]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
RETRY = RetryPolicy(max_retries=10, base_delay=0.001, max_delay=0.01, loading_interval=0.001, recovery_patience=20.0)
QUICK_CLOCKS = Timeouts(content_idle=0.15, prefill=0.3)
TOKENS = 8


@pytest.fixture(scope="module", autouse=True)
def _state_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


class Kind(NamedTuple):
    """A kind of server and of request, and what may come of it."""

    name: str
    server: dict[str, Any]
    request: dict[str, Any]
    path: str = "chat"
    text: str = numbers(0, TOKENS)
    reasoning: str = ""
    arguments: str = ""
    finish: str = "stop"
    may_diverge: bool = False
    echoes: bool = False


LIMIT = {"max_tokens": 5}
AMPLE = {"max_tokens": 100}
THOUGHT = "r0 r1 r2 "
CALL = '{"n":[0,1,2,3,4,5,6,7]}'

KINDS = [
    Kind("chat", {}, {}),
    Kind("chat, held", {}, AMPLE),
    Kind("chat, limited", {"reattach": False}, LIMIT, text=numbers(0, 5), finish="length"),
    Kind("chat, limited and held", {}, LIMIT, text=numbers(0, 5), finish="length"),
    Kind("completion", {}, {}, path="completion"),
    Kind("completion, limited", {"reattach": False}, LIMIT, "completion", numbers(0, 5), finish="length"),
    Kind("completion, held", {}, AMPLE, path="completion"),
    Kind("reasoning", {"reasoning_tokens": 3}, {}, reasoning=THOUGHT),
    Kind("reasoning, held", {"reasoning_tokens": 3}, AMPLE, reasoning=THOUGHT),
    Kind("a tool call", {"tool_call": True}, {"tools": TOOLS}, text="", arguments=CALL, finish="tool_calls"),
    Kind(
        "a tool call, held",
        {"tool_call": True},
        {"tools": TOOLS, **AMPLE},
        text="",
        arguments=CALL,
        finish="tool_calls",
    ),
    Kind("cannot continue", {"continues": False}, {}),
    Kind("cannot continue, held", {"continues": False}, AMPLE),
    Kind("cannot continue, reasoning", {"continues": False, "reasoning_tokens": 3}, {}, reasoning=THOUGHT),
    Kind("repeats the beginning", {"repeats_prefix": True}, {}, echoes=True),
    Kind("repeats the beginning, held", {"repeats_prefix": True}, AMPLE, echoes=True),
    Kind(
        "repeats the beginning, reasoning",
        {"repeats_prefix": True, "reasoning_tokens": 3},
        {},
        reasoning=THOUGHT,
        echoes=True,
    ),
    Kind(
        "a tool call comes out differently",
        {"tool_call": True, "diverge_at": 3},
        {"tools": TOOLS, **AMPLE},
        text="",
        arguments=CALL,
        finish="tool_calls",
        may_diverge=True,
    ),
    Kind("a text comes out differently", {"continues": False, "diverge_at": 3}, {}, may_diverge=True),
    Kind("a text comes out differently, held", {"continues": False, "diverge_at": 3}, AMPLE, may_diverge=True),
]


class Outcome(NamedTuple):
    text: str
    reasoning: str
    arguments: str
    finish: str | None
    completion_tokens: int | None
    recoveries: list[str]


def outcome(driver: Driver, url: str, kind: Kind, options: dict[str, Any]) -> Outcome:
    """What the caller gets, joined from the events where there are some."""
    if kind.path == "completion":
        result: Result = driver.call(url, "complete", "Count: ", options=options, **kind.request)
        recoveries = [recovery.kind for recovery in result.stats.recoveries]
        tokens = result.usage.completion_tokens if result.usage else None
        return Outcome(result.text, result.reasoning, "", result.finish_reason, tokens, recoveries)
    events = driver.events(url, MESSAGES, options, **kind.request)
    assert [type(event).__name__ for event in events].count("StreamStart") == 1
    end = events[-1]
    assert isinstance(end, StreamEnd)
    return Outcome(
        joined(events, TextDelta),
        joined(events, ReasoningDelta),
        "".join(event.arguments for event in events if isinstance(event, ToolCallDelta)),
        end.finish_reason,
        end.usage.completion_tokens if end.usage else None,
        [recovery.kind for recovery in end.stats.recoveries],
    )


def joined(events: list[StreamEvent], kind: type[TextDelta | ReasoningDelta]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def random_fault(rng: random.Random, kind: Kind, stalls: bool) -> Fault | None:
    # Of a server that repeats the beginning nobody can tell it as long as there was a single piece.
    place = rng.choice([0, 1, 3, 4, 5, 6, 7, 8] if kind.echoes else range(TOKENS + 4))
    framing = max(3, place)  # before the first content an answer that is not HTTP is not asked for again
    at_byte = rng.randint(0, 3000)
    return rng.choice(
        [
            None,
            Reset(after_events=place),
            Reset(after_events=place),
            HalfClose(after_events=place),
            HalfClose(after_events=place) if kind.echoes else HalfClose(after_bytes=at_byte),
            Reset(after_events=place) if kind.echoes else Reset(after_bytes=at_byte),
            Reset(),
            Garbage(after_events=framing),
            TruncatedChunk(after_events=framing),
            WrongChunkSize(after_events=framing),
            Unavailable(message="busy"),
            Unavailable(),
            Refuse(reset=rng.random() < 0.5),
            HtmlError(),
            Trickle() if rng.random() < 0.2 else None,
            Stall(after_events=max(3, place)) if stalls else None,
        ]
    )


class Faults:
    """Gives each generation, and each attempt to take one up again, the next fault of a list that can be set anew."""

    def __init__(self) -> None:
        self.left: list[Fault | None] = []
        self.gone = 0.0
        self.rng = random.Random(0)

    def __call__(self, number: int, request_line: str) -> Fault | None:
        if request_line.startswith("GET /v1/stream"):
            if self.rng.random() < self.gone:
                return HtmlError(status="404 Not Found")
        elif not request_line.startswith("POST /v1/c"):
            return None
        return self.left.pop(0) if self.left else None


SEQUENCES = 17  # for each kind and driver; 20 kinds and 3 drivers make 1,020


@pytest.mark.parametrize("driver", DRIVERS, ids=lambda driver: driver.name)
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_random_faults_neither_lose_nor_repeat_anything(kind: Kind, driver: Driver) -> None:
    mended = 0
    with ExitStack() as stack:
        faults, proxy = Faults(), None
        for number in range(SEQUENCES):
            seed = f"{kind.name} {driver.name} {number}"
            rng = faults.rng = random.Random(seed)
            if proxy is None or kind.may_diverge:
                server = stack.enter_context(NumberedServer(tokens=TOKENS, **kind.server))
                proxy = stack.enter_context(ChaosProxy(server.url, faults, everything=True))
            stalls = rng.random() < 0.06
            faults.gone = rng.choice([0.0, 0.0, 0.5, 1.0])
            faults.left = [random_fault(rng, kind, stalls) for _ in range(rng.randint(1, 6))]
            case = f"{seed}: {faults.left}"
            options: dict[str, Any] = {"retry": RETRY}
            if stalls:
                options["timeouts"] = QUICK_CLOCKS
            try:
                got = outcome(driver, proxy.url, kind, options)
            except StreamDivergedError:
                assert kind.may_diverge, case
                continue
            except LlamaStreamError as error:
                raise AssertionError(case) from error
            mended += len(got.recoveries)
            if kind.may_diverge:  # one answer or the other, but no mixture
                other = (kind.text.replace("3 ", "x3 "), kind.arguments.replace("3", "-4", 1))
                assert (got.text, got.arguments) in [(kind.text, kind.arguments), other], case
                continue
            assert (got.text, got.reasoning, got.arguments) == (kind.text, kind.reasoning, kind.arguments), case
            assert got.finish == kind.finish, case
            if got.completion_tokens is not None and not kind.reasoning and "finish" not in got.recoveries:
                assert got.completion_tokens == (5 if kind.finish == "length" else TOKENS), case
    assert mended, "these sequences do break streams in the middle"


# -- faults one by one ----------------------------------------------------------------------------------------


@each_driver
@pytest.mark.parametrize("after", range(12))
@pytest.mark.parametrize("held", [True, False], ids=["re-attached", "continued"])
def test_a_cut_behind_each_event(driver: Driver, after: int, held: bool) -> None:
    with NumberedServer(tokens=8, reattach=held) as server, ChaosProxy(server.url, Reset(after_events=after)) as proxy:
        options = {"retry": RETRY}
        result = driver.result(proxy.url, MESSAGES, options, max_tokens=6)
        assert (result.text, result.finish_reason) == (numbers(0, 6), "length")
        if 2 <= after < 9:
            assert len(result.stats.recoveries) == 1
            assert result.stats.recoveries[0].text_at_break == min(12, 2 * (after - 1))
            assert result.stats.recoveries[0].verified or result.stats.recoveries[0].kind == "continue"


@each_driver
def test_a_server_that_dies_and_comes_back_goes_on(driver: Driver) -> None:
    with NumberedServer(tokens=6, gate=True) as first:
        first.release(4)
        begun, gone = threading.Event(), threading.Event()
        again: list[NumberedServer] = []

        def heard(event: Any) -> None:
            if isinstance(event, FirstToken):
                begun.set()
            elif isinstance(event, StreamBroke):
                assert gone.wait(30), "its port is free again"
                again.append(stack.enter_context(NumberedServer(tokens=6, port=first.port)))

        def kill(server: NumberedServer) -> None:
            assert begun.wait(30)
            server.close()
            gone.set()

        with ExitStack() as stack:
            thread = threading.Thread(target=kill, args=(first,))
            thread.start()
            options = {"retry": RETRY, "listeners": [heard]}
            result = driver.result(first.url, MESSAGES, options, max_tokens=50)
            thread.join()
            assert result.text == numbers(0, 6)
            assert len(again) == 1
            assert [recovery.kind for recovery in result.stats.recoveries] == ["continue"]


@each_driver
def test_a_frozen_server_is_left_for_another(driver: Driver) -> None:
    with (
        NumberedServer(tokens=6) as one,
        NumberedServer(tokens=6) as two,
        ChaosProxy(one.url, Stall(after_events=3)) as frozen,
    ):
        options = {"retry": RETRY, "timeouts": Timeouts(content_idle=0.2)}
        result = driver.result([frozen.url, two.url], MESSAGES, options, max_tokens=50)  # type: ignore[arg-type]
        assert result.text == numbers(0, 6)
        (recovery,) = result.stats.recoveries
        assert (recovery.kind, recovery.server, recovery.from_server) == ("continue", two.url, frozen.url)
        assert recovery.error == "ContentIdleTimeoutError"


@each_driver
def test_the_generation_that_was_left_is_dropped(driver: Driver) -> None:
    with NumberedServer(tokens=500, gate=True) as one, NumberedServer(tokens=6) as two:
        one.release(3)
        with ChaosProxy(one.url, Stall(after_events=3)) as frozen:
            options = {"retry": RETRY, "timeouts": Timeouts(content_idle=0.2)}
            result = driver.result([frozen.url, two.url], MESSAGES, options, max_tokens=500)  # type: ignore[arg-type]
            assert result.text == numbers(0, 6)
            assert one.wait_for(lambda server: server.cancelled == 1), "DELETE came through"


@each_driver
def test_what_is_finished_but_for_its_counts_is_taken_up_again(driver: Driver) -> None:
    # Events: the role, 4 tokens, the finish reason, the counts, [DONE].
    with NumberedServer(tokens=9) as server, ChaosProxy(server.url, Reset(after_events=6)) as proxy:
        result = driver.result(proxy.url, MESSAGES, {"retry": RETRY}, max_tokens=4)
        assert [recovery.kind for recovery in result.stats.recoveries] == ["reattach"]
        assert result.usage is not None
        assert (result.text, result.usage.completion_tokens) == (numbers(0, 4), 4)
        assert server.generations == 1


@each_driver
def test_lost_counts_are_counted_where_nothing_is_held(driver: Driver) -> None:
    with NumberedServer(tokens=9, reattach=False) as server, ChaosProxy(server.url, Reset(after_events=6)) as proxy:
        result = driver.result(proxy.url, MESSAGES, {"retry": RETRY}, max_tokens=4)
        assert [recovery.kind for recovery in result.stats.recoveries] == ["finish"]
        assert result.usage is not None
        assert (result.text, result.usage.completion_tokens) == (numbers(0, 4), 4)
        assert server.generations == 1


@each_driver
def test_a_repetition_that_differs_ends_the_stream_at_once(driver: Driver) -> None:
    server_options: dict[str, Any] = {"tokens": 8, "continues": False, "reattach": False, "diverge_at": 1}
    with NumberedServer(**server_options) as server, ChaosProxy(server.url, Reset(after_events=5)) as proxy:
        with pytest.raises(StreamDivergedError) as caught:
            driver.texts(proxy.url, MESSAGES, {"retry": RETRY})
        assert caught.value.partial is not None
        assert caught.value.partial.text == numbers(0, 4)
        assert server.generations == 2


@each_driver
def test_where_streams_always_break_the_rest_comes_in_one_piece(driver: Driver) -> None:
    def cut(number: int, request_line: str) -> Fault | None:
        return Reset(after_events=3) if number == 1 else Reset(after_events=1) if number < 5 else None

    with NumberedServer(tokens=8, reattach=False) as server, ChaosProxy(server.url, cut) as proxy:
        result = driver.result(proxy.url, MESSAGES, {"retry": RETRY})
        assert (result.text, result.stats.streamed) == (numbers(0, 8), False)
        assert [recovery.kind for recovery in result.stats.recoveries] == ["non_streaming"]
        assert [request.body["stream"] for request in server.requests if request.path.endswith("completions")] == [
            True
        ] * 4 + [False]


@each_driver
def test_only_as_many_breaks_as_are_allowed_are_mended(driver: Driver) -> None:
    faults: list[Fault | None] = [Reset(after_events=3)] * 5
    retry = RetryPolicy(base_delay=0.001, max_recoveries=2)
    with NumberedServer(tokens=20) as server, ChaosProxy(server.url, faults) as proxy:
        with pytest.raises(LlamaStreamError) as caught:
            driver.texts(proxy.url, MESSAGES, {"retry": retry})
        assert caught.value.partial is not None
        assert caught.value.partial.text == numbers(0, 6)
        assert len(caught.value.partial.stats.recoveries) == 2
