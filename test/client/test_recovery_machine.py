"""The machine of a stream without any I/O: bytes, failures and times in; attempts, questions and events out.

The server is one on paper: it answers requests at once with what a NumberedServer would say.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from shortway import short_way
from wires import numbers

from llamastream.address import parse_address
from llamastream.client.attempt import Attempt, Errand
from llamastream.client.servers import Server, Servers
from llamastream.client.session import SessionOptions, StreamSession
from llamastream.client.state import ClientState
from llamastream.errors import (
    BadRequestError,
    ConnectError,
    ConnectionLostError,
    ContentIdleTimeoutError,
    FirstByteTimeoutError,
    LlamaStreamError,
    MidStreamError,
    StreamDivergedError,
    TotalTimeoutError,
)
from llamastream.events import AttemptStarted, ClientEvent, RequestEnded, StreamBroke, StreamRecovered
from llamastream.policy.breaker import BreakerState
from llamastream.protocol.requests import GenerationRequest, chat_request, completion_request
from llamastream.testing import chunked, http_answer
from llamastream.testing.numbered_answers import RequestError, Style, plan_chat, plan_completion, template, words
from llamastream.testing.numbered_writer import Writer
from llamastream.types import (
    ChoiceFinish,
    Health,
    ReasoningDelta,
    RetryPolicy,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    Timeouts,
    ToolCallDelta,
    Usage,
)

MESSAGES = [{"role": "user", "content": "count"}]
TOOLS = [{"type": "function", "function": {"name": "count", "parameters": {}}}]
CALL = '{"n":[0,1,2,3,4,5,6,7]}'


class FakeHoldings:
    """Notes what is held and dropped."""

    def __init__(self) -> None:
        self.added: list[tuple[str, str]] = []
        self.dropped: list[tuple[str, str]] = []

    def add(self, server: Server, conversation_id: str) -> None:
        self.added.append((server.url, conversation_id))

    def drop(self, server: Server, conversation_id: str, *, begun: bool) -> None:
        self.dropped.append((server.url, conversation_id))


class Paper:
    """A server on paper."""

    def __init__(self, *, reattach: bool = True, **style: Any) -> None:
        self.style = Style(**{"tokens": 8, **style})
        self.reattach = reattach
        self.bodies: dict[str, bytes] = {}
        self.generations = 0

    def answer(self, attempt: Attempt) -> list[bytes]:
        """The bytes on the wire, in the pieces in which they were written."""
        generation = attempt.generation
        if attempt.kind == "reattach":
            body = self.bodies.get(generation.conversation_id or "")
            if body is None or not self.reattach:
                return [error(404)]
            offset = int(generation.reattach_path.rpartition("from=")[2])
            assert 0 <= offset <= len(body)
            return on_the_wire(body[offset:])
        request = generation.request
        self.generations += 1
        planned = plan_chat if "messages" in request.body else plan_completion
        try:
            planned_answer = planned(request.body, self.style, self.generations)
        except RequestError:
            return [error(400)]
        writer = Writer(planned_answer, str(self.generations), 0)
        if not request.body["stream"]:
            return [http_answer("200 OK", writer.whole())]
        body = b"".join(writer.stream())
        if generation.conversation_id is not None and self.reattach:
            self.bodies[generation.conversation_id] = body
        return on_the_wire(body)

    def tell(self, errand: Errand) -> Any:
        """The answer to a question."""
        body = msgspec.json.decode(errand.call.body) if errand.call.body else {}
        try:
            return self._tell(errand, body)
        except RequestError:
            return None

    def _tell(self, errand: Errand, body: dict[str, Any]) -> Any:
        if errand.call.path == "/tokenize":
            return [len(word) for word in words(body["content"])]
        if errand.call.path == "/apply-template":
            return template(body, self.style)
        if errand.call.path == "/v1/stream":
            return self.reattach
        assert errand.call.path == "/health"
        return Health("ok")


def error(status: int) -> bytes:
    return http_answer(f"{status} No", b'{"error":{"message":"no"}}', "application/json", "Connection: close")


def on_the_wire(body: bytes) -> list[bytes]:
    events = [event + b"\n\n" for event in body.split(b"\n\n")[:-1]]
    framed = chunked(events)
    pieces, start = [], framed.index(b"\r\n\r\n") + 4
    pieces.append(framed[:start])
    for event in events:
        end = start + len(b"%x\r\n" % len(event)) + len(event) + 2
        pieces.append(framed[start:end])
        start = end
    return [*pieces, framed[start:]]


class Stage:
    """A session, the servers on paper that it asks, and a clock that stands still unless it is moved."""

    def __init__(
        self,
        request: GenerationRequest,
        *papers: Paper,
        retry: RetryPolicy | None = None,
        timeouts: Timeouts | None = None,
        fallback: Any = "auto",
        recovery: Any = "full",
    ) -> None:
        self.papers = papers or (Paper(),)
        self.now = 1000.0
        self.heard: list[ClientEvent] = []
        self.holdings = FakeHoldings()
        self.servers = Servers([parse_address(f"http://s{number}:80") for number in range(len(self.papers))], None)
        policy = retry or RetryPolicy(base_delay=0.25)
        self.state = ClientState(policy, [self.heard.append], self.servers, self.holdings)
        options = SessionOptions(timeouts or Timeouts(), 1 << 20, fallback, recovery)
        self.session = StreamSession(request, options, self.state, lambda: 0.5, self.now)
        self.events: list[StreamEvent] = []
        self.asked: list[str] = []
        self.sent: list[Attempt] = []
        self.silent = False  # questions get no answer

    def settle(self, tell: Callable[[Errand], Any] | None = None) -> bool:
        """Prepare the next attempt and answer its questions; whether there is one."""
        session = self.session
        assert session.next_attempt_at is not None
        self.now = max(self.now, session.next_attempt_at)
        session.prepare(self.now)
        while not session.ended and (errand := session.errand) is not None:
            self.asked.append(errand.call.path)
            paper = self.papers[errand.server.index]
            session.errand_done(None if self.silent else (tell or paper.tell)(errand), self.now)
        self.events += session.take_events()
        return not session.ended

    def attempt(self) -> list[bytes]:
        """Begin the next attempt; the pieces of its answer."""
        assert self.settle()
        self.session.begin(self.now, reused_connection=False)
        self.session.connected(self.now)
        self.sent.append(self.session.attempt)
        return self.papers[self.session.server.index].answer(self.session.attempt)

    def feed(self, *pieces: bytes) -> None:
        for piece in pieces:
            text = short_way(self.session.exchange, piece, self.now)
            self.events += [TextDelta(text)] if text is not None else self.session.feed(piece, self.now)

    def cut(self) -> None:
        self.session.fail(ConnectionLostError("cut"), self.now)
        self.events += self.session.take_events()

    def cut_after(self, events: int) -> None:
        """An attempt of which so many events arrive."""
        pieces = self.attempt()
        self.feed(*pieces[: 1 + events])
        self.cut()

    def stall(self) -> None:
        self.now = self.session.deadline
        self.session.timed_out(self.now)
        self.events += self.session.take_events()

    def finish(self) -> None:
        """Let everything go well from now on."""
        while not self.session.ended:
            if self.settle():
                self.session.begin(self.now, reused_connection=False)
                self.session.connected(self.now)
                self.sent.append(self.session.attempt)
                self.feed(*self.papers[self.session.server.index].answer(self.session.attempt))

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events if isinstance(event, TextDelta))

    @property
    def kinds(self) -> list[str]:
        return [attempt.kind for attempt in self.sent]

    @property
    def body(self) -> dict[str, Any]:
        """Of the last request."""
        return self.sent[-1].generation.request.body

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]

    def check(self) -> None:
        """What holds at the end of every stream."""
        assert self.session.ended
        assert Counter(self.holdings.added) == Counter(self.holdings.dropped), "each is dropped once"
        assert max(Counter(self.holdings.added).values(), default=1) == 1
        assert [server.in_flight for server in self.servers.all] == [0] * len(self.servers)
        assert sum(isinstance(event, StreamStart) for event in self.events) <= 1
        assert len(self.of(RequestEnded)) == 1
        assert self.heard[-1] == self.of(RequestEnded)[0]
        started = self.of(AttemptStarted)
        assert [event.number for event in started] == list(range(1, len(started) + 1))
        assert [event.kind for event in started] == self.kinds
        assert len(self.of(StreamRecovered)) == len(self.session.stats().recoveries)
        assert [event.recovery for event in self.of(StreamRecovered)] == list(self.session.stats().recoveries)
        assert len(self.of(StreamBroke)) - len(self.of(StreamRecovered)) in (0, 1)
        if self.session.error is None and not self.session.cancelled:
            assert isinstance(self.events[-1], StreamEnd)
            assert sum(isinstance(event, StreamEnd | ChoiceFinish) for event in self.events) == 2
            assert len(self.of(StreamBroke)) == len(self.of(StreamRecovered))


def chat(**fields: Any) -> GenerationRequest:
    return chat_request(MESSAGES, extra=fields)


HELD = chat(max_tokens=100)
FREE = chat()


# -- taken up again -------------------------------------------------------------------------------------------


def test_a_held_generation_is_taken_up_at_the_byte_where_it_was_left() -> None:
    stage = Stage(HELD)
    pieces = stage.attempt()
    stage.feed(*pieces[:4], pieces[4][:-20])
    stage.cut()
    assert stage.session.next_attempt_at == stage.now, "the first attempt goes at once"
    stage.finish()
    assert (stage.text, stage.kinds, stage.asked) == (numbers(0, 8), ["first", "reattach"], [])
    stage.check()
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.text_at_break, recovery.attempts) == ("reattach", True, 4, 1)
    assert (recovery.error, recovery.server, recovery.from_server) == ("ConnectionLostError", "http://s0", "http://s0")


def test_the_offset_counts_the_body_of_all_connections() -> None:
    stage = Stage(HELD)
    pieces = stage.attempt()
    offset = 0
    for cut in (3, 2, 4):
        stage.feed(*pieces[:cut], pieces[cut][:10])
        offset += sum(len(piece) - piece.index(b"\r\n") - 4 for piece in pieces[1:cut])
        stage.cut()
        assert stage.session.attempt.generation.offset == offset
        pieces = stage.attempt()
        assert stage.session.attempt.generation.reattach_path.endswith(f"&from={offset}")
    stage.feed(*pieces)
    assert stage.kinds == ["first", "reattach", "reattach", "reattach"]
    assert stage.text == numbers(0, 8)
    stage.check()


def test_nothing_is_held_where_it_would_not_end_by_itself() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    stage.finish()
    assert (stage.text, stage.kinds, stage.holdings.added) == (numbers(0, 8), ["first", "continue"], [])
    stage.check()


def test_an_id_that_the_server_forgot_is_a_reason_to_continue() -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    stage.papers[0].bodies.clear()
    stage.finish()
    assert stage.kinds == ["first", "reattach", "continue"]
    assert stage.text == numbers(0, 8)
    assert (stage.body["max_tokens"], stage.body["messages"][-1]["content"]) == (97, numbers(0, 3))
    assert len(stage.holdings.added) == 2
    stage.check()


def test_the_events_of_a_way_back_that_takes_two_attempts() -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    stage.papers[0].bodies.clear()
    stage.finish()
    assert [type(event).__name__ for event in stage.heard] == [
        "RequestStarted",
        "AttemptStarted",
        "FirstToken",
        "StreamBroke",
        "AttemptStarted",
        "RetryScheduled",
        "AttemptStarted",
        "StreamRecovered",
        "RequestEnded",
    ]
    assert [event.kind for event in stage.of(StreamBroke)] == ["reattach"]
    assert isinstance(stage.of(StreamBroke)[0].error, ConnectionLostError)
    (recovered,) = stage.of(StreamRecovered)
    assert (recovered.recovery.kind, recovered.recovery.attempts) == ("continue", 2)
    assert recovered.recovery.verified is False
    stage.check()


def test_a_server_that_does_not_know_ids_is_asked_whether_it_does() -> None:
    stage = Stage(HELD, Paper(reattach=False))
    stage.cut_after(4)
    stage.finish()
    assert stage.kinds == ["first", "reattach", "continue"]
    assert stage.asked[0] == "/v1/stream"
    assert stage.servers.all[0].reattach is False
    assert [attempt.generation.conversation_id is None for attempt in stage.sent] == [False, False, True]
    stage.check()


@pytest.mark.parametrize("error_class", [ConnectionLostError, ContentIdleTimeoutError])
def test_re_attaching_is_tried_twice_at_most_without_new_content(error_class: type[LlamaStreamError]) -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    while stage.kinds[-1] != "continue":
        stage.attempt()
        stage.session.fail(error_class("again"), stage.now)
        assert len(stage.kinds) < 6
    assert stage.kinds == ["first", "reattach", "reattach", "continue"]
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_a_server_that_went_down_has_lost_what_it_held() -> None:
    stage = Stage(HELD)
    stage.cut_after(4)
    stage.attempt()
    stage.session.fail(ConnectError("refused"), stage.now)
    stage.finish()
    assert stage.kinds == ["first", "reattach", "continue"]
    stage.check()


def test_a_silent_server_has_five_seconds_to_give_the_rest() -> None:
    stage = Stage(HELD, timeouts=Timeouts(first_byte=300.0))
    stage.cut_after(4)
    stage.attempt()
    assert stage.session.deadline == stage.now + 5.0
    stage.stall()
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_so_it_has_where_the_first_byte_may_take_for_ever() -> None:
    stage = Stage(HELD, timeouts=Timeouts(first_byte=None))
    stage.cut_after(4)
    stage.attempt()
    stage.stall()
    assert not stage.session.ended
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_the_message_of_a_silent_server_names_the_time_that_it_had() -> None:
    stage = Stage(HELD, timeouts=Timeouts(first_byte=300.0), recovery="reattach")
    stage.cut_after(4)
    for _ in range(4):
        if not stage.session.ended:
            stage.attempt()
            stage.stall()
    assert isinstance(stage.session.error, FirstByteTimeoutError)
    assert "within 5 s" in stage.session.error.message
    stage.check()


# -- continued, repeated, in one piece ------------------------------------------------------------------------


def test_a_conversation_is_counted_with_its_template() -> None:
    stage = Stage(chat(max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(4)
    stage.finish()
    assert stage.asked == ["/apply-template", "/apply-template", "/tokenize"]
    assert stage.body["max_tokens"] == 3
    assert stage.text == numbers(0, 6)
    usage = [event for event in stage.events if isinstance(event, Usage)][-1]
    assert usage.completion_tokens == 6
    stage.check()


def test_a_completion_is_counted_by_its_text() -> None:
    stage = Stage(completion_request("Count: ", max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(3)
    stage.finish()
    assert stage.asked == ["/tokenize"]
    assert (stage.body["prompt"], stage.body["max_tokens"]) == ("Count: 0 1 2 ", 3)
    assert stage.text == numbers(0, 6)
    stage.check()


def test_questions_without_an_answer_leave_the_pieces_as_count() -> None:
    stage = Stage(chat(max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.silent = True
    stage.cut_after(4)
    stage.finish()
    assert stage.asked == ["/apply-template"], "a server that does not answer is not asked again"
    assert (stage.body["max_tokens"], stage.text) == (3, numbers(0, 6))
    stage.check()


def test_a_text_that_reached_its_limit_is_complete() -> None:
    stage = Stage(chat(max_tokens=3), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(4)
    stage.finish()
    assert (stage.kinds, stage.text) == (["first"], numbers(0, 3))
    end = stage.events[-1]
    assert isinstance(end, StreamEnd)
    assert end.finish_reason == "length"
    assert end.usage is not None
    assert end.usage.completion_tokens == 3
    assert [recovery.kind for recovery in end.stats.recoveries] == ["finish"]
    stage.check()


def test_a_server_that_refuses_to_continue_is_asked_for_a_repetition() -> None:
    stage = Stage(FREE, Paper(continues=False))
    stage.cut_after(4)
    stage.finish()
    assert stage.kinds == ["first", "continue", "replay"]
    assert stage.text == numbers(0, 8)
    assert stage.servers.all[0].continues is None, "one refusal says nothing of other answers"
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.error) == ("replay", True, "ConnectionLostError")
    stage.check()


def test_what_was_learned_is_known_to_the_next_stream() -> None:
    stage = Stage(FREE, Paper(continues=False))
    stage.servers.all[0].continues = False
    stage.cut_after(4)
    stage.finish()
    assert stage.kinds == ["first", "replay"]
    stage.check()


def test_an_error_inside_a_continued_stream_is_no_refusal() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    stage.feed(stage.attempt()[0])
    stage.session.fail(MidStreamError("out of memory", status=500), stage.now)
    stage.finish()
    assert stage.kinds == ["first", "continue", "continue"]
    assert stage.servers.all[0].continues is None
    stage.check()


def test_tool_calls_are_repeated_with_the_same_seed() -> None:
    stage = Stage(chat(tools=TOOLS), Paper(tool_call=True))
    stage.cut_after(5)
    stage.finish()
    assert stage.kinds == ["first", "replay"]
    seeds = [attempt.generation.request.body["seed"] for attempt in stage.sent]
    assert len(set(seeds)) == 1
    assert "".join(event.arguments for event in stage.events if isinstance(event, ToolCallDelta)) == CALL
    assert [event.id for event in stage.events if isinstance(event, ToolCallDelta) and event.id] == ["call_1"]
    stage.check()


@pytest.mark.parametrize(
    ("request_", "paper"),
    [
        (chat(tools=TOOLS), {"tool_call": True}),
        (FREE, {"continues": False}),
        (HELD, {"continues": False, "reattach": False}),
    ],
    ids=["a tool call", "the server cannot continue", "it could have been held"],
)
def test_a_repetition_that_differs_is_the_end(request_: GenerationRequest, paper: dict[str, Any]) -> None:
    stage = Stage(request_, Paper(diverge_at=1, **paper))
    stage.servers.all[0].continues = paper.get("continues")
    stage.cut_after(6)
    stage.finish()
    assert isinstance(stage.session.error, StreamDivergedError)
    assert stage.session.error.partial is not None
    assert len([kind for kind in stage.kinds if kind == "replay"]) == 1
    stage.check()


def test_a_structured_answer_that_differs_is_continued() -> None:
    stage = Stage(chat(response_format={"type": "json_object"}), Paper(diverge_at=1))
    stage.cut_after(6)
    stage.finish()
    assert (stage.kinds, stage.text) == (["first", "replay", "continue"], numbers(0, 8))
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.attempts) == ("continue", False, 2)
    stage.check()


@pytest.mark.parametrize("continues", [True, False])
def test_after_three_streams_in_vain_the_rest_comes_in_one_piece(continues: bool) -> None:
    stage = Stage(FREE, Paper(continues=continues))
    stage.servers.all[0].continues = continues
    stage.cut_after(4)
    for _ in range(3):
        stage.cut_after(1)
    stage.finish()
    way = "continue" if continues else "replay"
    assert stage.kinds == ["first", way, way, way, "non_streaming"]
    assert (stage.text, stage.body["stream"]) == (numbers(0, 8), False)
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.kind, recovery.verified, recovery.attempts) == ("non_streaming", not continues, 4)
    assert stage.session.stats().streamed is False
    stage.check()


def test_a_refused_continuation_in_one_piece_is_repeated_in_one_piece() -> None:
    stage = Stage(FREE, Paper())
    stage.cut_after(4)
    for _ in range(3):
        stage.cut_after(1)
    stage.papers[0].style = msgspec.structs.replace(stage.papers[0].style, continues=False)
    stage.finish()
    assert stage.kinds[-2:] == ["non_streaming", "non_streaming"]
    assert "continue_final_message" not in stage.body
    assert stage.text == numbers(0, 8)
    assert stage.session.stats().recoveries[0].verified is True
    stage.check()


def test_in_vain_counts_only_what_was_answered() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    for _ in range(5):
        stage.attempt()
        stage.session.fail(ConnectError("refused"), stage.now)
    stage.finish()
    assert stage.kinds == ["first"] + ["continue"] * 6
    stage.check()


def test_one_piece_may_be_forbidden() -> None:
    stage = Stage(FREE, fallback="never")
    stage.cut_after(4)
    for _ in range(5):
        stage.cut_after(1)
    stage.finish()
    assert stage.kinds == ["first"] + ["continue"] * 6
    assert stage.text == numbers(0, 8)
    stage.check()


# -- bounds ---------------------------------------------------------------------------------------------------


def test_patience_ends_with_the_error_of_the_last_attempt_and_what_there_was() -> None:
    stage = Stage(FREE, retry=RetryPolicy(base_delay=0.25, recovery_patience=10.0))
    stage.cut_after(4)
    while not stage.session.ended:
        stage.attempt()
        stage.session.fail(ConnectError("refused"), stage.now)
    assert 10.0 < stage.now - 1000.0 < 13.0
    assert isinstance(stage.session.error, ConnectError)
    assert stage.session.error.partial is not None
    assert stage.session.error.partial.text == numbers(0, 3)
    stage.check()


def test_new_content_ends_the_count_of_the_patience() -> None:
    stage = Stage(FREE, retry=RetryPolicy(recovery_patience=10.0))
    for _ in range(6):
        stage.cut_after(2)
        stage.now += 8.0
    stage.finish()
    assert stage.text == numbers(0, 8)
    assert len(stage.session.stats().recoveries) == 6
    stage.check()


@pytest.mark.parametrize("breaks", [0, 1, 3])
def test_so_many_breaks_are_mended_and_no_more(breaks: int) -> None:
    stage = Stage(FREE, Paper(tokens=50), retry=RetryPolicy(max_recoveries=breaks))
    for _ in range(breaks + 1):
        assert not stage.session.ended
        stage.cut_after(3)
    assert isinstance(stage.session.error, ConnectionLostError)
    assert len(stage.session.stats().recoveries) == breaks
    stage.check()


@pytest.mark.parametrize("request_", [FREE, HELD])
def test_it_can_be_switched_off(request_: GenerationRequest) -> None:
    stage = Stage(request_, recovery="off")
    stage.cut_after(4)
    assert isinstance(stage.session.error, ConnectionLostError)
    assert stage.holdings.added == []
    stage.check()


def test_the_total_clock_is_the_last_word() -> None:
    stage = Stage(FREE, timeouts=Timeouts(total=5.0))
    stage.cut_after(4)
    stage.attempt()
    stage.now += 4.9
    stage.session.fail(ConnectError("refused"), stage.now)
    assert stage.session.ended, "the next attempt would begin after the end"
    stage.check()


def test_when_the_total_clock_runs_out_nothing_goes_on() -> None:
    stage = Stage(HELD, timeouts=Timeouts(total=5.0))
    stage.feed(*stage.attempt()[:5])
    stage.stall()
    assert isinstance(stage.session.error, TotalTimeoutError)
    stage.check()


def test_an_error_that_is_final_ends_it() -> None:
    stage = Stage(HELD)
    stage.feed(*stage.attempt()[:5])
    stage.session.fail(MidStreamError("bad grammar", status=400), stage.now)
    assert isinstance(stage.session.error, MidStreamError)
    stage.check()


def test_the_first_request_that_is_refused_is_not_repeated() -> None:
    stage = Stage(HELD)
    stage.attempt()
    stage.feed(error(400))
    assert isinstance(stage.session.error, BadRequestError)
    stage.check()


def test_all_was_there_but_the_end_marks() -> None:
    stage = Stage(chat(stream_options={"include_usage": False}))
    stage.cut_after(1 + 8 + 1)
    stage.finish()
    assert (stage.text, stage.kinds) == (numbers(0, 8), ["first"])
    assert [recovery.kind for recovery in stage.session.stats().recoveries] == ["finish"]
    stage.check()


# -- several servers ------------------------------------------------------------------------------------------


def test_a_frozen_server_is_left_at_once_and_its_generation_dropped() -> None:
    stage = Stage(HELD, Paper(), Paper())
    stage.feed(*stage.attempt()[:5])
    stage.stall()
    assert stage.session.next_attempt_at == stage.now
    one, two = stage.servers.all
    assert one.breaker.state(stage.now) is BreakerState.OPEN
    stage.finish()
    assert stage.kinds == ["first", "continue"]
    assert [attempt.generation.server for attempt in stage.sent] == [one, two]
    assert stage.text == numbers(0, 8)
    (recovery,) = stage.session.stats().recoveries
    assert (recovery.from_server, recovery.server) == (one.url, two.url)
    assert [event.server for event in stage.of(AttemptStarted)] == [one.url, two.url]
    stage.check()


def test_a_cut_goes_back_to_the_server_that_holds_the_generation() -> None:
    stage = Stage(HELD, Paper(), Paper())
    stage.cut_after(4)
    stage.finish()
    assert [attempt.generation.server.index for attempt in stage.sent] == [0, 0]
    stage.check()


def test_without_an_id_a_cut_goes_on_elsewhere() -> None:
    stage = Stage(FREE, Paper(), Paper())
    stage.cut_after(4)
    stage.finish()
    assert [attempt.generation.server.index for attempt in stage.sent] == [0, 1]
    stage.check()


def test_all_servers_are_tried_before_one_is_tried_again() -> None:
    stage = Stage(FREE, Paper(), Paper(), Paper())
    stage.cut_after(4)
    assert stage.session.next_attempt_at == stage.now
    for _ in range(2):
        stage.attempt()
        stage.session.fail(ConnectError("refused"), stage.now)
    assert [attempt.generation.server.index for attempt in stage.sent] == [0, 1, 2]
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_a_server_that_was_not_asked_yet_is_asked_at_once() -> None:
    stage = Stage(FREE, Paper(), Paper(), Paper())
    stage.cut_after(4)
    stage.attempt()
    stage.session.fail(ConnectError("refused"), stage.now)
    assert stage.session.next_attempt_at == stage.now, "the third"
    stage.attempt()
    stage.session.fail(ConnectError("refused"), stage.now)
    assert stage.session.next_attempt_at is not None
    assert stage.session.next_attempt_at > stage.now, "all have been asked"
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


@pytest.mark.parametrize(("status", "kind"), [(503, "continue"), (429, "continue"), (502, "reattach")])
def test_what_a_server_refused_is_not_taken_up_there(status: int, kind: str) -> None:
    stage = Stage(HELD, Paper(), Paper())
    stage.feed(*stage.attempt()[:5])
    stage.stall()
    stage.attempt()
    stage.feed(error(status))
    stage.settle()
    assert stage.session.attempt.kind == kind, "who answers 502 has only lost sight of the server"
    assert "/v1/stream" not in stage.asked, "nobody needs to know whether it would hold one"
    stage.session.cancel(stage.now)
    stage.check()


def test_a_server_that_was_down_is_probed_before_it_is_used() -> None:
    stage = Stage(FREE, Paper(), Paper())
    one, two = stage.servers.all
    stage.servers.failed(one, stage.now, certain=True)
    stage.servers.failed(two, stage.now, certain=True)
    stage.now += 100.0
    stage.settle()
    assert stage.asked == ["/health"]
    stage.session.cancel(stage.now)
    stage.check()


def test_a_probe_that_fails_leaves_the_server_alone() -> None:
    stage = Stage(FREE, Paper(), Paper())
    one, two = stage.servers.all
    for server in (one, two):
        stage.servers.failed(server, stage.now, certain=True)
    stage.now += 100.0
    stage.settle(lambda errand: Health("ok") if errand.server is two else None)
    assert stage.asked == ["/health", "/health"]
    assert stage.session.server is two
    assert one.breaker.state(stage.now) is BreakerState.OPEN
    stage.session.cancel(stage.now)
    stage.check()


# -- leaving --------------------------------------------------------------------------------------------------


def steps(request: GenerationRequest, *papers: Paper) -> Iterator[Stage]:
    """The same eventful stream, given away at each of its steps."""
    for last in range(200):
        stage = Stage(request, *(Paper(reattach=paper.reattach, tool_call=paper.style.tool_call) for paper in papers))
        count = 0

        def enough() -> bool:
            nonlocal count
            count += 1
            return count > last  # noqa: B023

        for cut in (5, 2, 1, 3, 99):
            session = stage.session
            if enough() or session.ended:
                break
            stage.now = max(stage.now, session.next_attempt_at or 0.0)
            session.prepare(stage.now)
            while not session.ended and (errand := session.errand) is not None and not enough():
                session.errand_done(stage.papers[errand.server.index].tell(errand), stage.now)
            stage.events += session.take_events()
            if session.ended or session.errand is not None or enough():
                break
            session.begin(stage.now, reused_connection=False)
            stage.sent.append(session.attempt)
            if enough():
                break
            session.connected(stage.now)
            pieces = stage.papers[session.server.index].answer(session.attempt)[:cut]
            while pieces and not enough():
                stage.feed(pieces.pop(0))
            if pieces or session.ended or enough():
                break
            stage.cut()
        if stage.session.ended:
            return
        yield stage


@pytest.mark.parametrize(
    ("request_", "paper"),
    [
        (HELD, Paper()),
        (HELD, Paper(reattach=False)),
        (FREE, Paper()),
        (chat(tools=TOOLS, max_tokens=99), Paper(tool_call=True)),
    ],
    ids=["held", "not held", "without a limit", "a tool call"],
)
def test_leaving_at_any_step_leaves_nothing_behind(request_: GenerationRequest, paper: Paper) -> None:
    stages = list(steps(request_, paper, paper))
    assert len(stages) > 10
    for stage in stages:
        stage.session.cancel(stage.now)
        assert stage.session.finish_reason == "cancelled"
        stage.session.cancel(stage.now)
        stage.check()
        assert stage.session.result().text == stage.text


def test_answers_to_questions_that_come_after_the_end_do_nothing() -> None:
    stage = Stage(chat(max_tokens=6), Paper(reattach=False))
    stage.servers.all[0].reattach = False
    stage.cut_after(4)
    stage.session.prepare(stage.now)
    errand = stage.session.errand
    assert errand is not None
    stage.session.cancel(stage.now)
    assert stage.session.errand is None
    stage.session.errand_done(stage.papers[0].tell(errand), stage.now)
    assert stage.session.errand is None
    stage.check()


def test_what_arrives_late_from_an_attempt_that_is_over_is_not_taken() -> None:
    stage = Stage(FREE)
    pieces = stage.attempt()
    stage.feed(*pieces[:5])
    stage.stall()
    stage.feed(*pieces[5:])
    assert stage.text == numbers(0, 3)
    stage.finish()
    assert stage.text == numbers(0, 8)
    stage.check()


def test_no_connection_of_the_pool_is_no_answer_in_vain() -> None:
    stage = Stage(FREE)
    stage.cut_after(4)
    for _ in range(4):
        stage.settle()
        stage.session.fail(ConnectError("all connections are in use"), stage.now)
    stage.finish()
    assert stage.kinds == ["first", "continue"]
    stage.check()


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
