"""A stream's machine without any I/O, and servers on paper: they answer at once what a NumberedServer would say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec
from shortway import short_way

from llamastream.address import parse_address
from llamastream.client.attempt import Attempt, Errand
from llamastream.client.servers import Server, Servers
from llamastream.client.session import SessionOptions, StreamSession
from llamastream.client.state import ClientState
from llamastream.errors import (
    ConnectionLostError,
)
from llamastream.events import AttemptStarted, ClientEvent, RequestEnded, StreamBroke, StreamRecovered
from llamastream.protocol.requests import GenerationRequest, chat_request
from llamastream.testing import chunked, http_answer
from llamastream.testing.numbered_answers import RequestError, Style, plan_chat, plan_completion, template, words
from llamastream.testing.numbered_writer import Writer
from llamastream.types import (
    ChoiceFinish,
    Health,
    RetryPolicy,
    StreamEnd,
    StreamEvent,
    StreamStart,
    TextDelta,
    Timeouts,
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
