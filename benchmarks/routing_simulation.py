"""llama-servers on a simulated clock, behind the gateway's own scheduler: who waits how long for a first token.

A server here chooses slots and keeps prompts as the real one does (`routing_server.py`), reads one prompt at a time,
and generates for all its slots together, which stands still while it reads.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from routing_server import Server, Speed, length

from llamastream.policy.prefixes import Prompt, chained
from llamastream.policy.routing import InstanceFacts, Report, Router, Strategy
from llamastream.policy.scheduling import Scheduler, Ticket

CHARACTERS = 4
"""Of a token."""


@dataclass(frozen=True)
class Workload:
    """Conversations that come back with all that was said, after a while.

    `per_slot`: how many there are at a time for each slot. `system`: tokens that all of them begin with. The others are
    bounds of a uniform distribution, `think` the mean of an exponential one in seconds.
    """

    per_slot: float
    system: int = 1500
    question: tuple[int, int] = (20, 120)
    answer: tuple[int, int] = (20, 100)
    turns: tuple[int, int] = (4, 10)
    think: float = 0.0


@dataclass
class Conversation:
    number: int
    left: int
    parts: list[tuple[tuple[int, int], int]] = field(default_factory=list)  # what, and its tokens


class Asked(Ticket):
    """A request of a conversation."""

    __slots__ = ("talk",)

    def __init__(self, talk: Conversation) -> None:
        pieces = [(what, tokens * CHARACTERS) for what, tokens in talk.parts]
        super().__init__(Prompt(*chained(pieces), session=talk.number * 0x9E3779B97F4A7C15 % (1 << 61)))
        self.talk = talk
        self.placeable = True


class Simulation:
    """One run: a strategy, so many servers, so many requests. `chosen`: the gateway chooses the slots."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        instances: int,
        slots: int,
        speed: Speed,
        kept: int,
        similarity: float,
        workload: Workload,
        seed: int,
        chosen: bool = True,
    ) -> None:
        self.random = random.Random(seed)
        self.work = workload
        self.router = Router(strategy)
        self.scheduler = Scheduler(self.router, 1 << 20)
        self.router.update(InstanceFacts(str(each), slots, ours=chosen) for each in range(instances))
        for each in range(instances):
            self.router.looked(each, range(slots), 0.0)
        self.servers = [Server(slots, speed, kept, similarity) for _ in range(instances)]
        self.now = 0.0
        self.events: list[tuple[float, int, str, Any]] = []
        self.order = count()
        self.conversations = count(1)
        self.first_tokens: list[float] = []
        self.evaluated = 0
        self.prompted = 0
        self.predicted: list[tuple[float, float]] = []
        self.wakes_at: float | None = None
        for _ in range(round(workload.per_slot * instances * slots)):
            self.at(self.random.uniform(0, workload.think), "ask", self.begin())

    def at(self, when: float, what: str, data: Any) -> None:
        heapq.heappush(self.events, (when, next(self.order), what, data))

    def begin(self) -> Conversation:
        return Conversation(
            next(self.conversations), self.random.randint(*self.work.turns), [((0, 0), self.work.system)]
        )

    def run(self, requests: int, warm_up: int) -> None:
        """Until so many requests have had their first token, those of the warm-up not counted."""
        while len(self.first_tokens) < requests + warm_up:
            self.now, _, what, data = heapq.heappop(self.events)
            if what == "ask":
                self.ask(data)
            elif what == "token":
                self.token(*data)
            elif what == "end":
                self.end(*data)
            if what != "token":
                self.dispatch()
        self.first_tokens = self.first_tokens[warm_up:]

    def ask(self, talk: Conversation) -> None:
        talk.parts.append(((talk.number, len(talk.parts)), self.random.randint(*self.work.question)))
        self.scheduler.submit(Asked(talk), self.now)

    def dispatch(self) -> None:
        for ticket in self.scheduler.dispatch(self.now):
            assert isinstance(ticket, Asked)
            self.start(ticket, ticket.talk)
        wake = self.scheduler.wake_at
        if wake is not None and wake != self.wakes_at:
            self.wakes_at = wake
            self.at(wake, "wake", None)

    def start(self, ticket: Ticket, talk: Conversation) -> None:
        server = self.servers[ticket.instance]
        prompt = tuple(talk.parts)
        slot, cached = server.take(prompt, self.now, None if ticket.seat is None else ticket.seat.slot)
        total = length(prompt)
        begins = max(self.now, server.read_at)
        server.reading += 1
        seconds = (total - cached) / server.speed.prefill[server.reading - 1]
        server.read_at = first = begins + seconds
        for each in server.ends:
            server.ends[each] += seconds
        self.prompted += total
        self.evaluated += total - cached
        assert ticket.decision is not None
        self.predicted.append((ticket.decision.seconds, first - self.now))
        self.at(first, "token", (ticket, talk, slot, cached, total, seconds, self.now))

    def token(
        self, ticket: Ticket, talk: Conversation, slot: int, cached: int, total: int, seconds: float, began: float
    ) -> None:
        server = self.servers[ticket.instance]
        server.reading -= 1
        self.first_tokens.append(self.now - ticket.arrived)
        self.scheduler.read(ticket, self.now)
        tokens = self.random.randint(*self.work.answer)
        pace = server.speed.decode[len(server.busy) - 1]
        server.ends[slot] = self.now + tokens / pace + max(0.0, server.read_at - self.now)
        self.at(server.ends[slot], "end", (ticket, talk, slot, cached, total, seconds, began, tokens))

    def end(
        self,
        ticket: Ticket,
        talk: Conversation,
        slot: int,
        cached: int,
        total: int,
        seconds: float,
        began: float,
        tokens: int,
    ) -> None:
        server = self.servers[ticket.instance]
        if server.ends[slot] > self.now + 1e-9:
            self.at(server.ends[slot], "end", (ticket, talk, slot, cached, total, seconds, began, tokens))
            return
        del server.ends[slot]
        server.busy.discard(slot)
        talk.parts.append(((talk.number, len(talk.parts)), tokens))
        server.slots[slot] = tuple(talk.parts)
        server.used[slot] = self.now
        report = Report(self.now - began, total, cached, tokens, seconds * 1000)
        self.scheduler.finish(ticket, report, self.now)
        talk.left -= 1
        self.at(self.now + self.random.expovariate(1 / self.work.think), "ask", talk if talk.left else self.begin())
