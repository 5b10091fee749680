"""llama-servers on a simulated clock, behind the gateway's own scheduler: who waits how long for a first token.

A server here chooses slots as the real one does (the longest common beginning if it is more than a tenth of the prompt,
else the slot that was used longest ago), keeps what slots lose in a cache of bounded size, reads one prompt at a time,
and generates for all its slots together, which stands still while it reads.
"""

from __future__ import annotations

import heapq
import random
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from llamastream.policy.prefixes import Prompt, chained
from llamastream.policy.routing import InstanceFacts, Report, Router, Strategy
from llamastream.policy.scheduling import Scheduler, Ticket

CHARACTERS = 4
"""Of a token."""


@dataclass(frozen=True)
class Speed:
    """Of one server, in tokens a second: reading, and generating for one slot and for each of many."""

    prefill: float
    decode: float
    shared: float
    """Share of a slot's decode speed that is left when all slots generate."""


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
    think: float = 10.0


@dataclass
class Conversation:
    number: int
    left: int
    parts: list[tuple[tuple[int, int], int]] = field(default_factory=list)  # what, and its tokens


Sequence = tuple[tuple[tuple[int, int], int], ...]


def common(one: Sequence, other: Sequence) -> int:
    """Tokens that two sequences begin with in common."""
    found = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        found += a[1]
    return found


class Server:
    """One llama-server."""

    def __init__(self, slots: int, speed: Speed, kept: int) -> None:
        self.speed = speed
        self.slots: list[Sequence] = [()] * slots
        self.used = [0.0] * slots
        self.busy: set[int] = set()
        self.ends: dict[int, float] = {}  # of the requests that generate
        self.kept: list[Sequence] = []
        self.limit = kept
        self.read_at = 0.0

    def take(self, prompt: Sequence, now: float) -> tuple[int, int]:
        """A slot for a prompt, and how many of its tokens are there."""
        total = sum(tokens for _, tokens in prompt)
        best, slot = 0, -1
        for each, held in enumerate(self.slots):
            if each not in self.busy and held and (same := common(held, prompt)) > best and same > 0.1 * total:
                best, slot = same, each
        update = slot >= 0 and best < 0.5 * sum(tokens for _, tokens in self.slots[slot])
        if slot < 0:
            slot = min((each for each in range(len(self.slots)) if each not in self.busy), key=self.used.__getitem__)
            best, update = common(self.slots[slot], prompt), True
        if update and self.limit:
            old = self.slots[slot]
            if old and old not in self.kept:
                self.kept = [each for each in self.kept if common(each, old) < sum(t for _, t in each)] + [old]
            candidates = [(common(each, prompt), each) for each in self.kept]
            fits = [pair for pair in candidates if pair[0] >= 0.25 * sum(t for _, t in pair[1]) and pair[0] > best]
            if fits:
                best, found = max(fits, key=lambda pair: pair[0])
                self.kept.remove(found)
            self.kept = self.kept[-self.limit :]
        self.busy.add(slot)
        self.used[slot] = now
        return slot, min(best, total - 1)


class Asked(Ticket):
    """A request of a conversation."""

    __slots__ = ("talk",)

    def __init__(self, talk: Conversation) -> None:
        pieces = [(what, tokens * CHARACTERS) for what, tokens in talk.parts]
        super().__init__(Prompt(*chained(pieces), session=talk.number * 0x9E3779B97F4A7C15 % (1 << 61)))
        self.talk = talk


class Simulation:
    """One run: a strategy, so many servers, so many requests."""

    def __init__(
        self,
        strategy: Strategy,
        *,
        instances: int,
        slots: int,
        speed: Speed,
        kept: int,
        workload: Workload,
        seed: int,
    ) -> None:
        self.random = random.Random(seed)
        self.work = workload
        self.router = Router(strategy)
        self.scheduler = Scheduler(self.router, 1 << 20)
        self.router.update(InstanceFacts(str(each), slots) for each in range(instances))
        self.servers = [Server(slots, speed, kept) for _ in range(instances)]
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
        slot, cached = server.take(prompt, self.now)
        total = sum(tokens for _, tokens in prompt)
        begins = max(self.now, server.read_at)
        seconds = (total - cached) / server.speed.prefill
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
        self.first_tokens.append(self.now - ticket.arrived)
        self.scheduler.read(ticket, self.now)
        tokens = self.random.randint(*self.work.answer)
        share = (len(server.busy) - 1) / max(1, len(server.slots) - 1)
        pace = server.speed.decode * (1 - share * (1 - server.speed.shared))
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
